#!/usr/bin/env python3
"""Readers that pause: a big download whose app reads nothing for a while, in chains of every mix.

    pauses.py --ours target/release/examples          # 16 mixes; also 60 s if all four are ours
    pauses.py --quick                                 # fewer mixes and pauses: under two minutes
    pauses.py --only ours,theirs,ours,theirs --alone 3,18 --beside 3
    pauses.py --only ours,theirs,theirs,theirs --alone= --beside= --unanswered= --slow 60

The independent peers ping by their library's defaults: every 20 s, and 20 s later they give up. A
reader without neighbours must therefore survive 18 s in every mix. If all four programs are ours,
the tunnel is v2: any pause is allowed and delays no neighbour. The data is compared with the
service's checksum. With neighbours, a v1 reader may be cut, but only by a reset, because an end of
file would look like a complete file.

--unanswered has two neighbours that wait for nothing: one whose service does not answer what was
sent before the download, and an upload. They are no reason to cut the reader.

--slow has a lone reader that never pauses, and takes 150 kB/s for a while. A forward of ours
receives faster than that, so that the peers' pings arrive in time.
"""

import asyncio
import hashlib
import itertools
import pathlib
import shutil
import sys
import tempfile
import time

from chain import MIB, ROLES, SIDES, App, Chain, Failed, Service
from chain import argument_parser, terminate_cleanly, within
from matrix import combination_argument

OURS = ("ours",) * len(ROLES)
# Read before the pause, so that data is under way on every link when it begins.
BEFORE = MIB
# Bytes a second of a slow reader. Deployed peers ping behind the 6 MiB that two kernels hold.
SLOW_RATE = 150_000
# Between a neighbour's round trips, and between the pieces of an upload.
TURN = 0.02
# What was sent that long before a download began would have been answered: --v1-stall is 2 s.
UNANSWERED = 3
QUICK = [
    OURS,
    ("theirs",) * len(ROLES),
    ("ours", "theirs", "ours", "ours"),
    ("theirs", "ours", "ours", "ours"),
    ("ours", "ours", "theirs", "ours"),
    ("ours", "ours", "ours", "theirs"),
]


async def download(port, size, pause, what, slow=0):
    """'whole', or how the app saw the early end: 'eof' or 'reset'. Wrong bytes are an exception.

    The app reads at SLOW_RATE for the first `slow` seconds.
    """
    app = await App.open(port, b"D", size)
    try:
        want = await app.exactly(32, what)
        left, digest = size, hashlib.sha256()
        start = time.monotonic()
        while left:
            due = (size - left) / SLOW_RATE
            if due < slow:
                await asyncio.sleep(start + due - time.monotonic())
            if pause and size - left >= BEFORE:
                await asyncio.sleep(pause)  # the app's own buffer takes two MiB meanwhile
                pause = 0
            try:
                data = await app.reader.read(65536)
            except OSError:
                return "reset"
            if not data:
                return "eof"
            digest.update(data)
            left -= len(data)
        if digest.digest() != want:
            raise Failed(f"{what}: the bytes are not those of the service")
        return "whole"
    finally:
        app.close()


class Neighbour:
    """An app that sends and waits for each answer, on the tunnel of the reader that pauses."""

    def __init__(self, app):
        self.app = app
        self.worst = 0.0
        self.task = asyncio.create_task(self.talk())

    async def talk(self):
        while True:
            start = time.monotonic()
            await self.app.echo(b"x" * 64, "a neighbour's echo")
            self.worst = max(self.worst, time.monotonic() - start)
            await asyncio.sleep(TURN)

    async def end(self):
        """The worst round trip, and the failure if there was one."""
        await asyncio.sleep(1)
        self.task.cancel()
        ended = (await asyncio.gather(self.task, return_exceptions=True))[0]
        self.app.close()
        if isinstance(ended, Failed):
            raise ended
        return self.worst


async def alone(sides, forward, size, pause):
    """A reader without neighbours: no mix may cut it."""
    what = f"alone, {pause:g} s"
    end = await within(pause + 120, what, download(forward.port, size, pause, what))
    if end != "whole":
        raise Failed(f"{what}: {end}")
    return f"{pause:g} s whole"


async def slowly(sides, forward, size, seconds):
    """A lone reader that is slow and does not pause. A deployed forward may cut it."""
    what = f"slow, {seconds:g} s"
    end = await within(seconds + 120, what, download(forward.port, size, 0, what, seconds))
    if sides[0] == "ours" and end != "whole":
        raise Failed(f"{what}: {end}")
    return f"{seconds:g} s {end}"


async def beside(sides, forward, size, pause):
    """A reader with two neighbours. In v1 it may be cut."""
    what = f"beside others, {pause:g} s"
    neighbours = [Neighbour(await App.open(forward.port, b"E")) for _ in range(2)]
    try:
        end = await within(pause + 120, what, download(forward.port, size, pause, what))
    finally:
        worst = [await neighbour.end() for neighbour in neighbours]
    # A deployed client ends every connection in good order.
    if end == "eof" and sides[0] == "ours":
        raise Failed(f"{what}: an end of file in place of a reset")
    if sides == OURS and end != "whole":
        raise Failed(f"{what}: {end} in v2")
    return f"{pause:g} s {end} (neighbours waited {max(worst):.2f} s)"


