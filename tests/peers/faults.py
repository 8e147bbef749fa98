#!/usr/bin/env python3
"""Checks for each known fault of the deployed system, as a user would see it.

faults.py --ours target/release/examples                # all four ours: every check passes
faults.py --chain theirs,theirs,theirs,theirs           # forward, host, runner, agent
faults.py --only half_close_keeps_the_reply
"""

import asyncio
import collections
import hashlib
import os
import pathlib
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time

from websockets.asyncio.server import serve

from chain import CONTAINER, MIB, ROLES, App, Chain, Failed, Service, Skipped
from chain import argument_parser, check, free_port, refusing_socket, terminate_cleanly
from chain import until, within
from matrix import combination_argument

CHECKS = []
NOT_RESUMED = set()


def fault(number, resumes=True):
    """A check for the fault of this number. Its chain already runs unless it starts another.

    Without `resumes` connections end with their WebSocket. tests/chain_resume.rs has the others.
    """

    def add(function):
        CHECKS.append((number, function))
        if not resumes:
            NOT_RESUMED.add(function)
        return function

    return add


class Udp:
    """A non-blocking UDP socket; with `echo` a service."""

    def __init__(self, port=None, to=None):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.sock.setsockopt(socket.SOL_SOCKET, option, 4 * MIB)
        if to:
            self.sock.connect(("127.0.0.1", to))
        else:
            self.sock.bind(("127.0.0.1", port or 0))
        self.port = self.sock.getsockname()[1]
        self.peers = set()

    async def echo(self):
        loop = asyncio.get_running_loop()
        while True:
            data, peer = await loop.sock_recvfrom(self.sock, 65536)
            self.peers.add(peer)
            await loop.sock_sendto(self.sock, data, peer)

    async def ask(self, data, seconds=3):
        """The answer, or None; an ICMP refusal counts as no answer."""
        loop = asyncio.get_running_loop()
        try:
            self.sock.send(data)
            return await asyncio.wait_for(loop.sock_recv(self.sock, 65536), seconds)
        except (ConnectionRefusedError, asyncio.TimeoutError):
            return None

    def close(self):
        self.sock.close()


async def echoes(forward, what="an echo", seconds=10):
    app = await App.open(forward.port, b"E")
    await within(seconds, what, app.echo(os.urandom(10_000), what))
    app.close()


async def echoes_again(forward, what, seconds):
    """A new connection through the same forward works; a few attempts may fail before."""

    async def look():
        check(forward.code is None, f"{what}: {forward.name} ended with exit code {forward.code}")
        try:
            await echoes(forward, what, 5)
            return True
        except (Failed, OSError):
            return False

    await until(seconds, what, look, 0.2)


async def crossing(chain, service, second_side=None):
    forwards = [
        await chain.forward(service.port),
        await chain.forward(service.port, side=second_side),
    ]

    async def one(forward, number, tag):
        app = await App.open(forward.port, b"E")
        for turn in range(6):
            data = f"<{tag} connection {number} turn {turn}>".encode().ljust(64, b".") * 200
            await app.echo(data, f"{tag} connection {number}")
        app.close()

    await within(
        60,
        "50 connections on each of two forwards",
        asyncio.gather(
            *(one(f, n, t) for n in range(50) for f, t in zip(forwards, ("first", "second")))
        ),
    )


@fault(1)
async def two_forwards_on_one_container_share_no_byte(chain, service):
    await crossing(chain, service)


@fault(1)
async def a_deployed_client_beside_the_forward_shares_no_byte(chain, service):
    await crossing(chain, service, "theirs")


@fault(2)
async def bytes_of_a_closed_stream_reach_no_later_user(chain, service):
    first = await chain.forward(service.port)
    app = await App.open(first.port, b"S")
    await app.exactly(MIB, "the first stream")
    app.vanish()
    await asyncio.sleep(0.5)
    await first.stop()
    second = await chain.forward(service.port)  # counts ids from the start again
    for _ in range(5):
        await echoes(second, "the next user's echo")
        await asyncio.sleep(0.2)


