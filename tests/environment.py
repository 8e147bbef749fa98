"""The environment in which checks start the programs, and ports for them."""

import itertools
import os

# As `HEEDED` of tests/support/src/program.rs.
SETTINGS = (
    "RUNNER_URL",
    "CONTAINER_ID",
    "RECONNECT_DELAY",
    "MAX_RECONNECT",
    "LOG_LEVEL",
    "TUNNEL_ENABLED",
    "RUST_LOG",
)


def unconfigured():
    """That of this process, without the variables that configure the programs."""
    return {
        key: value
        for key, value in os.environ.items()
        if key not in SETTINGS
        and not key.startswith("KOHAKURIVER_")
        and not key.lower().endswith("_proxy")
    }


# A process begins elsewhere than others that run beside it.
asked = itertools.count()


def next_port():
    """Another port each time. It may be in use.

    It is below those that systems give out, or another socket could have it before its user.
    """
    return 20_000 + (61 * os.getpid() + next(asked)) % 12_000
