"""Tunnels that are kept for clients that never return, and OPENs of others."""

import collections
import contextlib
import os
import pathlib
import resource
import socket
import statistics
import threading
import time

import raw
from chain import CONTAINER, MIB, Chain, check, until
from load import Load
from world import BACK, World, connected, world

# What each vanished client's service has sent and nobody has read.
UNREAD = 64 << 10
# Memory of the runner may differ by this from the level before.
SLACK = 4 * MIB


class Sender:
    """A service that sends to each connection, and waits for its end."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.live = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=[sock], daemon=True).start()

    def serve(self, sock):
        with self.lock:
            self.live += 1
        with sock, contextlib.suppress(OSError):
            sock.sendall(bytes(UNREAD))
            while sock.recv(1024):
                pass
        with self.lock:
            self.live -= 1


def resident(process):
    status = pathlib.Path(f"/proc/{process.popen.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


def route(port):
    return f"/ws/forward/{CONTAINER}/{port}?proto=tcp"


def memory_returns(bench):
    count, keep = (1000, 30) if bench.full else (200, 5)
    text = f"{count} tunnels are kept for {keep} s and their clients never return"
    with descriptors(), bench.check(text, 300) as figures:
        chain = Chain(bench.place, bench.programs)
        chain.log = {"RUST_LOG": "warn"}
        options = ["--resume-keep", keep] if bench.resumes else []
        caps = [
            part
            for name in ("", "-per-container", "-per-address")
            for part in (f"--max-detached{name}", count)
            if bench.resumes
        ]
        chain.start_runner("127.0.0.1:0", *options, *caps)
        chain.start_agent(None, *options)
        service = Sender()
        # The first rounds show what tunnels leave behind that nobody keeps.
        for _ in range(2):
            for tunnel in open_all(chain, service, count):
                tunnel.send(raw.message(raw.END))
                tunnel.close()
            gone(service, 20)
        before = settled(chain.runner)
        tunnels = open_all(chain, service, count)
        start = time.monotonic()
        for tunnel in tunnels:
            tunnel.vanish()
        until(10, "the loss", lambda: chain.metric("detached") == count)
        held = resident(chain.runner)
        check(service.live == count, f"{service.live} of {count} services have their connection")
        gone(service, keep + 10)
        took = time.monotonic() - start
        check(took > keep - 1, f"all were given up after {took:.1f} s")
        after = settled(chain.runner)
        figures.append(f"freed after {took:.1f} s")
        figures.append(f"runner {before >> 10} KiB, {held >> 10} kept, {after >> 10} after")
        check(after < before + SLACK, f"the runner has {after >> 10} KiB, before {before >> 10}")
        check(chain.metric("detached") == 0, "some are still kept")


def idle_price(bench):
    """Memory of the runner for each tunnel without connections, beside one that is not kept."""
    count, runs = (1000, 5) if bench.full else (300, 1)
    with descriptors(), bench.check(f"{count} idle tunnels, {runs} times each way", 300) as figures:
        each = {False: [], True: []}
        for number in range(2 * runs):
            kept = number % 4 in (1, 2)
            chain = Chain(bench.place, bench.programs)
            chain.log = {"RUST_LOG": "warn"}
            chain.start_runner("127.0.0.1:0", "--target", "vm-1=127.0.0.1")
            before = settled(chain.runner)
            tunnels = []
            for _ in range(count):
                offer = raw.OFFER if kept else raw.V2
                tunnels.append(raw.Socket(chain.runner_url, "/api/tunnel/vm-1", offer=offer))
                if kept:
                    tunnels[-1].opened()
                # Both have been used once.
                tunnels[-1].send(raw.message(raw.PING, payload=b"there?"))
                answer = tunnels[-1].receive()
                check(answer and answer[0] == raw.PONG, f"no PONG but {answer}")
            each[kept].append((settled(chain.runner) - before) / count)
            for tunnel in tunnels:
                tunnel.vanish()
            chain.runner.stop()
        without, kept = (statistics.median(each[way]) for way in (False, True))
        figures.append(f"runner: {without:.0f} bytes without resumption, {kept:.0f} with it")
        check(kept < without + 2048, f"{kept:.0f} bytes in place of {without:.0f}")


@contextlib.contextmanager
def descriptors():
    """As many open files as this user may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_all(chain, service, count):
    """Tunnels with one connection each, whose bytes have arrived at the client's socket."""
    tunnels = []
    for _ in range(count):
        tunnel = raw.Socket(chain.runner_url, route(service.port))
        tunnel.opened()
        tunnel.send(raw.message(raw.CONNECT, 1, service.port))
        tunnels.append(tunnel)
    until(30, "every connection at its service", lambda: service.live == count)
    return tunnels


def gone(service, seconds):
    until(seconds, "the end of every connection", lambda: service.live == 0)


