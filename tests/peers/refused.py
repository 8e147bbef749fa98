#!/usr/bin/env python3
"""A UDP port that nobody listens on, behind our forward, in chains of every mix.

    refused.py --ours target/release/examples

Our forward says one line, also behind parts that cannot say that a port is refused, and a service
that starts later is served.
"""

import asyncio
import itertools
import pathlib
import shutil
import socket
import sys
import tempfile

from chain import SIDES, Chain, Failed, argument_parser, check, free_port, terminate_cleanly
from chain import until, within

# The line comes after 5 s of silence at the latest.
SAID_WITHIN = 12
# Mixes that run at once; they mostly wait.
AT_ONCE = 4
LINE = "; this line comes once until port"


async def one(chain):
    await within(60, "start", chain.start())
    port = free_port(socket.SOCK_DGRAM)
    forward = await chain.forward(port, proto="udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        app.connect(("127.0.0.1", forward.port))
        app.setblocking(False)

        def lines():
            app.send(b"anybody?")
            return forward.err.read_text().count(LINE)

        await until(SAID_WITHIN, "a line about the port", lines, 0.3)
        await asyncio.sleep(1)
        check(lines() == 1, "more than one line about the port")
        await served(app, port)


async def served(app, port):
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", port))
        service.setblocking(False)

        async def serve():
            while True:
                data, peer = await loop.sock_recvfrom(service, 100)
                service.sendto(data, peer)

        serving = asyncio.create_task(serve())
        try:
            for _ in range(20):
                app.send(b"now")
                try:
                    return await asyncio.wait_for(loop.sock_recv(app, 100), 0.5)
                except (TimeoutError, asyncio.TimeoutError):
                    pass
            raise Failed("a service that started later is not served")
        finally:
            serving.cancel()


async def run(args):
    terminate_cleanly()
    logs = pathlib.Path(tempfile.mkdtemp(prefix="refused-"))
    places = asyncio.Semaphore(AT_ONCE)

    async def mix(sides):
        async with places:
            chain = Chain(("ours", *sides), args.ours, logs / "-".join(sides))
            try:
                await one(chain)
                print(f"ok    {', '.join(sides)}", flush=True)
                return 0
            except (Failed, OSError) as error:
                print(f"FAIL  {', '.join(sides)}: {error}\n{chain.tails()}", flush=True)
                return 1
            finally:
                await chain.close()

    try:
        mixes = itertools.product(SIDES, repeat=3)
        failed = sum(await asyncio.gather(*(mix(sides) for sides in mixes)))
    finally:
        shutil.rmtree(logs)
    print(f"{failed} of 8 mixes of host, runner and agent failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(run(argument_parser(__doc__).parse_args())))
