"""Checks tests/vectors.json with an independent decoder, written from PROTOCOL.md section 2."""

import json, struct, sys


def whole(text, repeat):
    return bytes.fromhex(text) + (
        bytes.fromhex(repeat["byte"]) * repeat["count"] if repeat else b""
    )


def judge(message):
    """Who accepts a message, its fields, and what it is encoded as again."""
    if len(message) < 8:
        return "neither", None, None
    kind, proto, cid, port = struct.unpack(">BBIH", message[:8])
    payload, fields = message[8:], (kind, proto, cid, port, message[8:])
    zero_id = cid == 0 and kind not in (6, 7, 9)
    if not 1 <= kind <= 9 or proto > 1 or zero_id or (kind == 8 and len(payload) != 4):
        return "neither", fields, None
    header = kind, proto if kind < 6 else 0, cid if kind < 9 else 0, port if kind in (1, 5) else 0
    again = struct.pack(">BBIH", *header) + (payload if kind in (3, 5, 6, 7, 8) else b"")
    text = kind != 5 or payload.decode("utf-8", "ignore").encode() == payload
    return "strict" if again == message and text else "lenient", fields, again


vectors = json.load(open(sys.argv[1] if len(sys.argv) > 1 else "tests/vectors.json"))
for v in vectors:
    verdict, fields, again = judge(whole(v["hex"], v.get("repeat")))
    f = v["fields"]
    stated = f and (f["type"], f["proto"], f["id"], f["port"], whole(f["payload"], v.get("repeat")))
    assert (verdict, fields) == (v["accepted"], stated), v["name"]
    assert verdict != "lenient" or again == whole(v["canonical"], v.get("canonical_repeat")), v[
        "name"
    ]
print(f"{len(vectors)} vectors agree")
