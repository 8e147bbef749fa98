#!/usr/bin/env python3
"""The deployed command-line client: forwards a local TCP port to a port of a task."""

import argparse
import asyncio
import itertools
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

import wire
from common import set_up_log

log = set_up_log("cli")


def send_log(message):
    log.info("-> %s", wire.describe(message))
    return message


class Forward:
    def __init__(self, ws, port):
        self.ws = ws
        self.port = port
        self.ids = itertools.count(1)  # in every process
        self.writers = {}

    async def accept(self, reader, writer):
        client = next(self.ids)
        self.writers[client] = writer
        try:
            # Optimistic: DATA follows at once, without waiting for CONNECTED.
            await self.ws.send(send_log(wire.pack(wire.CONNECT, wire.TCP, client, self.port)))
            while data := await reader.read(65536):
                await self.ws.send(send_log(wire.pack(wire.DATA, wire.TCP, client, 0, data)))
        except OSError as error:
            log.info("id %d: %s", client, error)
        except ConnectionClosed:
            pass
        finally:
            # Local EOF of one direction ends both.
            self.writers.pop(client, None)
            writer.close()
            try:
                await self.ws.send(send_log(wire.pack(wire.CLOSE, wire.TCP, client)))
            except ConnectionClosed:
                pass

    async def receive(self):
        async for message in self.ws:
            if isinstance(message, str):
                log.warning("unexpected text: %s", message)
                continue
            log.info("<- %s", wire.describe(message))
            parts = wire.unpack(message)
            if parts is None:
                continue
            kind, _, client, _, payload = parts
            writer = self.writers.get(client)
            if writer is None:
                continue
            if kind == wire.DATA:
                try:
                    writer.write(payload)
                    await writer.drain()  # one app that pauses holds up all
                except OSError as error:
                    log.info("id %d: %s", client, error)
                    self.writers.pop(client, None)
            elif kind in (wire.CLOSE, wire.ERROR):
                if kind == wire.ERROR:
                    log.error("id %d: %s", client, payload.decode(errors="replace"))
                self.writers.pop(client, None)
                writer.close()


async def run(args):
    uri = f"{args.host.rstrip('/')}/ws/forward/{args.task_id}/{args.remote_port}?proto={args.proto}"
    try:
        # The library's defaults: offers deflate, refuses messages over 1 MiB, pings every 20 s.
        async with connect(uri, proxy=None) as ws:
            text = await asyncio.wait_for(ws.recv(), 10)
            if text != "CONNECTED":
                print(text, file=sys.stderr, flush=True)
                return
            if args.proto == "udp":
                raise NotImplementedError("the UDP mode of the deployed client crashes")
            forward = Forward(ws, args.remote_port)
            server = await asyncio.start_server(forward.accept, args.local_host, args.local_port)
            port = server.sockets[0].getsockname()[1]
            print(
                f"Listening on {args.local_host}:{port} ({args.proto}) "
                f"-> task {args.task_id} port {args.remote_port}",
                flush=True,
            )
            await forward.receive()
            print("the tunnel ended", file=sys.stderr, flush=True)
    except (OSError, InvalidHandshake, ConnectionClosed, asyncio.TimeoutError) as error:
        print(f"the tunnel failed: {error!r}", file=sys.stderr, flush=True)
    # Exit code 0 in any case, and no attempt to reconnect.


def main():
    host = os.environ.get("KOHAKURIVER_HOST", "localhost")
    port = os.environ.get("KOHAKURIVER_PORT", "8000")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task_id")
    parser.add_argument("remote_port", type=int)
    parser.add_argument("--local-port", type=int)
    parser.add_argument("--local-host", default="127.0.0.1")
    parser.add_argument("--proto", choices=["tcp", "udp"], default="tcp")
    parser.add_argument("--host", default=f"ws://{host}:{port}")
    args = parser.parse_args()
    if args.local_port is None:
        args.local_port = args.remote_port
    asyncio.run(run(args))
    sys.stdout.flush()
    os._exit(0)  # handlers of app connections are not waited for


if __name__ == "__main__":
    main()
