#!/usr/bin/env python3
"""Runs the Autobahn test suite against the programs' WebSocket, as server and as client.

The suite is the PyPI package autobahntestsuite 0.8.2, for Python 2.7 (variable PYTHON2, default
python2.7). It may be in a folder of its own (variable AUTOBAHN):

    python2.7 -m pip install --target FOLDER autobahntestsuite==0.8.2

Exits with 1 when a case fails that is not in KNOWN, with 77 when the suite is missing.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

# Failed on purpose: an empty fragment in the middle of a message ends the connection.
KNOWN = {"6.1.2"}
PASSES = {"OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"}
# Compression is not negotiated.
EXCLUDED = ["12.*", "13.*"]
START = """
import os, site
site.addsitedir(os.environ.get("AUTOBAHN", "."))
from autobahntestsuite.wstest import run
"""
ADDRESS = ("127.0.0.1", 19001)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--echo",
        type=os.path.abspath,
        default="target/release/examples/echo",
        help="the built example `echo`",
    )
    arguments.add_argument("--cases", nargs="*", default=["*"])
    arguments.add_argument("--probe", action="store_true", help="only look for the suite")
    arguments = arguments.parse_args()
    suite = [os.environ.get("PYTHON2", "python2.7"), "-c", START + "run()"]
    try:
        found = subprocess.run([suite[0], "-c", START], capture_output=True)
    except FileNotFoundError:
        found = None
    if found is None or found.returncode != 0:
        print("no Python 2.7 with autobahntestsuite 0.8.2")
        return 77
    if arguments.probe:
        return 0
    failures = 0
    for role, mode in (("server", "fuzzingclient"), ("client", "fuzzingserver")):
        with tempfile.TemporaryDirectory() as folder:
            failures += run(suite, mode, role, arguments, pathlib.Path(folder))
    return 1 if failures else 0


def run(suite, mode, role, arguments, folder):
    address = "%s:%d" % ADDRESS
    spec = {
        "outdir": str(folder),
        "cases": arguments.cases,
        "exclude-cases": EXCLUDED,
        "exclude-agent-cases": {},
    }
    if mode == "fuzzingclient":
        spec["servers"] = [{"agent": "ours", "url": f"ws://{address}"}]
    else:
        spec.update(url=f"ws://{address}", options={"failByDrop": False})
    (folder / "spec.json").write_text(json.dumps(spec))
    command = suite + ["-m", mode, "-s", str(folder / "spec.json")]
    server = [arguments.echo, "server", address]
    client = [arguments.echo, "client", address, "ours"]
    first, second = (server, command) if mode == "fuzzingclient" else (command, client)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    background = subprocess.Popen(first, **quiet)
    try:
        wait_for(ADDRESS)
        subprocess.run(second, check=True, timeout=1800, **quiet)
    finally:
        background.kill()
        background.wait()
    return judge(role, json.loads((folder / "index.json").read_text())["ours"])


def wait_for(address):
    for _ in range(200):
        try:
            socket.create_connection(address).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("nothing listens at %s:%d" % address)


def judge(role, results):
    counts = {}
    failed = []
    for case, result in results.items():
        verdict = result["behavior"]
        if result["behaviorClose"] not in PASSES:
            verdict = f"{verdict}, close {result['behaviorClose']}"
        counts[verdict] = counts.get(verdict, 0) + 1
        if verdict not in PASSES and case not in KNOWN:
            failed.append(f"{case}: {verdict}")
    print(f"as {role}: {len(results)} cases, {counts}")
    for line in sorted(failed):
        print("  " + line)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
