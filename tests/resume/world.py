"""The programs with 64 connections and a transaction through them."""

import concurrent.futures
import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time

from chain import Cannot, Chain, Failed, check, find, free_port, until
from flow import Flow
from load import Load, Probe
from transaction import Transaction

HERE = os.path.dirname(os.path.abspath(__file__))
CONNECTIONS = 64
# A lost tunnel is resumed within this, once what it needs is there again.
BACK = 25


class Gated:
    """A gate in front of a port, a process of its own."""

    def __init__(self, place, target):
        self.port, self.control = free_port(), free_port()
        command = [sys.executable, f"{HERE}/gate.py", self.port, target, self.control]
        self.process = place.start("gate", command)
        self.process.listens(self.control)

    def tell(self, command):
        with socket.create_connection(("127.0.0.1", self.control), 5) as control:
            control.sendall(f"{command}\n".encode())
            with control.makefile() as answer:
                return answer.readline().strip()

    def url(self):
        return f"127.0.0.1:{self.port}"


def tell_all(gates, command):
    """Tells every gate at the same time."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(lambda gate: gate.tell(command), gates))


class Namespace:
    """A network namespace with one link to this one."""

    def __init__(self):
        if os.getuid() != 0:
            raise Cannot("a network namespace needs root")
        self.ip = find("ip")
        self.name = f"resume-{os.getpid()}"
        self.outer, self.inner = f"rs{os.getpid() % 100000}o", f"rs{os.getpid() % 100000}i"
        self.net = f"10.213.{os.getpid() % 250}"
        self.address = f"{self.net}.1"
        self.prefix = [self.ip, "netns", "exec", self.name]
        try:
            self.run("netns", "add", self.name)
            self.run("link", "add", self.outer, "type", "veth", "peer", "name", self.inner)
            self.run("link", "set", self.inner, "netns", self.name)
            self.run("addr", "add", f"{self.address}/24", "dev", self.outer)
            self.run("link", "set", self.outer, "up")
            self.inside("link", "set", "lo", "up")
            self.inside("addr", "add", f"{self.net}.2/24", "dev", self.inner)
            self.inside("link", "set", self.inner, "up")
        except Failed as failed:
            self.close()
            raise Cannot(f"no network namespace: {failed}") from None

    def run(self, *arguments):
        done = subprocess.run([self.ip, *arguments], capture_output=True, check=False)
        check(done.returncode == 0, done.stderr.decode(errors="replace").strip())

    def inside(self, *arguments):
        self.run("-n", self.name, *arguments)

    def connect(self, port, proto=socket.SOCK_STREAM):
        """A socket to a port of loopback inside. This thread is there for a moment."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as here:
            with open(f"/run/netns/{self.name}", "rb") as there:
                check(libc.setns(there.fileno(), 0) == 0, "setns fails")
            try:
                return connected(port, proto)
            finally:
                check(libc.setns(here.fileno(), 0) == 0, "setns fails")

    def link_down(self):
        self.run("link", "set", self.outer, "down")
        self.inside("addr", "del", f"{self.net}.2/24", "dev", self.inner)

    def link_up_elsewhere(self):
        self.inside("addr", "add", f"{self.net}.77/24", "dev", self.inner)
        self.run("link", "set", self.outer, "up")

    def close(self):
        for arguments in (["link", "del", self.outer], ["netns", "del", self.name]):
            with contextlib.suppress(Failed):
                self.run(*arguments)


