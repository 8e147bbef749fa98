#!/usr/bin/env python3
"""The deployed agent: runs inside the container and dials its services on 127.0.0.1."""

import argparse
import asyncio
import os
import socket

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

import wire
from common import set_up_log

QUEUE = 256  # messages of one connection
LOOPBACK = "127.0.0.1"


def leave_nagle_on(transport):
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


class Agent:
    def __init__(self, ws):
        self.ws = ws
        self.queues = {}  # of the live ids
        self.tasks = set()

    def spawn(self, coroutine):
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def run(self):
        try:
            async for message in self.ws:
                if isinstance(message, str):
                    log.warning("text ignored")
                    continue
                parts = wire.unpack(message)
                if (
                    parts is None
                    or parts[0] not in wire.NAMES
                    or parts[1] not in (wire.TCP, wire.UDP)
                ):
                    log.warning("ignored: %s", wire.describe(message))
                    continue
                log.info("<- %s", wire.describe(message))
                await self.take(*parts)
        finally:
            for task in list(self.tasks):
                task.cancel()

    async def take(self, kind, proto, client, port, payload):
        if kind == wire.CONNECT:
            if client in self.queues:
                log.warning("second CONNECT on id %d ignored", client)
                return
            queue = self.queues[client] = asyncio.Queue(QUEUE)
            if proto == wire.UDP:
                self.spawn(self.datagrams(client, port, queue))
            else:
                self.spawn(self.stream(client, port, queue))
        elif kind == wire.DATA:
            if queue := self.queues.get(client):
                await queue.put(payload)  # full: the WebSocket is not read until there is room
        elif kind == wire.CLOSE:
            if queue := self.queues.pop(client, None):
                # The id is free for a new CONNECT. The service may go on sending on it.
                await queue.put(None)
        elif kind == wire.PING:
            await self.send(wire.PONG, proto, client)

    async def send(self, kind, proto, client, payload=b""):
        message = wire.pack(kind, proto, client, 0, payload)
        log.info("-> %s", wire.describe(message))
        await self.ws.send(message)

    def forget(self, client, queue):
        if self.queues.get(client) is queue:
            del self.queues[client]
        while not queue.empty():  # wakes a task that waits for room
            queue.get_nowait()

    async def stream(self, client, port, queue):
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError as error:
            self.forget(client, queue)
            await self.send(wire.ERROR, wire.TCP, client, str(error).encode())
            return
        leave_nagle_on(writer.transport)
        writing = None
        try:
            await self.send(wire.CONNECTED, wire.TCP, client)
            writing = self.spawn(self.towards_service(client, writer, queue))
            try:
                while data := await reader.read(65536):
                    await self.send(wire.DATA, wire.TCP, client, data)
            except OSError as error:
                log.info("id %d: %s", client, error)
            await self.send(wire.CLOSE, wire.TCP, client)
            await writing  # what still arrives for the id is still written
        except ConnectionClosed:
            pass
        finally:
            if writing:
                writing.cancel()
            writer.close()

    async def towards_service(self, client, writer, queue):
        try:
            while (data := await queue.get()) is not None:
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError as error:
            log.info("id %d: %s", client, error)
            self.forget(client, queue)

    async def datagrams(self, client, port, queue):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect((LOOPBACK, port))
        loop = asyncio.get_running_loop()

        async def towards_service():
            while (data := await queue.get()) is not None:
                sock.send(data)

        await self.send(wire.CONNECTED, wire.UDP, client)
        writing = self.spawn(towards_service())
        try:
            # Continues after CLOSE: only an error ends it, so every peer leaves a socket behind.
            while True:
                await self.send(wire.DATA, wire.UDP, client, await loop.sock_recv(sock, 65536))
        except OSError as error:  # one ICMP refusal is enough
            log.info("id %d: %s", client, error)
            self.forget(client, queue)
            await self.send(wire.CLOSE, wire.UDP, client)
        except ConnectionClosed:
            pass
        finally:
            writing.cancel()
            sock.close()


async def run(args):
    uri = f"{args.runner_url.rstrip('/')}/ws/tunnel/{args.container_id}"
    attempts = 0
    while True:
        try:
            # Stricter than the deployed agent: this one offers deflate.
            async with connect(uri, proxy=None, ping_interval=None, max_size=2**26) as ws:
                leave_nagle_on(ws.transport)
                log.info("registered at %s", uri)
                attempts = 0
                await Agent(ws).run()
                log.warning("the runner closed the connection")
        except (OSError, InvalidHandshake, ConnectionClosed, asyncio.TimeoutError) as error:
            log.warning("%r", error)
        attempts += 1
        if args.max_reconnect and attempts > args.max_reconnect:
            return 1
        await asyncio.sleep(args.reconnect_delay)  # always the same, no jitter


def main():
    global log
    env = os.environ
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runner-url", default=env.get("RUNNER_URL") or env.get("KOHAKURIVER_TUNNEL_URL")
    )
    parser.add_argument(
        "--container-id", default=env.get("CONTAINER_ID") or env.get("KOHAKURIVER_CONTAINER_ID")
    )
    parser.add_argument("--reconnect-delay", type=float, default=env.get("RECONNECT_DELAY", 5))
    parser.add_argument("--max-reconnect", type=int, default=env.get("MAX_RECONNECT", 0))
    parser.add_argument("--log-level", default=env.get("LOG_LEVEL"))
    args = parser.parse_args()
    if not args.runner_url or not args.container_id:
        parser.error("--runner-url and --container-id are required")
    log = set_up_log("agent", args.log_level)
    return asyncio.run(run(args))


if __name__ == "__main__":
    raise SystemExit(main())