def settled(process):
    """The memory once it shrinks no more."""
    last = resident(process)
    for _ in range(20):
        time.sleep(0.25)
        now = resident(process)
        if abs(now - last) < 64 << 10:
            return now
        last = now
    return last


class Scarce(World):
    """The runner may hold little."""

    def flags(self, role):
        return [*super().flags(role), *(["--memory", 16] if role == "runner" else [])]


def bystanders_live(bench):
    text = "memory is short: a client without a WebSocket goes first, and no bystander's connection"
    with bench.check(text, 120) as figures:
        with world(bench, keep=100, client_gate=True, kind=Scarce) as at:
            bystanders = Load()
            try:
                port = at.chain.forward(bystanders.port, base=f"ws://{at.chain.host_url}")
                bystanders.open(lambda: connected(port), 16, 64 << 10)
                bystanders.moves(20, "the bystanders' first bytes")
                at.client_gate.tell("refuse")
                at.client_gate.tell("cut")
                start = time.monotonic()
                services = [service for _, service in at.load.pairs]
                until(20, "the end of the other connections", lambda: all_ended(services))
                took = time.monotonic() - start
                figures.append(f"the other connections ended after {took:.1f} s")
                for _ in range(3):
                    bystanders.moves(10, "new bytes of the bystanders")
                figures += bystanders.finish()
            finally:
                bystanders.close()


def all_ended(ends):
    return all(end.ended for end in ends)


def forged_changes_nothing(bench):
    count = 1000 if bench.full else 150
    text = f"{count} forged, stale and replayed OPENs change nothing"
    with bench.check(text, 240) as figures:
        with world(bench, bench.database, agent_gate=True, client_gate=True) as at:
            # Twice, so that there are secrets that were valid once.
            for number in range(2):
                for gate in (at.client_gate, at.agent_gate):
                    gate.tell("cut")
                    until(BACK, "the next OPEN", lambda: len(later_opens(gate)) > number)
                at.moves()
            # The transfers fill rings and buffers meanwhile, and the client opens a second tunnel.
            before = highest(at.chain.runner, 3)
            answers = collections.Counter()
            ways = [
                (at.client_gate, route(at.load.port), True),
                (at.client_gate, f"/api/tunnel/{CONTAINER}", True),
                (at.agent_gate, f"/ws/tunnel/{CONTAINER}", False),
            ]
            seen = {gate: later_opens(gate) for gate in (at.client_gate, at.agent_gate)}
            for number in range(count):
                gate, path, greeted = ways[number % len(ways)]
                made = wrong(seen[gate], number // len(ways))
                answers[attempt(at, path, greeted, made)] += 1
                if number % 50 == 0:
                    at.check()
            figures += [f"{amount} x {answer}" for answer, amount in sorted(answers.items())]
            check(not answers["OPENED"], f"granted: {dict(answers)}")
            after = resident(at.chain.runner)
            grown = f"runner {before >> 10} KiB before, {after >> 10} after"
            figures.append(grown)
            # Full buffers of the transfers are more than what a few attempts could leave.
            check(not bench.full or after < before + 2 * SLACK, grown)
            at.finish(figures, "forward", "agent")


def highest(program, seconds):
    """The most memory that it has within that time."""
    end = time.monotonic() + seconds
    most = 0
    while time.monotonic() < end:
        most = max(most, resident(program))
        time.sleep(0.05)
    return most


def later_opens(gate):
    """The OPENs that asked for a tunnel that was there, as they were sent."""
    opens = [bytes.fromhex(text) for text in gate.tell("opens").split()]
    return [data for data in opens if data[0] == raw.OPEN and raw.read_open(data).tunnel != 0]


def wrong(opens, number):
    """An OPEN that the tunnel's own client has not made, or has made before."""
    last = raw.read_open(opens[-1])
    match number % 5:
        case 0:
            return opens[number // 5 % len(opens)]  # replayed as it was
        case 1:
            return raw.open_message(last._replace(secret=os.urandom(16), attempt=1 << 31))
        case 2:
            return raw.open_message(last._replace(attempt=0))
        case 3:
            guessed = int.from_bytes(os.urandom(8), "big") or 1
            return raw.open_message(last._replace(tunnel=guessed, attempt=1 << 31))
        case _:
            # An old secret, with an attempt of the future and a count from nowhere.
            return raw.open_message(last._replace(attempt=1 << 31, received=1 << 62))


def attempt(at, path, greeted, made):
    """What the runner answers."""
    tunnel = raw.Socket(at.chain.runner_url, path, greeted)
    try:
        check(tunnel.protocol == raw.RESUME, f"the runner chose {tunnel.protocol}")
        tunnel.send(made)
        answer = tunnel.receive()
        if answer is None:
            return "closed"
        if answer[0] == raw.END:
            return f"END {raw.HEADER.unpack(answer[: raw.HEADER.size])[3]}"
        return "OPENED" if answer[0] == raw.OPENED else f"type {answer[0]:#04x}"
    finally:
        tunnel.close()
