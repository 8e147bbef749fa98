#!/usr/bin/env python3
"""Cuts the tunnels of real programs while connections and a transaction go through them.

    tests/services/install.sh
    cargo build --release --examples
    tests/resume/run.py

One line per check; the last line is the count. The exit code is 0 only if nothing failed, and 77 if
something is missing that a check needs.
"""

import argparse
import pathlib
import re
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "services"))

import cuts  # noqa: E402
import ends  # noqa: E402
import kept  # noqa: E402
from bench import Bench  # noqa: E402
from chain import Cannot, Chain, Place  # noqa: E402
from postgresql import Server  # noqa: E402

ROOT = HERE.parent.parent
CHECKS = {
    "host": cuts.host_killed,
    "agent-link": cuts.agent_cut,
    "both": cuts.both_cut,
    "stopped-host": cuts.host_stopped,
    "haproxy": cuts.balanced,
    "link": cuts.link_lost,
    "closed": cuts.closed_regularly,
    "stopped-forward": ends.client_stopped,
    "runner": ends.runner_restarted,
    "agent": ends.agent_restarted,
    "off": ends.turned_off,
    "killed-forward": ends.client_killed,
    "kept": kept.memory_returns,
    "idle": kept.idle_price,
    "bystander": kept.bystanders_live,
    "forged": kept.forged_changes_nothing,
}
LONG = {
    "closed-real-time": cuts.closed_at_full_scale,
    "stopped-forward-real-time": ends.client_stopped_for_long,
}


def run(name, options, database):
    place = Place()
    try:
        bench = Bench(name, place, Chain(place, options.programs), options.programs)
        bench.full = options.full
        bench.database = database
        bench.resumes = resumes(options.programs)
        try:
            (CHECKS | LONG)[name](bench)
        except Cannot:
            raise
        except Exception as error:
            bench.fail("start", error)
        if bench.failed:
            print("\n".join(place.tails()), flush=True)
        return bench
    finally:
        place.close()


def resumes(programs):
    """Whether the programs know of resumption."""
    done = subprocess.run([programs / "forward", "--help"], capture_output=True, check=False)
    return b"--resume-keep" in done.stdout


def in_turn(names, options):
    """Runs checks one after the other. Returns how many passed and failed, and what is missing."""
    passed = failed = 0
    missing = []
    place = Place()
    try:
        database = Server(place)
        for name in names:
            try:
                bench = run(name, options, database)
            except Cannot as reason:
                missing.append(f"{name}: {reason}")
                print(f"SKIP  {missing[-1]}", flush=True)
                continue
            passed += bench.passed
            failed += bench.failed
    except Cannot as reason:
        missing.append(f"all: {reason}")
        print(f"SKIP  {missing[-1]}", flush=True)
    finally:
        place.close()
    return passed, failed, missing


def beside(names, jobs):
    """Divides the checks among processes like this one. Most checks wait most of the time."""
    given = [part for part in sys.argv[1:] if part not in names and part != "--only"]
    running = []
    for job in range(jobs):
        mine = [part for name in names[job::jobs] for part in ("--only", name)]
        command = [sys.executable, __file__, *given, "--jobs", "1", *mine]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    passed = failed = 0
    missing = []
    try:
        for process in running:
            said, _ = process.communicate()
            lines = said.splitlines()
            print("\n".join(lines[:-1]), flush=True)
            counts = re.match(r"(\d+) passed, (\d+) failed", lines[-1] if lines else "")
            passed += int(counts[1]) if counts else 0
            failed += int(counts[2]) if counts else 1
            missing += [line[6:] for line in lines if line.startswith("SKIP  ")]
    finally:
        for process in running:
            process.terminate()
            process.wait()
    return passed, failed, missing


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--programs", type=pathlib.Path, default=ROOT / "target/release/examples", metavar="DIR"
    )
    parser.add_argument(
        "--only",
        choices=[*CHECKS, *LONG],
        action="append",
        metavar="NAME",
        help=", ".join([*CHECKS, *LONG]),
    )
    parser.add_argument(
        "--full", action="store_true", help="the times and numbers that are promised; 40 minutes"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="as many checks at once (%(default)s)"
    )
    options = parser.parse_args()
    options.programs = options.programs.resolve()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    names = options.only or list(CHECKS)
    jobs = min(options.jobs, len(names))
    passed, failed, missing = in_turn(names, options) if jobs < 2 else beside(names, jobs)
    told = f", NOT all were run: {'; '.join(missing)}" if missing else ""
    print(f"{passed} passed, {failed} failed{told}")
    if failed or not (passed or missing):
        return 1
    return 77 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
