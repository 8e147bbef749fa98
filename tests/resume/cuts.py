"""Parts between the two ends vanish and come back, and no connection notices."""

import random
import signal
import time

from chain import check, find, free_port, until
from world import BACK, Namespace, World, port_in, tell_all, world

# Where load balancers close every WebSocket once a minute and refuse for up to 90 s after. The
# programs keep a tunnel for 120 s. Everything is scaled down by the same factor.
UP, REFUSED, KEEP = 60, 90, 120


def host_killed(bench):
    times, period = (20, 3.0) if bench.full else (4, 2.0)
    text = f"the host is killed and started again {times} times in {times * period:.0f} s"
    with bench.check(text, 240) as figures, world(bench, bench.database) as at:
        for _ in range(times):
            end = time.monotonic() + period
            at.restart_host(random.uniform(0, period / 2))
            at.wait(end - time.monotonic())
        at.finish(figures, "forward")


def agent_cut(bench):
    times, period = (20, 3.0) if bench.full else (4, 1.5)
    text = f"the agent's connection to the runner is cut {times} times"
    with bench.check(text, 240) as figures:
        with world(bench, bench.database, agent_gate=True) as at:
            for _ in range(times):
                at.agent_gate.tell("cut")
                at.wait(random.uniform(0.2, 2 * period))
            at.finish(figures, "agent")


def both_cut(bench):
    times, period = (20, 3.0) if bench.full else (4, 2.0)
    text = f"the host is killed and the agent's connection cut at once, {times} times"
    with bench.check(text, 240) as figures:
        with world(bench, bench.database, agent_gate=True) as at:
            for _ in range(times):
                end = time.monotonic() + period
                at.agent_gate.tell("cut")
                at.restart_host(random.uniform(0, period / 2))
                at.wait(end - time.monotonic())
            at.finish(figures, "forward", "agent")


def host_stopped(bench):
    seconds = 40  # keepalive has noticed before
    with bench.check(f"the host stands still for {seconds} s", 240) as figures:
        with world(bench, bench.database) as at:
            at.chain.host.send(signal.SIGSTOP)
            at.wait(seconds)
            at.chain.host.send(signal.SIGCONT)
            at.finish(figures, "forward")


HAPROXY = """
global
    stats socket {socket} level admin
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
    timeout tunnel 1h
    option redispatch
    retries 2
listen front
    bind 127.0.0.1:{port}
    balance roundrobin
    default-server check inter 200ms fall 2 rise 1 on-marked-down shutdown-sessions
    option httpchk GET /healthz
    server one 127.0.0.1:{one}
    server two 127.0.0.1:{two}
"""


class Balanced(World):
    """Two hosts behind HAProxy."""

    def front(self, url):
        self.hosts = [self.chain.host]
        self.urls = [self.chain.host_url]
        self.chain.start_host()
        self.hosts.append(self.chain.host)
        self.urls.append(self.chain.host_url)
        one, two = map(port_in, self.urls)
        port, folder = free_port(), self.place.folder
        text = HAPROXY.format(socket=folder / "admin", port=port, one=one, two=two)
        (folder / "haproxy.cfg").write_text(text)
        command = [find("haproxy"), "-db", "-f", folder / "haproxy.cfg"]
        self.place.start("haproxy", command).listens(port)
        return f"127.0.0.1:{port}"

    def carrier(self):
        """Which host carries the tunnel: the one with a connection to the runner."""
        text = self.place.run([find("ss"), "-tnpH", "state", "established"])
        for number, host in enumerate(self.hosts):
            for line in text.splitlines():
                if f"pid={host.popen.pid}," in line and f"{self.chain.runner_url} " in line:
                    return number
        return None

    def kill(self, number):
        self.hosts[number].stop(signal.SIGKILL)

    def revive(self, number):
        self.chain.start_host(self.urls[number])
        self.hosts[number] = self.chain.host


def balanced(bench):
    find("haproxy")
    times = 6 if bench.full else 2
    text = f"two hosts behind HAProxy: the one in use dies, {times} times"
    with bench.check(text, 240) as figures:
        with world(bench, bench.database, kind=Balanced) as at:
            for _ in range(times):
                dead = at.carrier()
                check(dead is not None, "no host carries the tunnel")
                at.kill(dead)
                until(BACK, "the other host", lambda: at.carrier() == 1 - dead or at.check())
                at.moves()
                at.revive(dead)
                at.wait(1)
            at.finish(figures, "forward")


def link_lost(bench):
    seconds = 30 if bench.full else 5
    with_it = Namespace()
    text = f"the network link is down for {seconds} s and comes back with another address"
    try:
        with bench.check(text, 240) as figures:
            with world(bench, bench.database, namespace=with_it) as at:
                with_it.link_down()
                at.wait(seconds)
                with_it.link_up_elsewhere()
                start = time.monotonic()
                at.moves(60)
                figures.append(f"all move {time.monotonic() - start:.1f} s later")
                at.finish(figures, "forward")
    finally:
        with_it.close()


def closed_regularly(bench):
    # Attempts slow down to one a second unless the tunnel was attached for 5 s, and a slow machine
    # needs some time for the last one.
    cycles, scale = (200, 1 / 30) if bench.full else (3, 1 / 10)
    up, keep = UP * scale, round(KEEP * scale)
    text = (
        f"every WebSocket is closed with 1000 after {up:.1f} s and 503 follows for up to "
        f"{REFUSED * scale:.1f} s, {cycles} cycles, kept for {keep} s"
    )
    with bench.check(text, 60 + cycles * 30) as figures:
        with world(bench, bench.database, keep=keep, agent_gate=True, client_gate=True) as at:
            gates = [at.agent_gate, at.client_gate]
            refused = 0
            for _ in range(cycles):
                close_and_refuse(at, gates, random.uniform(0, REFUSED * scale))
                refused = max(refused, *map(int, tell_all(gates, "open")))
                at.moves(keep + 5)
                at.wait(up)
            figures.append(f"{refused} times 503")
            at.finish(figures, "forward", "agent")


def close_and_refuse(at, gates, seconds):
    """Closes every WebSocket and refuses new ones until `seconds` from then."""
    tell_all(gates, "refuse")
    end = time.monotonic() + seconds
    tell_all(gates, "close")
    at.wait(end - time.monotonic())


def closed_at_full_scale(bench):
    """The same with the real times, a few cycles."""
    cycles = 2
    text = f"every WebSocket is closed with 1000 after 60 s and 503 follows, {cycles} cycles"
    with bench.check(text, 60 + cycles * 200) as figures:
        with world(bench, bench.database, agent_gate=True, client_gate=True) as at:
            gates = [at.agent_gate, at.client_gate]
            for seconds in (REFUSED, REFUSED / 2)[:cycles]:
                at.wait(UP)
                close_and_refuse(at, gates, seconds)
                tell_all(gates, "open")
                at.moves(KEEP - seconds + 5)
            at.finish(figures, "forward", "agent")
