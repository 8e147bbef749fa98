#!/usr/bin/env python3
"""Runs our and their programs in all 16 combinations over the four roles of the chain.

matrix.py --ours target/release/examples
matrix.py --only ours,theirs,ours,theirs      # forward, host, runner, agent
"""

import argparse
import asyncio
import hashlib
import itertools
import os
import pathlib
import shutil
import sys
import tempfile
import time

from chain import (
    MIB,
    ROLES,
    SIDES,
    App,
    Chain,
    Failed,
    Service,
    argument_parser,
    check,
    refusing_socket,
    terminate_cleanly,
    within,
)


class Run:
    def __init__(self, chain, service, forward, args):
        self.chain = chain
        self.service = service
        self.forward = forward
        self.size = int(args.size * MIB)

    def app(self, command, size=0):
        return App.open(self.forward.port, command, size)

    async def idle(self, what, seconds=150):
        """The service has seen the end of every connection."""

        async def wait():
            while self.service.live:
                await asyncio.sleep(0.02)

        await within(seconds, what, wait())

    async def echo(self):
        app = await self.app(b"E")
        for size in (1, 2, 1000, 65536, 65537, MIB):
            await app.echo(os.urandom(size), f"echo of {size} bytes")
        app.close()
        await self.idle("the service's end of the connection")

    async def upload(self):
        data = memoryview(os.urandom(MIB) * -(-self.size // MIB))[: self.size]
        app = await self.app(b"U", self.size)
        await app.send(data, "upload")
        check(
            await app.exactly(32, "upload") == hashlib.sha256(data).digest(), "upload: wrong sha256"
        )
        app.close()

    async def download(self):
        app = await self.app(b"D", self.size)
        want = await app.exactly(32, "download")
        check(want == Service.digest(self.size), "download: the announced sha256 arrived wrong")
        check(await app.hash(self.size, "download") == want, "download: wrong sha256")
        app.close()

    async def both_at_once(self):
        data = memoryview(os.urandom(MIB) * -(-self.size // MIB))[: self.size]
        app = await self.app(b"B", self.size)
        down, _ = await asyncio.gather(app.hash(self.size, "down"), app.send(data, "up"))
        check(down == Service.digest(self.size), "down: wrong sha256")
        check(await app.exactly(32, "answer") == hashlib.sha256(data).digest(), "up: wrong sha256")
        app.close()
        await self.idle("the service's end of the connections")

    async def twenty_parallel(self):
        async def one(number):
            app = await self.app(b"E")
            for _ in range(4):
                data = bytes([number]) * 1000 + os.urandom(99_000)
                await app.echo(data, f"connection {number}")
            return app

        for app in await asyncio.gather(*(one(number) for number in range(20))):
            app.close()
        await self.idle("the service's end of 20 connections")

    async def disconnect(self):
        """If an app or service vanishes in mid-stream, the other end sees it; others continue."""
        neighbour = await self.app(b"E")
        await neighbour.echo(b"before")
        for way in ("reset", "close"):
            app = await self.app(b"S", 48 * MIB)
            await app.exactly(MIB, "stream")
            if way == "reset":
                app.vanish()
            else:
                app.close()
        app = await self.app(b"U", 64 * MIB)
        await app.send(bytes(MIB), "upload")
        app.vanish()
        await neighbour.echo(os.urandom(100_000), "neighbour of the vanished")
        app = await self.app(b"V", MIB)
        await app.exactly(MIB, "stream of a service that vanishes")
        await app.send(b"!")
        await within(20, "the app's end after the service vanished", app.end())
        app.close()
        await neighbour.echo(b"after", "neighbour of the vanished")
        neighbour.close()
        await self.idle("the service's end of vanished connections")
        await self.echo()

    async def refused(self):
        """Runs last. Two forwards of theirs would share ids, so the first one is ended."""
        check(await self.forward.stop(), f"{self.forward.name} did not end on SIGTERM")
        self.chain.programs.remove(self.forward)
        with refusing_socket() as sock:
            forward = await self.chain.forward(sock.getsockname()[1])
            for first in (b"", b"GET / HTTP/1.0\r\n\r\n", b""):
                end = await within(15, "the app's end", App.ending(forward.port, first))
                if self.chain.sides["forward"] == "ours":
                    check(end == "reset", f"the app saw an {end} in place of a reset")

    CHECKS = (echo, upload, download, both_at_once, twenty_parallel, disconnect, refused)


async def combination(sides, args, logs):
    """None, or the reason of the failure."""
    chain = Chain(sides, args.ours, logs)
    service = await Service().start()
    where = "start"
    try:
        await within(60, "start", chain.start())
        run = Run(chain, service, await chain.forward(service.port), args)
        for step in Run.CHECKS:
            where = step.__name__
            await within(args.timeout, where, step(run))
            chain.all_alive()
        where = "end"
        for program in list(chain.programs):
            check(await program.stop(), f"{program.name} did not end on SIGTERM")
        return None
    except Failed as error:
        return f"{where}: {error}"
    except Exception as error:  # of the driver itself, or an app's socket
        return f"{where}: {error!r}"
    finally:
        await chain.close()
        await service.close()
        if chain.programs:
            args.tails[sides] = chain.tails()


async def run(args):
    terminate_cleanly()
    logs = pathlib.Path(tempfile.mkdtemp(prefix="matrix-"))
    args.tails = {}
    passed = failed = 0
    for sides in args.only or itertools.product(SIDES, repeat=len(ROLES)):
        name = " ".join(f"{role}={side}" for role, side in zip(ROLES, sides))
        place = logs / "-".join(sides)
        start = time.monotonic()
        reason = await combination(sides, args, place)
        took = time.monotonic() - start
        if reason is None:
            passed += 1
            print(f"pass  {name}  {took:.1f} s", flush=True)
            shutil.rmtree(place)
        else:
            failed += 1
            print(f"FAIL  {name}  {took:.1f} s  {reason}", flush=True)
            print(args.tails.get(sides, ""))
            print(f"    logs: {place}", flush=True)
    if not failed:
        shutil.rmtree(logs)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def combination_argument(text):
    sides = tuple(text.split(","))
    if len(sides) != len(ROLES) or any(side not in SIDES for side in sides):
        raise argparse.ArgumentTypeError(f"four of ours or theirs, for {', '.join(ROLES)}")
    return sides


def main():
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--only",
        action="append",
        type=combination_argument,
        metavar="SIDES",
        help="one combination; may be repeated",
    )
    parser.add_argument(
        "--size", type=float, default=32, help="MiB of the bulk checks (%(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=180, help="seconds for each check (%(default)s)"
    )
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
