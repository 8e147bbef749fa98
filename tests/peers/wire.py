"""The message of the tunnel: an 8-byte big-endian header, then the payload."""

import struct

HEADER = struct.Struct("!BBIH")

CONNECT, CONNECTED, DATA, CLOSE, ERROR, PING, PONG = range(1, 8)
TCP, UDP = 0, 1

NAMES = {
    CONNECT: "CONNECT",
    CONNECTED: "CONNECTED",
    DATA: "DATA",
    CLOSE: "CLOSE",
    ERROR: "ERROR",
    PING: "PING",
    PONG: "PONG",
}


def pack(kind, proto, client, port=0, payload=b""):
    return HEADER.pack(kind, proto, client, port) + payload


def unpack(message):
    """(type, proto, client id, port, payload), or None when it is too short."""
    if len(message) < HEADER.size:
        return None
    return (*HEADER.unpack_from(message), message[HEADER.size :])


def describe(message):
    parts = unpack(message)
    if parts is None:
        return f"short message, {len(message)} bytes"
    kind, proto, client, port, payload = parts
    name = NAMES.get(kind, f"type {kind:#04x}")
    return f"{name} proto={proto} id={client} port={port} payload={len(payload)}"