async def beside_unanswered(sides, forward, size, pause):
    """A reader beside neighbours that wait for nothing: no mix may cut any of them."""
    what = f"beside unanswered ones, {pause:g} s"
    idle, upload = [await App.open(forward.port, b"N") for _ in range(2)]

    async def send():
        while True:
            await upload.send(b"u" * 4096, "an upload")
            await asyncio.sleep(TURN)

    idle.writer.write(b"hello")
    sender = asyncio.create_task(send())
    await asyncio.sleep(UNANSWERED)
    try:
        end = await within(pause + 120, what, download(forward.port, size, pause, what))
        if end != "whole":
            raise Failed(f"{what}: {end}")
        if sender.done():
            await sender
        for app in idle, upload:
            if app.reader.at_eof() or app.reader.exception():
                raise Failed(f"{what}: a neighbour was cut")
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        idle.close()
        upload.close()
    return f"{pause:g} s {end}"


async def mix(sides, args, logs):
    """What happened, and whether all of it is allowed."""
    chain = Chain(sides, args.ours, logs)
    service = await Service().start()
    told = {"alone": [], "slow": [], "beside others": [], "beside unanswered ones": []}
    failures = []
    try:
        await within(60, "start", chain.start())
        more = [60] if sides == OURS and not args.quick else []
        for kind, look, pauses in (
            ("alone", alone, args.alone + more),
            ("slow", slowly, args.slow),
            ("beside others", beside, args.beside + more),
            ("beside unanswered ones", beside_unanswered, args.unanswered + more),
        ):
            for pause in pauses:
                # A forward for each, so that the end of one does not affect the next.
                forward = await chain.forward(service.port)
                try:
                    told[kind].append(await look(sides, forward, int(args.size * MIB), pause))
                except (Failed, OSError) as error:
                    failures.append(str(error))
                await forward.stop()
                chain.programs.remove(forward)
        chain.all_alive()
    except (Failed, OSError) as error:
        failures.append(str(error))
    finally:
        await chain.close()
        await service.close()
    told = [f"{kind} {', '.join(parts)}" for kind, parts in told.items() if parts]
    return "; ".join(told), failures


async def run(args):
    terminate_cleanly()
    logs = pathlib.Path(tempfile.mkdtemp(prefix="pauses-"))
    places = asyncio.Semaphore(args.at_once)
    failed = []

    async def one(sides):
        async with places:
            place = logs / "-".join(sides)
            start = time.monotonic()
            told, failures = await mix(sides, args, place)
            name = " ".join(f"{role}={side}" for role, side in zip(ROLES, sides))
            took = time.monotonic() - start
            print(f"{'FAIL' if failures else 'pass'}  {name}  {took:.0f} s  {told}", flush=True)
            for failure in failures:
                print(f"      {failure}", flush=True)
            if failures:
                failed.append(sides)
                print(f"      logs: {place}", flush=True)
            else:
                shutil.rmtree(place)

    mixes = args.only or (
        QUICK if args.quick else list(itertools.product(SIDES, repeat=len(ROLES)))
    )
    await asyncio.gather(*(one(sides) for sides in mixes))
    if not failed:
        shutil.rmtree(logs)
    print(f"{len(mixes) - len(failed)} mixes passed, {len(failed)} failed")
    return 1 if failed else 0


def seconds(text):
    return [float(part) for part in text.split(",") if part]


def main():
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--only",
        action="append",
        type=combination_argument,
        metavar="SIDES",
        help="one mix; may be repeated",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="six mixes, 3 and 18 s alone, 3 s beside others, 6 s beside unanswered ones, 24 MiB",
    )
    parser.add_argument(
        "--alone", type=seconds, metavar="SECONDS", help="pauses of a lone reader (1,3,10,18)"
    )
    parser.add_argument(
        "--beside", type=seconds, metavar="SECONDS", help="pauses beside others (1,3,10,18)"
    )
    parser.add_argument(
        "--unanswered",
        type=seconds,
        metavar="SECONDS",
        help="pauses beside others that wait for nothing (3,10)",
    )
    parser.add_argument(
        "--slow", type=seconds, default=[], metavar="SECONDS", help="slow lone readers (none)"
    )
    parser.add_argument("--size", type=float, metavar="MIB", help="MiB of each download (64)")
    parser.add_argument("--at-once", type=int, default=8, help="mixes at a time (%(default)s)")
    args = parser.parse_args()
    if args.alone is None:
        args.alone = [3, 18] if args.quick else [1, 3, 10, 18]
    if args.beside is None:
        args.beside = [3] if args.quick else [1, 3, 10, 18]
    if args.unanswered is None:
        args.unanswered = [6] if args.quick else [3, 10]
    args.size = args.size or (24 if args.quick else 64)
    return asyncio.run(run(args))


if __name__ == "__main__":
    sys.exit(main())
