"""Checks tests/vectors.json and tests/resume_vectors.json with independent decoders, written from
PROTOCOL.md sections 2 and 5.10."""

import json, struct, sys, unicodedata


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


def shown(text):
    """A text as a reader is shown it (section 7): at most 1,024 bytes, without what is harmful."""
    turns = {0x61C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x2070)}
    text = text[:1024].decode("utf-8", "replace")
    return "".join(
        " " if unicodedata.category(c) == "Cc" or ord(c) in turns else c for c in text
    )


FIELDS = {
    10: (">Q16sIQII", "tunnel secret attempt received keep ring"),
    11: (">QQ16sQII", "instance tunnel secret received keep ring"),
    12: (">Q", "received"),
}


def judge_layer(message):
    """The fields of a message of the layer, and what it is encoded as again."""
    kind = message[0]
    if len(message) < 8:
        return None, None
    port, payload = struct.unpack(">H", message[6:8])[0], message[8:]
    if kind == 13:
        code, text = port if port <= 10 else 65535, shown(payload)
        again = struct.pack(">BBIH", kind, 0, 0, code) + text.encode()
        return {"type": kind, "code": code, "text": text}, again
    form, names = FIELDS[kind]
    if len(payload) != struct.calcsize(form):
        return None, None
    values = [v.hex() if isinstance(v, bytes) else v for v in struct.unpack(form, payload)]
    again = struct.pack(">BBIH", kind, 0, 0, 0) + payload
    return {"type": kind, **dict(zip(names.split(), values))}, again


vectors = json.load(open("tests/resume_vectors.json"))
for v in vectors:
    message = whole(v["hex"], v.get("repeat"))
    layer = message[:1] in (b"\x0a", b"\x0b", b"\x0c", b"\x0d")
    counts = not layer and message[:2] != b"\x03\x01"
    fields, again = judge_layer(message) if layer else (None, None)
    assert (counts, layer, fields) == (v["counts"], v["layer"], v["message"]), v["name"]
    stated = bytes.fromhex(v["canonical"]) if "canonical" in v else again and message
    assert again == stated and v["why"], v["name"]
assert len({v["name"] for v in vectors}) == len(vectors)
print(f"{len(vectors)} vectors of resumption agree")
