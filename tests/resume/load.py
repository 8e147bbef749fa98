"""Connections that move bytes both ways, all of them verified, at both of their ends."""

import collections
import socket
import struct
import threading
import time

from chain import Failed, check, until

# The bytes repeat after a prime number, so a lost, repeated or moved piece does not match.
PERIOD = 65_521
PIECE = 64 << 10
TICK = 0.01
HEADER = struct.Struct("!I")
PROBE = 0xFFFF_FFFF

Kind = collections.namedtuple("Kind", "name count rate read_rate")


def kinds(count, bulk=512 << 10):
    """A mix: bulk, many small messages, and readers that are slower than what they are sent."""
    slow = count // 8
    many = count // 2
    return [
        Kind("bulk", count - many - slow, bulk, None),
        Kind("small", many, 8 << 10, None),
        Kind("slow", slow, bulk, 64 << 10),
    ]


def pattern():
    state, made = 0x9E3779B9, bytearray()
    while len(made) < PERIOD:
        state ^= (state << 13) & 0xFFFFFFFF
        state ^= state >> 17
        state ^= (state << 5) & 0xFFFFFFFF
        made.append(state & 0xFF)
    return bytes(made * 3)


PATTERN = pattern()


class End:
    """One end of a connection: what it has sent and received, and how it ended."""

    def __init__(self, name, sock, kind, out_phase, in_phase):
        sock.setblocking(False)
        self.name = name
        self.sock = sock
        self.kind = kind
        self.out_phase = out_phase
        self.in_phase = in_phase
        self.sent = self.received = 0
        self.may_send = self.may_read = 0.0
        self.last = time.monotonic()
        self.longest = 0.0
        self.finishing = self.shut = False
        self.ended = None  # the time, once it has
        self.how = None

    def end(self, how):
        if self.ended is None:
            self.ended = time.monotonic()
            self.how = how
            self.sock.close()

    def turn(self, now, seconds):
        if self.ended is not None:
            return
        try:
            self.read(now, seconds)
            if self.ended is None:
                self.send(seconds)
        except BlockingIOError:
            pass
        except OSError as error:
            self.end(f"reset ({error.strerror})")

    def read(self, now, seconds):
        rate = None if self.finishing else self.kind.read_rate
        if rate:
            self.may_read = min(self.may_read + rate * seconds, PIECE)
        most = PIECE if rate is None else int(self.may_read)
        for _ in range(4):
            if most < 1:
                return
            try:
                data = self.sock.recv(min(most, PIECE))
            except BlockingIOError:
                return
            if not data:
                self.end("EOF")
                return
            at = (self.in_phase + self.received) % PERIOD
            if data != PATTERN[at : at + len(data)]:
                self.end(f"WRONG BYTES within {len(data)} from {self.received}")
                return
            self.received += len(data)
            self.longest = max(self.longest, now - self.last)
            self.last = now
            if rate:
                self.may_read -= len(data)
                most = int(self.may_read)

    def send(self, seconds):
        if self.finishing:
            if not self.shut:
                self.shut = True
                self.sock.shutdown(socket.SHUT_WR)
            return
        self.may_send = min(self.may_send + self.kind.rate * seconds, PIECE)
        if self.may_send >= 1:
            at = (self.out_phase + self.sent) % PERIOD
            sent = self.sock.send(PATTERN[at : at + int(self.may_send)])
            self.sent += sent
            self.may_send -= sent


