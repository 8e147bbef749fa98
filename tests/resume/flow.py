"""A UDP peer whose datagrams are numbered. They may get lost, and none may come twice."""

import collections
import socket
import struct
import threading
import time

from chain import Failed, check

NUMBER = struct.Struct("!Q")
PAUSE = 0.01


class Flow:
    def __init__(self):
        self.service = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.service.bind(("127.0.0.1", 0))
        self.port = self.service.getsockname()[1]
        self.running = True
        self.sent = 0
        self.at_service = collections.Counter()
        self.back = collections.Counter()

    def open(self, sock):
        """Begins to send through a socket that is connected to the local port."""
        self.app = sock
        for work in (self.echo, self.send, self.receive):
            threading.Thread(target=work, daemon=True).start()
        return self

    def echo(self):
        while self.running:
            data, peer = self.service.recvfrom(2048)
            self.at_service[NUMBER.unpack_from(data)[0]] += 1
            self.service.sendto(data, peer)

    def send(self):
        while self.running:
            try:
                self.app.send(NUMBER.pack(self.sent) + b"." * 100)
            except OSError:
                pass  # forward does not listen for a moment
            self.sent += 1
            time.sleep(PAUSE)

    def receive(self):
        while self.running:
            try:
                data = self.app.recv(2048)
            except OSError:
                continue
            self.back[NUMBER.unpack_from(data)[0]] += 1

    def check(self):
        for where, seen in (("at the service", self.at_service), ("back", self.back)):
            twice = [number for number, times in list(seen.items()) if times > 1]
            if twice:
                raise Failed(f"{len(twice)} datagrams came twice {where}: {twice[:3]}")

    def finish(self, seconds=5):
        """New datagrams come back, and none came twice."""
        number, end = self.sent, time.monotonic() + seconds
        while not any(came >= number for came in list(self.back)):
            check(time.monotonic() < end, f"no datagram comes back within {seconds:g} s")
            time.sleep(0.02)
        self.running = False
        self.check()
        return [f"{len(self.back)} of {self.sent} datagrams came back"]

    def close(self):
        self.running = False