async def stream_stops(service, seconds=3):
    """Waits until the service stops writing its endless stream."""

    async def look():
        before = service.sent
        await asyncio.sleep(0.5)
        return service.sent == before

    await until(seconds, "the end of the flood from the service", look)
    await until(seconds, "the service's end of the connection", lambda: service.live == 0)


@fault(3)
async def flood_after_an_app_is_gone_stops(chain, service):
    forward = await chain.forward(service.port)
    app = await App.open(forward.port, b"S")
    await app.exactly(MIB, "the stream")
    app.vanish()
    await stream_stops(service)
    await echoes(forward)


@fault(3, resumes=False)
async def flood_after_clients_are_gone_stops(chain, service):
    forward = await chain.forward(service.port)
    app = await App.open(forward.port, b"S")
    await app.exactly(MIB, "the stream")
    await forward.kill()
    await stream_stops(service)


@fault(4)
async def half_close_keeps_the_reply(chain, service):
    forward = await chain.forward(service.port)
    data = os.urandom(2 * MIB)
    for size in (0, 10, len(data)):
        app = await App.open(forward.port, b"H")
        await app.send(data[:size])
        app.writer.write_eof()
        reply = await within(
            10, "the reply after the app's EOF", app.exactly(32, "the reply after the app's EOF")
        )
        check(
            reply == hashlib.sha256(data[:size]).digest(),
            f"the service did not get all {size} bytes",
        )
        app.close()


@fault(4)
async def a_service_that_ends_first_still_gets_the_rest(chain, service):
    forward = await chain.forward(service.port)
    app = await App.open(forward.port, b"F", 1000)
    got = await within(10, "the service's bytes and EOF", app.reader.read(-1))
    check(len(got) == 1000, f"{len(got)} of 1000 bytes before the service's EOF")
    data = os.urandom(MIB)
    await app.send(data, "after the service's EOF")
    app.writer.write_eof()
    received = await within(10, "the app's bytes at the service", service.received.get())
    check(
        received == data, f"the service got {len(received)} of {len(data)} bytes after its own EOF"
    )
    app.close()


@fault(5)
async def agent_reconnect_keeps_the_new_registration(chain, service):
    old = chain.agent
    old.signal(signal.SIGSTOP)  # its network is lost: no FIN
    new = await chain.start_agent(wait=False)
    await until(30, "an echo through the new agent", lambda: is_served(chain, service))
    await old.kill()  # now its socket dies
    await asyncio.sleep(1)
    check(new.code is None, "the new agent ended")
    check(await chain.is_registered(), "the new agent is no longer registered")
    await echoes(await chain.forward(service.port))


async def is_served(chain, service):
    """Whether a new forward has an echo soon."""
    forward = await chain.forward(service.port)
    try:
        await echoes(forward, seconds=3)
        return True
    except (Failed, OSError):
        return False
    finally:
        await forward.stop()


async def ends_and_recovers(chain, service, kill, restart):
    forward = await chain.forward(service.port)
    apps = [await App.open(forward.port, b"E") for _ in range(10)]
    for app in apps:
        await app.echo(b"alive")
    await kill()
    end = asyncio.gather(*(app.end() for app in apps))
    await within(5, "the end of every open connection", end)
    for app in apps:
        app.close()
    await restart()
    await asyncio.sleep(1)
    await echoes_again(forward, "a new connection through the same forward", 20)


@fault(6, resumes=False)
async def a_killed_agent_ends_its_connections_and_comes_back(chain, service):
    await ends_and_recovers(chain, service, chain.agent.kill, chain.start_agent)


@fault(6, resumes=False)
async def a_killed_runner_ends_its_connections_and_comes_back(chain, service):
    async def restart():
        await chain.start_runner()
        await chain.registered()

    await ends_and_recovers(chain, service, chain.runner.kill, restart)


@fault(11, resumes=False)
async def a_killed_host_ends_its_connections_and_comes_back(chain, service):
    await ends_and_recovers(chain, service, chain.host.kill, chain.start_host)


async def beside_a_stall(chain, service, stall, forward, other):
    app = await stall(forward)
    await asyncio.sleep(3)
    for turn in range(5):
        await echoes(other, f"echo {turn} beside the stall", 5)
        await asyncio.sleep(0.2)
    app.vanish()