class Load:
    """Connections through a local port to a service of this process, in a thread of its own.

    `connect` opens a connection to the local port, wherever that is.
    """

    def __init__(self, address="127.0.0.1"):
        self.listener = socket.create_server((address, 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.pairs = []  # (the application's end, the service's end)
        self.new = {}
        self.echoes = []
        self.running = True
        self.accepting = threading.Thread(target=self.accept, daemon=True)
        self.accepting.start()
        self.moving = threading.Thread(target=self.move, daemon=True)

    def open(self, connect, count=64, bulk=512 << 10):
        number = 0
        for kind in kinds(count, bulk):
            for _ in range(kind.count):
                app = connect()
                app.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                app.sendall(HEADER.pack(number))
                service = until(20, f"connection {number} at the service", self.taken(number))
                up, down = number * 977, number * 977 + 31_337
                self.pairs.append(
                    (
                        End(f"{kind.name} {number}, application", app, kind, up, down),
                        End(f"{kind.name} {number}, service", service, kind, down, up),
                    )
                )
                number += 1
        self.moving.start()
        return self

    def taken(self, number):
        return lambda: self.new.pop(number, None)

    def accept(self):
        while self.running:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.greet, args=[sock], daemon=True).start()

    def greet(self, sock):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            header = sock.recv(HEADER.size, socket.MSG_WAITALL)
            if len(header) < HEADER.size:
                return sock.close()
            (number,) = HEADER.unpack(header)
            if number != PROBE:
                self.new[number] = sock
                return None
            while data := sock.recv(PIECE):
                sock.sendall(data)
        except OSError:
            pass
        return sock.close()

    def move(self):
        before = time.monotonic()
        while self.running:
            now = time.monotonic()
            for pair in self.pairs:
                for end in pair:
                    end.turn(now, now - before)
            before = now
            time.sleep(max(0.0, TICK - (time.monotonic() - now)))

    def ends(self):
        return [end for pair in self.pairs for end in pair]

    def lost(self):
        """The ends that were lost, earliest first."""
        return sorted((end for end in self.ends() if end.ended), key=lambda end: end.ended)

    def check(self):
        """No connection has ended, and no byte was wrong."""
        lost = self.lost()
        if lost:
            told = "; ".join(f"{end.name}: {end.how}" for end in lost[:3])
            connections = sum(any(end.ended for end in pair) for pair in self.pairs)
            raise Failed(f"{connections} of {len(self.pairs)} connections ended: {told}")

    def total(self):
        return sum(end.received for end in self.ends())

    def moves(self, seconds, what):
        """Waits until every end has received something new."""
        before = [(end, end.received) for end in self.ends()]

        def silent():
            return [end.name for end, received in before if end.received == received]

        def look():
            self.check()
            return not silent()

        try:
            until(seconds, what, look)
        except Failed as failed:
            self.check()
            left = silent()
            raise Failed(f"{failed}: nothing new at {len(left)} ends, {left[:3]}") from None

    def finish(self, seconds=60):
        """Both ends of each connection finish. Everything sent has to arrive, then the end."""
        self.check()
        longest = max(end.longest for end in self.ends() if end.kind.read_rate is None)
        for end in self.ends():
            end.finishing = True

        def look():
            return all(end.ended for end in self.ends())

        try:
            until(seconds, "the end of every connection", look)
        except Failed as failed:
            left = [end.name for end in self.ends() if not end.ended]
            raise Failed(f"{failed}: {len(left)} ends, {left[:3]}") from None
        for one, other in self.pairs:
            for end, peer in ((one, other), (other, one)):
                check(end.how == "EOF", f"{end.name}: {end.how}")
                check(
                    end.received == peer.sent,
                    f"{end.name}: {end.received} of {peer.sent} bytes",
                )
        self.close()
        return [f"{self.total() >> 20} MiB verified", f"longest pause {longest:.1f} s"]

    def all_ended(self, seconds, what):
        """Waits until every connection has ended at both ends. Returns how long it took."""
        start = time.monotonic()
        try:
            until(seconds, what, lambda: all(end.ended for end in self.ends()))
        except Failed as failed:
            left = [end.name for end in self.ends() if not end.ended]
            raise Failed(f"{failed}: {len(left)} ends live, {left[:3]}") from None
        for end in self.ends():
            check(not end.how.startswith("WRONG"), f"{end.name}: {end.how}")
        return time.monotonic() - start

    def close(self):
        self.running = False
        self.listener.close()
        if self.moving.is_alive():
            self.moving.join()
        for end in self.ends():
            end.sock.close()


class Probe:
    """A new connection: whether it is answered, refused, or left hanging."""

    def __init__(self, connect):
        self.start = time.monotonic()
        self.sock = connect()
        self.sock.sendall(HEADER.pack(PROBE) + b"are you there?")

    def answer(self, seconds):
        """The seconds until its answer; fails if there is none by then."""
        how = self.outcome(seconds)
        check(how == "answered", f"a new connection was {how}")
        return time.monotonic() - self.start

    def outcome(self, seconds):
        """How it went: "answered", "reset", "ended", or "left hanging"."""
        try:
            self.sock.settimeout(max(0.01, seconds))
            got = self.sock.recv(64)
            return "answered" if got else "ended"
        except TimeoutError:
            return "left hanging"
        except OSError:
            return "reset"
        finally:
            self.sock.close()
