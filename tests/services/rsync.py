"""An rsync daemon: a tree is pushed, pulled and brought up to date."""

import os
import time

from chain import MIB, check, find, free_port, other_user
from files import rate, sha256, write

BIG = 64 * MIB
FILES = 600

CONFIGURATION = """
use chroot = no
pid file = {folder}/rsyncd.pid
log file = /dev/stderr
[tree]
path = {folder}/module
read only = no
munge symlinks = no
"""


def check_all(bench):
    place = bench.place
    rsync = find("rsync")
    user = other_user("nobody")
    folder = place.subfolder("rsyncd", user)
    module = place.subfolder("rsyncd/module", user)
    configuration = folder / "rsyncd.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder))
    own = free_port()
    command = [
        rsync,
        "--daemon",
        "--no-detach",
        f"--config={configuration}",
        f"--port={own}",
        "--address=127.0.0.1",
    ]
    place.start("rsyncd", command, user=user).listens(own)

    tree = place.subfolder("tree")
    write(tree / "big", BIG, 0)
    for number in range(FILES):
        part = tree / f"part-{number % 12}" / f"of-{number % 7}"
        part.mkdir(parents=True, exist_ok=True)
        write(part / f"file {number}", number * 37 % 40_000, number)
    (tree / "empty").mkdir()
    (tree / "link").symlink_to("big")
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)

    port = bench.chain.start().forward(own)
    url = f"rsync://127.0.0.1:{port}/tree/"

    def sync(source, target):
        start = time.monotonic()
        place.run(
            [rsync, "--recursive", "--links", "--perms", "--times", "--delete", source, target]
        )
        return time.monotonic() - start

    with bench.check(f"a tree of {FILES} files and one of 64 MiB is pushed") as figures:
        figures.append(rate(BIG, sync(f"{tree}/", url)))
        alike(tree, module)

    with bench.check("the same is pulled") as figures:
        pulled = place.subfolder("pulled")
        figures.append(rate(BIG, sync(url, f"{pulled}/")))
        alike(tree, pulled)

    with bench.check("changes are pushed as differences"):
        with open(tree / "big", "r+b") as file:
            for at in range(0, BIG, 8 * MIB):
                file.seek(at)
                file.write(b"changed")
        (tree / "new").write_text("new")
        (tree / "run").unlink()
        sync(f"{tree}/", url)
        alike(tree, module)

    with bench.check("3 pulls at once"):
        targets = [place.subfolder(f"pulled-{number}") for number in range(3)]
        place.run_all([[rsync, "-rlpt", url, f"{target}/"] for target in targets])
        for target in targets:
            alike(tree, target)


def alike(tree, other):
    wanted, got = contents(tree), contents(other)
    check(wanted == got, f"these differ: {sorted(set(wanted.items()) ^ set(got.items()))[:3]}")


def contents(tree):
    """Each path and its content."""
    found = {}
    for folder, folders, files in os.walk(tree):
        for name in folders + files:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                what = ("link", os.readlink(path))
            elif os.path.isdir(path):
                what = ("folder", oct(os.stat(path).st_mode))
            else:
                what = (sha256(path), oct(os.stat(path).st_mode), int(os.stat(path).st_mtime))
            found[os.path.relpath(path, tree)] = what
    return found