async def reader_stall(forward):
    app = await App.open(forward.port, b"S")
    app.reader._transport.pause_reading()
    return app


@fault(7)
async def a_stalled_reader_stalls_nobody_else(chain, service):
    forward = await chain.forward(service.port)
    await beside_a_stall(chain, service, reader_stall, forward, forward)


@fault(7)
async def a_stalled_reader_stalls_no_other_forward(chain, service):
    forward = await chain.forward(service.port)
    await beside_a_stall(chain, service, reader_stall, forward, await chain.forward(service.port))


@fault(7)
async def a_stalled_service_stalls_nobody_else(chain, service):
    writers = []

    async def stall(forward):
        app = await App.open(forward.port, b"R")
        writers.append(asyncio.create_task(app.send(bytes(128 * MIB))))
        return app

    forward = await chain.forward(service.port)
    await beside_a_stall(chain, service, stall, forward, forward)
    for writer in writers:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)


@fault(8)
async def udp_datagrams_of_every_size_pass(chain, service):
    await udp_passes(chain)


@fault(8)
async def udp_towards_a_vm_is_udp(chain, service):
    await chain.runner.kill()
    await chain.start_runner("--target", f"{CONTAINER}=127.0.0.1")
    await udp_passes(chain)


async def udp_passes(chain):
    service = Udp()
    task = asyncio.create_task(service.echo())
    try:
        forward = await chain.forward(service.port, proto="udp")
        app = Udp(to=forward.port)
        for size in (0, 1, 512, 1472, 9000, 65507):
            data = os.urandom(size)
            answer = await app.ask(data)
            check(answer is not None, f"no answer to {size} bytes")
            check(answer == data, f"{size} bytes came back as {len(answer)} others")
        app.close()
    finally:
        task.cancel()
        service.close()


@fault(8)
async def udp_refusal_does_not_end_the_flow(chain, service):
    port = free_port(socket.SOCK_DGRAM)
    forward = await chain.forward(port, proto="udp")
    app = Udp(to=forward.port)
    for _ in range(3):
        check(await app.ask(b"anyone?", 0.3) is None, "an answer from a port without a service")
    echo = Udp(port)
    task = asyncio.create_task(echo.echo())
    try:

        async def look():
            return await app.ask(b"now?", 0.5) == b"now?"

        await until(5, "an answer on the same flow once the service is up", look)
        check(len(echo.peers) == 1, f"one flow used {len(echo.peers)} sockets")
    finally:
        task.cancel()
        echo.close()
        app.close()


@fault(9)
async def ipv6_loopback_service_is_reached(chain, service):
    six = Service()
    try:
        await six.start("::1")
    except OSError as error:
        raise Skipped(f"no ::1 here: {error}") from None
    try:
        await echoes(await chain.forward(six.port))
    finally:
        await six.close()


@fault(10)
async def refused_port_is_a_reset(chain, service):
    with refusing_socket() as sock:
        forward = await chain.forward(sock.getsockname()[1])
        for first in (b"", b"GET / HTTP/1.0\r\n\r\n"):
            end = await within(10, "the app's end", App.ending(forward.port, first))
            check(end == "reset", f"the app saw an {end}")


@fault(11)
async def client_exits_3_when_refused(chain, service):
    forward = await chain.forward(service.port, task="4711", ready=False)
    await within(15, "the client's end", forward.process.wait())
    check(forward.code == 3, f"exit code {forward.code}")


