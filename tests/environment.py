"""The environment in which checks start the programs."""

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
