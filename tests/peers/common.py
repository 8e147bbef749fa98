"""What the four programs share besides the wire: logging, and plain HTTP answers."""

import http
import logging
import os
import sys

LEVELS = {"trace": "DEBUG", "debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}


def set_up_log(name, level=None):
    """INFO by default, which writes one line for every frame, as deployed."""
    level = (level or os.environ.get("LOG_LEVEL") or "info").lower()
    logging.basicConfig(
        stream=sys.stderr,
        level=LEVELS.get(level, level.upper()),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("websockets").setLevel(logging.WARNING)
    return logging.getLogger(name)


def listen_address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]") or "0.0.0.0", int(port)


def health(connection, request):
    """Answers /healthz; anything else goes on to the WebSocket upgrade."""
    if request.path.split("?")[0] == "/healthz":
        return connection.respond(http.HTTPStatus.OK, "ok\n")
    return None
