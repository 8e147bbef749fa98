"""Files without repeated content, and their digests."""

import hashlib
import random

from chain import MIB, check


def write(path, size, seed):
    """Fills a file with bytes that depend only on the seed."""
    made = random.Random(seed)
    with open(path, "wb") as file:
        while size > 0:
            file.write(made.randbytes(min(size, MIB)))
            size -= MIB
    path.chmod(0o644)
    return path


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same(path, other):
    check(
        path.stat().st_size == other.stat().st_size,
        f"{path.stat().st_size} bytes of {other.stat().st_size}",
    )
    check(sha256(path) == sha256(other), f"{path.name} differs in its bytes")


def rate(size, seconds):
    return f"{size / MIB / seconds:.0f} MiB/s"
