#!/usr/bin/env python3
"""Runs real programs through the chain forward -> host -> runner -> agent.

    tests/services/install.sh
    cargo build --release --examples
    tests/services/run.py

One line per check; the last line is the count. The exit code is 0 only if nothing failed, and 77 if
a required program is missing.
"""

import argparse
import pathlib
import signal
import sys

import alone
import browser
import dns
import netcat
import nginx
import postgresql
import rsync
from bench import Bench
from chain import Cannot, Chain, Place

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SERVICES = {
    "postgresql": postgresql.check_all,
    "nginx": nginx.check_all,
    "direct": nginx.check_direct,
    "dns": dns.check_all,
    "browser": browser.check_all,
    "demo": browser.check_demo,
    "rsync": rsync.check_all,
    "netcat": netcat.check_all,
    "agent": alone.check_all,
}


def run(name, options):
    place = Place()
    try:
        chain = Chain(place, options.programs, options.agent, options.empty_root)
        bench = Bench(name, place, chain, options.programs)
        try:
            SERVICES[name](bench)
        except Cannot:
            raise
        except Exception as error:
            bench.fail("start", error)
        if bench.failed:
            print("\n".join(place.tails()), flush=True)
        return bench
    finally:
        place.close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--programs", type=pathlib.Path, default=ROOT / "target/release/examples", metavar="DIR"
    )
    parser.add_argument(
        "--only", choices=SERVICES, action="append", metavar="NAME", help=", ".join(SERVICES)
    )
    parser.add_argument(
        "--agent", type=pathlib.Path, metavar="FILE", help="another agent than that of the folder"
    )
    parser.add_argument(
        "--empty-root", action="store_true", help="the agent runs with an empty folder as its root"
    )
    options = parser.parse_args()
    options.programs = options.programs.resolve()
    options.agent = options.agent and options.agent.resolve()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    passed = failed = 0
    missing = None
    for name in options.only or SERVICES:
        try:
            bench = run(name, options)
        except Cannot as reason:
            missing = f"{name}: {reason}"
            print(f"SKIP  {missing}", flush=True)
            continue
        passed += bench.passed
        failed += bench.failed
    told = f", not all were run: {missing}" if missing else ""
    print(f"{passed} passed, {failed} failed{told}")
    if failed or not (passed or missing):
        return 1
    return 77 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
