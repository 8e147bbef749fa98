#!/usr/bin/env python3
"""The deployed runner: joins clients to the agent of a container, or dials a VM itself."""

import argparse
import asyncio
import re
from urllib.parse import urlsplit

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

import wire
from common import health, listen_address, set_up_log

log = set_up_log("runner")
FORWARD = re.compile(r"/ws/forward/([^/]+)/(\d+)")
TUNNEL = re.compile(r"/ws/tunnel/([^/]+)")


class Tunnel:
    """The WebSocket of an agent, and which client's WebSocket has which id on it."""

    def __init__(self, ws):
        self.ws = ws
        self.clients = {}

    async def send(self, message):
        try:
            await self.ws.send(message)
        except ConnectionClosed:
            # The session keeps the agent it found at its start, and does not recover.
            log.warning("agent is gone, dropped %s", wire.describe(message))


class Runner:
    def __init__(self, targets):
        self.targets = targets
        self.tunnels = {}

    async def handler(self, ws):
        path = urlsplit(ws.request.path).path
        try:
            if route := TUNNEL.fullmatch(path):
                await self.agent(ws, route[1])
            elif route := FORWARD.fullmatch(path):
                await self.client(ws, route[1])
            else:
                await ws.close(1008, "no such route")
        except ConnectionClosed:
            pass

    async def agent(self, ws, container):
        tunnel = Tunnel(ws)
        self.tunnels[container] = tunnel
        log.info("agent of %s is here", container)
        try:
            async for message in ws:
                if isinstance(message, str):
                    log.error("text from the agent of %s", container)
                    return
                parts = wire.unpack(message)
                if parts is None:
                    continue
                kind, _, client, _, _ = parts
                if kind not in (wire.CONNECTED, wire.DATA, wire.CLOSE, wire.ERROR):
                    continue
                if kind in (wire.CLOSE, wire.ERROR):
                    client_ws = tunnel.clients.pop(client, None)
                else:
                    client_ws = tunnel.clients.get(client)
                if client_ws is None:
                    log.info("nobody has the id of %s", wire.describe(message))
                    continue
                log.info("agent -> client %s", wire.describe(message))
                try:
                    await client_ws.send(message)  # one client that pauses holds up the container
                except ConnectionClosed:
                    pass
        finally:
            # Removes any registration, also of a newer connection of the same agent.
            self.tunnels.pop(container, None)
            log.info("agent of %s is gone", container)

    async def client(self, ws, container):
        if container in self.targets:
            await ws.send("CONNECTED")
            await Direct(ws, self.targets[container]).run()
            return
        tunnel = self.tunnels.get(container)
        if tunnel is None:
            await ws.send(f"Error: no tunnel agent for {container}")
            await ws.close(1011, "no agent")
            return
        await ws.send("CONNECTED")
        try:
            async for message in ws:
                if isinstance(message, str):
                    log.error("text in mid-session")
                    return
                parts = wire.unpack(message)
                if parts is None:
                    continue
                kind, _, client, _, _ = parts
                # Ids are passed through: two clients that count from 1 share them.
                if kind == wire.CONNECT:
                    tunnel.clients[client] = ws
                elif kind == wire.CLOSE:
                    tunnel.clients.pop(client, None)
                log.info("client -> agent %s", wire.describe(message))
                await tunnel.send(message)
        finally:
            for client in [client for client, owner in tunnel.clients.items() if owner is ws]:
                del tunnel.clients[client]
                await tunnel.send(wire.pack(wire.CLOSE, wire.TCP, client))


class Direct:
    """A client's session with a VM. Ignores the proto byte: everything is TCP."""

    def __init__(self, ws, address):
        self.ws = ws
        self.address = address
        self.queues = {}
        self.tasks = set()

    async def run(self):
        try:
            async for message in self.ws:
                if isinstance(message, str):
                    log.error("text in mid-session")
                    return
                parts = wire.unpack(message)
                if parts is None:
                    continue
                kind, _, client, port, payload = parts
                log.info("client -> VM %s", wire.describe(message))
                if kind == wire.CONNECT:
                    if client not in self.queues:
                        self.queues[client] = asyncio.Queue(256)
                        task = asyncio.create_task(
                            self.connection(client, port, self.queues[client])
                        )
                        self.tasks.add(task)
                        task.add_done_callback(self.tasks.discard)
                elif kind == wire.DATA and client in self.queues:
                    await self.queues[client].put(payload)
                elif kind == wire.CLOSE and client in self.queues:
                    await self.queues.pop(client).put(None)
                # PING and the rest: nothing.
        finally:
            for task in list(self.tasks):
                task.cancel()

    async def send(self, kind, client, port=0, payload=b""):
        try:
            await self.ws.send(wire.pack(kind, wire.TCP, client, port, payload))
        except ConnectionClosed:
            pass

    def forget(self, client, queue):
        if self.queues.get(client) is queue:
            del self.queues[client]
        while not queue.empty():  # wakes a task that waits for room
            queue.get_nowait()

    async def connection(self, client, port, queue):
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(self.address, port), 10)
        except (OSError, asyncio.TimeoutError) as error:
            self.forget(client, queue)
            reason = str(error) or "connect timed out"
            await self.send(wire.ERROR, client, port, reason.encode())
            return
        await self.send(wire.CONNECTED, client, port)
        sending = asyncio.create_task(self.towards_vm(writer, queue))
        try:
            while data := await reader.read(65536):
                await self.send(wire.DATA, client, 0, data)
            if self.queues.get(client) is queue:
                await self.send(wire.CLOSE, client)
        except OSError as error:
            if self.queues.get(client) is queue:
                await self.send(wire.ERROR, client, port, str(error).encode())
        finally:
            self.forget(client, queue)
            sending.cancel()
            writer.close()

    @staticmethod
    async def towards_vm(writer, queue):
        try:
            while (data := await queue.get()) is not None:
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()


async def run(args):
    runner = Runner(dict(target.split("=", 1) for target in args.target))
    host, port = listen_address(args.listen)
    async with serve(runner.handler, host, port, process_request=health, max_size=2**24) as server:
        await server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:8001")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=ADDRESS")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
