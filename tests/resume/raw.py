"""A WebSocket client that speaks the layer of resumption by hand (PROTOCOL.md section 5.10)."""

import base64
import collections
import os
import socket
import struct

from chain import Failed, check

V2 = "kohakuriver-tunnel.v2"
RESUME = f"{V2}.resume"
OFFER = f"{RESUME}, {V2}"
CONNECT, PING, PONG = 0x01, 0x06, 0x07
OPEN, OPENED, ACK, END = 0x0A, 0x0B, 0x0C, 0x0D
HEADER = struct.Struct("!BBIH")

# The payloads of OPEN and OPENED.
Open = collections.namedtuple("Open", "tunnel secret attempt received keep ring")
OPEN_PAYLOAD = struct.Struct("!Q16sIQII")
Opened = collections.namedtuple("Opened", "instance tunnel secret received keep ring")
OPENED_PAYLOAD = struct.Struct("!QQ16sQII")
NEW = Open(0, bytes(16), 1, 0, 120, 1 << 20)


def message(kind, client=0, port=0, payload=b""):
    return HEADER.pack(kind, 0, client, port) + payload


def open_message(wish):
    return message(OPEN, payload=OPEN_PAYLOAD.pack(*wish))


def read_open(data):
    return Open(*OPEN_PAYLOAD.unpack(data[HEADER.size :]))


class Socket:
    """A WebSocket to a route of the runner. `greeted` routes begin with a text."""

    def __init__(self, address, route, greeted=True, offer=OFFER):
        host, _, port = address.partition(":")
        self.sock = socket.create_connection((host, int(port)), 10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            f"GET {route} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {offer}\r\n\r\n".encode()
        )
        self.stream = self.sock.makefile("rb")
        status = self.stream.readline().decode().strip()
        self.headers = {}
        while line := self.stream.readline().decode().strip():
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        check(" 101 " in f"{status} ", f"{route}: {status}")
        self.protocol = self.headers.get("sec-websocket-protocol")
        if greeted:
            text = self.receive()
            check(text == b"CONNECTED", f"{route}: {text}")

    def send(self, data):
        key = os.urandom(4)
        size = len(data)
        head = (
            struct.pack("!BB", 0x82, 0x80 | size)
            if size < 126
            else struct.pack("!BBH", 0x82, 0x80 | 126, size)
        )
        mask = (key * (size // 4 + 1))[:size]
        self.sock.sendall(head + key + bytes(a ^ b for a, b in zip(data, mask)))

    def receive(self, seconds=10):
        """The next message; None if the WebSocket has ended."""
        self.sock.settimeout(seconds)
        try:
            while True:
                head = self.stream.read(2)
                if len(head) < 2:
                    return None
                size = head[1] & 0x7F
                if size == 126:
                    (size,) = struct.unpack("!H", self.stream.read(2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", self.stream.read(8))
                data = self.stream.read(size)
                if head[0] & 0x0F == 8:
                    return None
                if head[0] & 0x0F in (1, 2):
                    return data
        except TimeoutError:
            raise Failed(f"no message within {seconds:g} s") from None
        except OSError:
            return None

    def opened(self, wish=NEW):
        """Asks for a tunnel, which has to be granted."""
        check(self.protocol == RESUME, f"the runner does not resume: it chose {self.protocol}")
        self.send(open_message(wish))
        answer = self.receive()
        check(answer and answer[0] == OPENED, f"no OPENED but {answer}")
        # Without it the tunnel is kept for a short time only.
        self.send(message(ACK, payload=bytes(8)))
        return Opened(*OPENED_PAYLOAD.unpack(answer[HEADER.size :]))

    def close(self):
        self.stream.close()
        self.sock.close()

    def vanish(self):
        """The socket is reset, without a closing frame."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()
