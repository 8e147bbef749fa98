#!/usr/bin/env python3
"""The deployed host: finds the runner of a task and passes messages between client and runner."""

import argparse
import asyncio
import re
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake

import wire
from common import health, listen_address, set_up_log

log = set_up_log("host")
ROUTE = re.compile(r"/ws/forward/([^/]+)/(\d+)")


async def refuse(ws, code, reason):
    log.warning("refused: %s", reason)
    await ws.send(f"Error: {reason}")
    await ws.close(code, reason[:100])


async def relay(source, sink, way):
    async for message in source:
        await sink.send(message)
        if isinstance(message, str):
            # A text in mid-session is passed on and ends the session.
            log.error("%s: text in mid-session", way)
            return
        log.info("%s %s", way, wire.describe(message))


async def forward(tasks, ws):
    url = urlsplit(ws.request.path)
    route = ROUTE.fullmatch(url.path)
    if route is None:
        await ws.close(1008, "no such route")
        return
    task, port = route.groups()
    proto = parse_qs(url.query).get("proto", ["tcp"])[0]
    if task not in tasks:
        await refuse(ws, 1008, f"Task {task} not found or not running")
        return
    container, runner_url = tasks[task]
    uri = f"{runner_url}/ws/forward/{container}/{port}?proto={proto}"
    try:
        # Drops the client's headers. The library's defaults: 1 MiB, deflate, pings.
        runner = await connect(uri, proxy=None)
    except (OSError, InvalidHandshake, asyncio.TimeoutError) as error:
        await refuse(ws, 1011, f"runner unreachable: {error}")
        return
    async with runner:
        try:
            text = await asyncio.wait_for(runner.recv(), 10)
        except (asyncio.TimeoutError, ConnectionClosed) as error:
            await refuse(ws, 1011, f"runner did not answer: {error!r}")
            return
        await ws.send(text)
        if text != "CONNECTED":
            await ws.close(1011, "the runner refused")
            return
        ways = [
            asyncio.create_task(relay(ws, runner, "client -> runner")),
            asyncio.create_task(relay(runner, ws, "runner -> client")),
        ]
        done, pending = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in pending:
            way.cancel()
        for way in done:
            if way.exception() is not None:
                log.warning("session of task %s: %r", task, way.exception())


async def run(args):
    tasks = {}
    for entry in args.task:
        task, _, place = entry.partition("=")
        container, _, url = place.partition("@")
        tasks[task] = (container, re.sub("^http", "ws", url).rstrip("/"))

    async def handler(ws):
        try:
            await forward(tasks, ws)
        except ConnectionClosed:
            pass

    host, port = listen_address(args.listen)
    async with serve(handler, host, port, process_request=health, max_size=2**24) as server:
        await server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:8000")
    parser.add_argument("--task", action="append", default=[], metavar="ID=CONTAINER@URL")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
