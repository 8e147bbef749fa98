#!/usr/bin/env python3
"""A relay for WebSockets that cuts, closes and refuses them on command.

    gate.py LISTEN_PORT TARGET_PORT CONTROL_PORT

A connection to the control port sends one command and gets one line:

cut           reset both sockets of every connection
close         end every WebSocket with code 1000 on both sides, at the end of a frame
refuse        answer new requests with 503
open          pass new requests on again
opens         the first binary message of each client so far, in hexadecimal
"""

import asyncio
import socket
import struct
import sys
import time

CLOSE_1000 = b"\x03\xe8"
FROM_SERVER = bytes([0x88, len(CLOSE_1000)]) + CLOSE_1000
FROM_CLIENT = bytes([0x88, 0x80 | len(CLOSE_1000), 0, 0, 0, 0]) + CLOSE_1000
UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
HEAD_MAX = 64 << 10
# After its closing frame a connection gets this long to end by itself.
GRACE = 1.0


class Frames:
    """Finds the ends of frames in a byte stream that begins with a HTTP head."""

    def __init__(self, capture=None):
        self.head = b""
        self.upgraded = False
        self.header = b""
        self.left = 0
        self.capture = capture
        self.captured = None

    def at_boundary(self):
        return self.upgraded and not self.header and not self.left

    def take(self, data, stop):
        """How many of these bytes to pass on: all, or those up to the end of a frame."""
        at = 0
        if not self.upgraded:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return len(data)
            at = len(data) - (len(self.head) - end - 4)
            self.upgraded = True
        while at < len(data):
            if self.left == 0:
                if stop and not self.header:
                    return at
                at = self.read_header(data, at)
            else:
                step = min(self.left, len(data) - at)
                self.note(data[at : at + step])
                self.left -= step
                at += step
        return at

    def read_header(self, data, at):
        while at < len(data):
            self.header += data[at : at + 1]
            at += 1
            if len(self.header) < 2:
                continue
            short = self.header[1] & 0x7F
            masked = 4 if self.header[1] & 0x80 else 0
            extra = {126: 2, 127: 8}.get(short, 0)
            if len(self.header) == 2 + extra + masked:
                length = int.from_bytes(self.header[2 : 2 + extra], "big") if extra else short
                self.begin(length)
                self.left = length
                self.header = b""
                return at
        return at

    def begin(self, length):
        wanted = self.capture and self.captured is None and self.header[0] & 0x0F == 2
        self.captured = (self.header[-4:], bytearray(), length) if wanted else self.captured

    def note(self, payload):
        if self.capture is None or self.captured is None:
            return
        key, got, length = self.captured
        got += payload
        if len(got) >= length:
            mask = (key * (length // 4 + 1))[:length]
            self.capture(bytes(a ^ b for a, b in zip(got, mask)))
            self.capture = None


class Leg(asyncio.Protocol):
    """One of the two sockets of a connection."""

    def __init__(self, gate, peer=None):
        self.gate = gate
        self.peer = peer
        self.client = peer is None  # the leg of who dialled the gate
        self.transport = None
        self.early = []
        self.frames = Frames(gate.opens.append if self.client else None)
        self.closing = self.closed = False

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=256 << 10)
        self.gate.legs.add(self)
        if self.client and not self.gate.refusing:
            self.dialling = asyncio.ensure_future(self.dial())

    async def dial(self):
        loop = asyncio.get_running_loop()
        try:
            _, self.peer = await loop.create_connection(
                lambda: Leg(self.gate, self), "127.0.0.1", self.gate.target
            )
        except OSError:
            self.transport.abort()
            return
        if self.transport.is_closing():
            self.peer.transport.abort()
            return
        for data in self.early:
            self.peer.transport.write(data)

    def data_received(self, data):
        if self.closed:
            return
        if self.client and self.peer is None and self.gate.refusing:
            self.frames.head += data
            if b"\r\n\r\n" in self.frames.head or len(self.frames.head) > HEAD_MAX:
                self.closed = True
                self.gate.refused += 1
                self.transport.write(UNAVAILABLE)
                self.transport.close()
            return
        count = self.frames.take(data, self.closing)
        if self.peer is None or self.peer.transport is None:
            self.early.append(data)
        elif not self.peer.transport.is_closing():
            self.peer.transport.write(data[:count])
        if self.closing and self.frames.at_boundary():
            self.inject()

    def close_softly(self):
        self.closing = True
        if self.frames.at_boundary():
            self.inject()

    def inject(self):
        """Ends what this leg's peer is sent with a closing frame."""
        self.closed = True
        other = self.peer and self.peer.transport
        if other and not other.is_closing():
            other.write(FROM_CLIENT if self.client else FROM_SERVER)
            other.write_eof()

    def eof_received(self):
        if self.closed:
            return False
        if self.peer and self.peer.transport:
            if not self.peer.transport.is_closing():
                self.peer.transport.write_eof()
        return True

    def connection_lost(self, error):
        self.gate.legs.discard(self)
        if self.peer and self.peer.transport and not self.peer.transport.is_closing():
            if error:
                self.peer.transport.abort()
            else:
                self.peer.transport.close()

    def pause_writing(self):
        if self.peer and self.peer.transport:
            self.peer.transport.pause_reading()

    def resume_writing(self):
        if self.peer and self.peer.transport and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def reset(self):
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Gate:
    def __init__(self, target):
        self.target = target
        self.legs = set()
        self.refusing = False
        self.refused = 0
        self.opens = []

    async def command(self, reader, writer):
        name = (await reader.readline()).decode().strip()
        if not name:  # somebody looks whether this port is open
            return writer.close()
        answer = getattr(self, f"do_{name}")()
        if asyncio.iscoroutine(answer):
            answer = await answer
        writer.write(f"{answer}\n".encode())
        return writer.close()

    def do_cut(self):
        legs = list(self.legs)
        for leg in legs:
            leg.reset()
        return len(legs) // 2

    async def do_close(self):
        legs = list(self.legs)
        for leg in legs:
            leg.close_softly()
        end = time.monotonic() + GRACE
        while self.legs & set(legs) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for leg in self.legs & set(legs):
            leg.transport.abort()
        return len(legs) // 2

    def do_refuse(self):
        self.refusing = True
        return self.refused

    def do_open(self):
        self.refusing = False
        return self.refused

    def do_opens(self):
        return " ".join(message.hex() for message in self.opens)


async def main(port, target, control):
    gate = Gate(target)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Leg(gate), "127.0.0.1", port)
    await asyncio.start_server(gate.command, "127.0.0.1", control)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:4])))