class World:
    """A chain with gates where they are asked for, its load, and a transaction.

    `keep` is the programs' `--resume-keep`. Without a database there is no transaction.
    """

    load = flow = transaction = namespace = None

    def __init__(self, bench):
        self.place = bench.place
        self.chain = Chain(bench.place, bench.programs)
        self.chain.log = {"RUST_LOG": "info"}  # not a line for each connection
        self.resumes = bench.resumes

    def start(
        self,
        database=None,
        keep=None,
        agent_gate=False,
        client_gate=False,
        namespace=None,
        off=(),
    ):
        """`off` names the programs that do not resume."""
        chain, self.namespace, self.off = self.chain, namespace, off
        self.options = ["--resume-keep", keep] if keep is not None and self.resumes else []
        chain.start_runner("127.0.0.1:0", *self.flags("runner"))
        self.agent_gate = agent_gate and Gated(self.place, port_in(chain.runner_url))
        self.start_agent()
        chain.start_host(f"{namespace.address if namespace else '127.0.0.1'}:0")
        self.client_gate = client_gate and Gated(self.place, port_in(self.front(chain.host_url)))
        self.load, self.flow = Load(), Flow()
        ports = [self.load.port, f"{self.flow.port}/udp"]
        ports += [database.port] if database else []
        url = self.client_gate.url() if self.client_gate else self.front(chain.host_url)
        prefix = namespace.prefix if namespace else ()
        found = chain.forward(
            *ports, options=self.flags("forward"), base=f"ws://{url}", prefix=prefix
        )
        self.port, udp, *others = found
        self.client = chain.client
        self.load.open(self.connect)
        self.flow.open(self.connect(udp, socket.SOCK_DGRAM))
        self.transaction = database and Transaction(database, others[0], prefix)
        self.load.moves(20, "the first bytes everywhere")

    def flags(self, role):
        off = ["--no-resume"] if role in self.off and self.resumes else []
        return [*self.options, *off]

    def front(self, url):
        """What clients dial, which may stand in front of the host."""
        return url

    def start_agent(self):
        gate = self.agent_gate and self.agent_gate.url()
        self.chain.start_agent(gate or None, *self.flags("agent"))

    def connect(self, port=None, proto=socket.SOCK_STREAM):
        """A socket to a local port of forward, which is by default that of the load."""
        make = self.namespace.connect if self.namespace else connected
        return make(port or self.port, proto)

    def probe(self):
        return Probe(self.connect)

    def restart_host(self, pause=0.0):
        """The host is gone at once, and comes back on its address."""
        self.chain.host.send(signal.SIGKILL)
        self.chain.host.popen.wait()
        time.sleep(pause)
        self.chain.start_host(self.chain.host_url)

    def restart_runner(self, number, pause=0.0):
        address = self.chain.runner_url
        self.chain.runner.stop(number)
        time.sleep(pause)
        self.chain.start_runner(address, *self.flags("runner"))

    def check(self):
        self.load.check()
        self.flow.check()
        if self.transaction:
            self.transaction.check()

    def wait(self, seconds):
        """Lets time pass, and fails as soon as something has ended."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))

    def moves(self, seconds=BACK):
        self.load.moves(seconds, "new bytes everywhere")
        self.check()

    def finish(self, figures, *resumed):
        """Everything still moves, then ends in order, with the figures of it all.

        `resumed` names the programs whose tunnels must have lost a transport.
        """
        self.moves()
        if self.transaction:
            figures += self.transaction.commit()
        figures += self.flow.finish()
        figures += self.load.finish()
        figures += self.resumptions(resumed)

    def resumptions(self, expected):
        """What the programs say about the tunnels that went on."""
        told, found = [], set()
        for process in self.place.processes:
            if process.name.startswith(("forward", "agent")):
                text = process.err.read_text(errors="replace")
                again = re.findall(r"the tunnel goes on .*: (\d+) messages?, (\d+) KiB", text)
                if again:
                    found.add(process.name.partition("-")[0])
                messages, kib = (sum(map(int, column)) for column in zip(*again or ["00"]))
                told.append(
                    f"{process.name} resumed {len(again)} times and sent {messages} messages "
                    f"({kib} KiB) again"
                )
        missing = set(expected) - found if self.resumes else ()
        check(not missing, f"no tunnel was resumed by {', '.join(sorted(missing))}")
        return told

    def close(self):
        if self.transaction:
            self.transaction.close()
        if self.flow:
            self.flow.close()
        if self.load:
            self.load.close()
        for process in self.place.processes:
            process.send(signal.SIGCONT)  # a stopped one would not see SIGTERM
        for process in reversed(self.place.processes):
            process.stop()


def connected(port, proto=socket.SOCK_STREAM):
    sock = socket.socket(socket.AF_INET, proto)
    sock.settimeout(5)
    sock.connect(("127.0.0.1", port))
    return sock


def port_in(url):
    return url.rpartition(":")[2]


@contextlib.contextmanager
def world(bench, *arguments, kind=World, **more):
    made = kind(bench)
    try:
        made.start(*arguments, **more)
        yield made
    finally:
        made.close()
