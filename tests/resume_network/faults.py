#!/usr/bin/env python3
"""Plants each known fault of resumption in a copy of the code. The simulation must find every one.

faults.py                                   # without a fault it passes, with each one it fails
faults.py --only old_secret_dropped_at_once
faults.py --seeds 2000                      # more runs for each
"""

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPY = ROOT / "target/resume-faults"

MANIFEST = """\
[workspace]

[package]
name = "kohakuriver-tunnel"
version = "0.0.0"
edition = "2024"

[features]
default = ["std"]
std = ["bytes/std", "thiserror/std"]
codec = []
transport = []
mux = []

[dependencies]
bytes = { version = "1", default-features = false }
thiserror = { version = "2", default-features = false }

[lib]
doctest = false

# Optimised like a release, but built faster.
[profile.dev]
opt-level = 1
debug = false
"""

# Each replaces texts that are there exactly once.
FAULTS = {
    "count_read_before_the_cut": [
        (
            "tests/resume_network/keeper.rs",
            "        self.drop_transport(server);\n        let secret",
            "        let secret",
        ),
        (
            "tests/resume_network/keeper.rs",
            "        // If it has ended, END is for the new transport.\n",
            "        let opened = end.link.as_mut().unwrap().poll_output();\n"
            "        self.read(server);\n        self.drop_transport(server);\n"
            "        if let Some(opened) = opened {\n            let line = &mut"
            " self.transports[transport];\n            line.write(Party::Server, self.now,"
            " opened, &mut self.rng);\n        }\n        let end = &mut self.ends[server];\n",
        ),
    ],
    "late_open_honoured": [
        ("src/resume/side.rs", "if open.attempt <= self.last {", "if open.attempt == u32::MAX {")
    ],
    "old_secret_dropped_at_once": [
        ("src/resume/side.rs", "self.previous = Some(open.secret);", "self.previous = None;")
    ],
    "one_type_counted_by_one_end_alone": [
        (
            "src/resume/peer.rs",
            "        if counts(&message) {\n            self.received += 1;",
            "        if counts(&message) && message.first() != Some(&0x08) {\n"
            "            self.received += 1;",
        )
    ],
    "ring_that_blocks_control": [
        ("src/resume/link.rs", "true => Accepts::Control,", "true => Accepts::Nothing,")
    ],
    "written_out_before_anything_is_read": [
        (
            "tests/resume_network/drive.rs",
            "        let mut moved = false;\n        let sent = match self.peer(e)",
            "        let end = &self.ends[e];\n"
            "        let link = end.link.as_ref().filter(|_| end.is_attached());\n"
            "        let accepts = link.map(|link| link.accepts());\n"
            "        if accepts == Some(kohakuriver_tunnel::resume::Accepts::Nothing) {\n"
            "            return false;\n        }\n"
            "        let mut moved = false;\n        let sent = match self.peer(e)",
        )
    ],
    "ack_ahead_of_what_was_handed_up": [
        (
            "src/resume/link.rs",
            "            let received = self.received;\n            return Some(Message::Ack",
            "            let received = self.received + 1;\n            return Some(Message::Ack",
        )
    ],
    "replay_that_starts_one_message_late": [
        (
            "src/resume/ring.rs",
            "        self.next = self.base;\n    }\n\n    /// The next message to transmit again.",
            "        self.next = self.sent().min(self.base + 1);\n    }\n\n"
            "    /// The next message to transmit again.",
        )
    ],
    "new_tunnel_that_takes_a_place_at_once": [
        ("src/resume/side.rs", "            confirmed: false,\n", "            confirmed: true,\n")
    ],
    "client_that_counts_as_there_for_what_it_sent_before": [
        (
            "src/resume/peer.rs",
            "        self.confirm();\n        if counts(&message) {",
            "        if let Side::Server(server) = &mut self.side {\n"
            "            server.acknowledged();\n        }\n"
            "        self.confirm();\n        if counts(&message) {",
        )
    ],
    "secret_that_works_after_its_replacement": [
        ("src/resume/side.rs", "            self.previous = None;\n", "            let _ = ();\n")
    ],
}


def copy(edits):
    """The library and the simulation alone, so that they build in seconds."""
    for name in ("src", "tests"):
        shutil.rmtree(COPY / name, ignore_errors=True)
    for name in ("src", "tests/resume_network"):
        # Not the times of the files: a file that was edited and put back would not be built again.
        shutil.copytree(ROOT / name, COPY / name, copy_function=shutil.copyfile)
    for name in ("README.md", "Cargo.lock"):
        shutil.copyfile(ROOT / name, COPY / name)
    (COPY / "Cargo.toml").write_text(MANIFEST)
    for file, old, new in edits:
        path = COPY / file
        text = path.read_text()
        if text.count(old) != 1:
            sys.exit(f"{file} has this {text.count(old)} times, adapt the fault:\n{old}")
        path.write_text(text.replace(old, new))


def cargo(*words, seeds="1", timeout=None):
    """The exit code and all that was said."""
    command = ["cargo", *words, "--test", "resume_network"]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(COPY / "target"), "RUST_BACKTRACE": "0"}
    environment.pop("RESUME_SEED", None)
    environment["RESUME_SEEDS"] = seeds
    started = subprocess.Popen(
        command,
        cwd=COPY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with started:
        try:
            output = started.communicate(timeout=timeout)[0]
        except BaseException:
            # The test program too.
            os.killpg(started.pid, signal.SIGKILL)
            raise
    return started.returncode, output


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=["no_fault", *FAULTS], metavar="NAME")
    parser.add_argument("--seeds", default="500", help="runs for each (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=60, help="seconds for each fault (%(default)s)"
    )
    args = parser.parse_args()
    COPY.mkdir(parents=True, exist_ok=True)
    missed = 0
    for name, edits in {"no_fault": [], **FAULTS}.items():
        if args.only and name not in args.only:
            continue
        copy(edits)
        start = time.monotonic()
        status, output = cargo("test", "--no-run", "--quiet")
        if status:
            sys.exit(f"{name} does not build:\n{output[-3000:]}")
        built_at = time.monotonic()
        try:
            status, output = cargo("test", "--quiet", seeds=args.seeds, timeout=args.timeout)
            right = (status != 0) == bool(edits)
        except subprocess.TimeoutExpired:
            right, output = False, "out of time"
        missed += not right
        times = f"built in {built_at - start:.1f} s, ran {time.monotonic() - built_at:.1f} s"
        lines = [line for line in output.splitlines() if line.strip()]
        at = [n for n, line in enumerate(lines) if "panicked at" in line]
        found = lines[at[0] + 1][:60] if at else ""
        print(f"{'pass' if right else 'FAIL'}  {name}  {times}  {found}", flush=True)
        if not right:
            print("\n".join(lines[-20:]))
    print(f"{missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