@fault(11)
async def agents_do_not_all_return_in_one_second(chain, service):
    """The agents of a runner that was suspended for a while come back one by one."""
    count = 12
    port = free_port()
    times = []
    names = set()

    async def handler(ws):
        times.append(time.monotonic())
        names.add(ws.request.path)
        await ws.wait_closed()

    def runner():
        return serve(handler, "127.0.0.1", port, ping_interval=None, compression=None)

    async with runner() as server:
        for number in range(count):
            url = f"ws://127.0.0.1:{port}"
            name = f"kohakuriver-task-{number}"
            await chain.launch(
                "agent", ["--runner-url", url, "--container-id", name, "--reconnect-delay", 5]
            )
        await until(30, "the first registrations", lambda: len(names) == count)
        for connection in list(server.connections):
            connection.transport.abort()
        server.close(close_connections=False)
    names.clear()
    times.clear()
    await asyncio.sleep(3)
    async with runner():
        await until(30, "the return of every agent", lambda: len(names) == count)
    first = sorted(times)
    most = max(sum(start <= at < start + 1 for at in first) for start in first)
    check(most <= count * 3 // 4, f"{most} of {count} agents returned within one second")


@fault(12)
async def no_log_line_per_frame(chain, service):
    forward = await chain.forward(service.port)
    app = await App.open(forward.port, b"E")
    for _ in range(500):
        await app.echo(b"a small frame")
    app.close()
    await asyncio.sleep(0.3)
    lines = collections.Counter()
    for program in chain.programs:
        for path in (program.out, program.err):
            lines[program.name] += path.read_bytes().count(b"\n")
    noisy = {name: count for name, count in lines.items() if count > 200}
    check(not noisy, f"lines for 1000 frames: {noisy}")


@fault(13)
async def small_writes_do_not_wait(chain, service):
    """Each turn writes twice and waits for both. Nagle delays the second until the peer's ACK.

    The same turns without the chain tell how slow the machine is.
    """

    async def answer(reader, writer):
        try:
            while await reader.readexactly(2):
                writer.write(b"ok")
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    async def median(port):
        app = await App.open(port)
        times = []
        for _ in range(60):
            start = time.monotonic()
            await app.send(b"a")
            await asyncio.sleep(0.002)
            await app.send(b"b")
            await within(5, "an answer", app.exactly(2, "an answer"))
            times.append(time.monotonic() - start)
        app.close()
        return 1000 * statistics.median(times)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    forward = await chain.forward(port)
    direct, through = await median(port), await median(forward.port)
    server.close()
    check(through - direct < 30, f"the median turn took {through:.0f} ms, {direct:.0f} ms directly")


async def one(function, args, logs):
    """None, or the exception that describes the failure."""
    quiet = function is not no_log_line_per_frame
    chain = Chain(args.chain, args.ours, logs, quiet, resumes=function not in NOT_RESUMED)
    service = Service()
    try:
        await service.start()
        await within(60, "start", chain.start())
        await within(args.timeout, "the check", function(chain, service))
        return None
    except Exception as error:
        return error
    finally:
        await chain.close()
        await service.close()
        args.tail = chain.tails()


async def run(args):
    terminate_cleanly()
    logs = pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
    passed = failed = 0
    missing = []
    for number, function in CHECKS:
        name = function.__name__
        if args.only and name not in args.only:
            continue
        start = time.monotonic()
        result = await one(function, args, logs / name)
        line = f"{number:>2} {name}  {time.monotonic() - start:.1f} s"
        if result is None:
            passed += 1
            print(f"pass  {line}", flush=True)
        elif isinstance(result, Skipped):
            missing.append(f"{name}: {result}")
            print(f"SKIP  {line}  {result}", flush=True)
        else:
            failed += 1
            print(
                f"FAIL  {line}  {result if isinstance(result, Failed) else repr(result)}",
                flush=True,
            )
            if args.tails:
                print(args.tail)
            print(f"      logs: {logs / name}", flush=True)
            continue
        shutil.rmtree(logs / name, ignore_errors=True)
    if not failed:
        shutil.rmtree(logs)
    told = f", NOT all were run: {'; '.join(missing)}" if missing else ""
    print(f"{passed} passed, {failed} failed{told}")
    if failed:
        return 1
    return 77 if missing else 0


def main():
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--chain", default=("ours",) * len(ROLES), type=combination_argument, metavar="SIDES"
    )
    parser.add_argument(
        "--only", action="append", choices=[f.__name__ for _, f in CHECKS], metavar="NAME"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    parser.add_argument(
        "--tails", action="store_true", help="print the ends of the logs of a failed check"
    )
    parser.add_argument(
        "--timeout", type=float, default=90, help="seconds for each check (%(default)s)"
    )
    args = parser.parse_args()
    if args.list:
        for number, function in CHECKS:
            print(f"{number:>2} {function.__name__}")
        return 0
    return asyncio.run(run(args))


if __name__ == "__main__":
    sys.exit(main())
