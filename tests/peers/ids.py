#!/usr/bin/env python3
"""Two of our clients on one container behind a deployed runner, which passes ids through.

    ids.py --ours target/release/examples             # 100 runs of 2 x 40 connections
    ids.py --quick                                    # 10 runs

Each run starts two new forwards, so that each draws a new first id. Every connection sends texts
that name it and must get its own texts back.
"""

import asyncio
import pathlib
import shutil
import sys
import tempfile

from chain import App, Chain, Failed, Service, argument_parser, terminate_cleanly, within

CONNECTIONS = 40
TURNS = 3


async def one_run(chain, service, number):
    """The wrong answers."""
    forwards = await asyncio.gather(chain.forward(service.port), chain.forward(service.port))
    wrong = []

    async def talk(forward, text):
        try:
            app = await App.open(forward.port, b"E")
            for turn in range(TURNS):
                await app.echo(f"<{text} turn {turn}>".encode().ljust(64, b".") * 16, text)
            app.close()
        except (Failed, OSError) as error:
            wrong.append(str(error))

    talks = [
        talk(forward, f"run {number} client {client} connection {connection}")
        for connection in range(CONNECTIONS)
        for client, forward in enumerate(forwards)
    ]
    try:
        await within(20, f"run {number}", asyncio.gather(*talks))
    except Failed as error:
        wrong.append(str(error))
    await asyncio.gather(*(forward.stop() for forward in forwards))
    for forward in forwards:
        chain.programs.remove(forward)
    return wrong


async def run(args):
    terminate_cleanly()
    logs = pathlib.Path(tempfile.mkdtemp(prefix="ids-"))
    chain = Chain(("ours", args.host, "theirs", args.agent), args.ours, logs)
    service = await Service().start()
    crossed = 0
    try:
        await within(60, "start", chain.start())
        for number in range(args.runs):
            wrong = await one_run(chain, service, number)
            if wrong:
                crossed += 1
                print(
                    f"FAIL  run {number}: {len(wrong)} of {2 * CONNECTIONS}, first: {wrong[0]}",
                    flush=True,
                )
    finally:
        await chain.close()
        await service.close()
        shutil.rmtree(logs)
    print(f"{args.runs} runs of 2 x {CONNECTIONS} connections, {crossed} with bytes of another")
    return 1 if crossed else 0


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--host", default="ours", choices=("ours", "theirs"))
    parser.add_argument("--agent", default="theirs", choices=("ours", "theirs"))
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="10 runs")
    args = parser.parse_args()
    if args.quick:
        args.runs = 10
    return asyncio.run(run(args))


if __name__ == "__main__":
    sys.exit(main())
