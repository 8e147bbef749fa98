"""Starts a chain of programs, each ours or theirs, and the services and apps at its ends."""

import argparse
import asyncio
import contextlib
import hashlib
import os
import pathlib
import re
import signal
import socket
import struct
import sys

from websockets.asyncio.client import connect

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from environment import next_port, unconfigured  # noqa: E402

ROOT = HERE.parent.parent
ROLES = ("forward", "host", "runner", "agent")
SIDES = ("ours", "theirs")
TASK = "42"
CONTAINER = f"kohakuriver-vps-{TASK}"
MIB = 1 << 20


class Failed(Exception):
    """A check failed; the text says how."""


class Skipped(Exception):
    """A check cannot be made here; the text says why."""


def check(condition, text):
    if not condition:
        raise Failed(text)


def argument_parser(description):
    """A parser with the flag that names our programs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ours",
        default=ROOT / "target/release/examples",
        metavar="DIR",
        help="where our programs are",
    )
    return parser


async def within(seconds, what, awaitable):
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except asyncio.TimeoutError:
        raise Failed(f"{what}: not within {seconds:g} s") from None


async def until(seconds, what, condition, pause=0.05):
    """Waits for `condition()`, plain or async, to be true."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > end:
            raise Failed(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(pause)


def free_port(kind=socket.SOCK_STREAM):
    while True:
        port = next_port()
        with socket.socket(socket.AF_INET, kind) as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def refusing_socket(kind=socket.SOCK_STREAM):
    """A bound socket that does not listen: its port refuses, and no other process can take it."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    return sock


# Programs


class Program:
    def __init__(self, name, command, logs, env):
        self.name = name
        self.command = [str(part) for part in command]
        self.out = logs / f"{name}.out"
        self.err = logs / f"{name}.err"
        self.env = env
        self.process = None

    async def start(self):
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.env,
            )

    @property
    def code(self):
        return self.process.returncode

    def signal(self, number):
        if self.code is None:
            try:
                # Not process.send_signal, which may reap the process before the event loop does.
                os.kill(self.process.pid, number)
            except ProcessLookupError:
                pass

    async def kill(self):
        self.signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self, grace=5):
        """Sends SIGTERM, then SIGKILL. True if SIGTERM was enough."""
        if self.process is None or self.code is not None:
            return True
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), grace)
            return True
        except asyncio.TimeoutError:
            await self.kill()
            return False

    def output(self):
        return self.out.read_text(errors="replace")

    def tail(self, lines=15):
        parts = []
        for path in (self.out, self.err):
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 8192))
                text = file.read().decode(errors="replace").splitlines()[-lines:]
            parts += [f"    {path.name}: {line[:300]}" for line in text]
        return "\n".join(parts)


class Forward(Program):
    """A forward or CLI; `port` is the local one, once it is ready."""

    port = None

    async def ready(self, seconds, remote, proto):
        line = re.compile(
            rf"^Listening on \S*:(\d+) \({proto}\) -> task {TASK} port {remote}$", re.M
        )

        def look():
            match = line.search(self.output())
            if match is None and self.code is not None:
                raise Failed(f"{self.name} ended with exit code {self.code} before its ready line")
            return match

        match = await until(seconds, f"the ready line of {self.name}", look)
        self.port = int(match[1])


class Chain:
    """One runner, host and agent, and any number of forwards."""

    def __init__(self, sides, ours, logs, quiet=True, resumes=True):
        self.sides = dict(zip(ROLES, sides))
        self.ours = pathlib.Path(ours)
        self.logs = pathlib.Path(logs)
        self.logs.mkdir(parents=True, exist_ok=True)
        self.quiet = quiet
        self.resumes = resumes
        self.programs = []
        self.count = {}
        self.runner_port = free_port()
        self.host_port = free_port()

    async def launch(self, role, arguments, side=None, kind=Program, env=None):
        side = side or self.sides[role]
        environment = unconfigured()
        if side == "ours":
            command = [self.ours / role]
            if not self.resumes and role in ("forward", "agent"):
                command.append("--no-resume")
        else:
            command = [sys.executable, HERE / ("cli.py" if role == "forward" else f"{role}.py")]
            if self.quiet:  # by default theirs write a line per frame, as deployed
                environment["LOG_LEVEL"] = "warn"
        environment.update(env or {})
        number = self.count[role] = self.count.get(role, 0) + 1
        name = f"{role}-{side}" + (f"-{number}" if number > 1 else "")
        program = kind(name, [*command, *arguments], self.logs, environment)
        self.programs.append(program)
        await program.start()
        return program

    async def healthy(self, program, port, seconds=20):
        async def look():
            if program.code is not None:
                raise Failed(f"{program.name} ended with exit code {program.code} at its start")
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            try:
                writer.write(
                    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                line = await asyncio.wait_for(reader.readline(), 2)
                return b" 200" in line
            except (OSError, asyncio.TimeoutError):
                return False
            finally:
                writer.close()

        await until(seconds, f"/healthz of {program.name}", look)

    async def start_runner(self, *arguments, env=None):
        self.runner = await self.launch(
            "runner", ["--listen", f"127.0.0.1:{self.runner_port}", *arguments], env=env
        )
        await self.healthy(self.runner, self.runner_port)

    async def start_host(self):
        place = f"{TASK}={CONTAINER}@http://127.0.0.1:{self.runner_port}"
        self.host = await self.launch(
            "host", ["--listen", f"127.0.0.1:{self.host_port}", "--task", place]
        )
        await self.healthy(self.host, self.host_port)

    async def start_agent(self, wait=True, delay=5):
        self.agent = await self.launch(
            "agent",
            ["--runner-url", f"ws://127.0.0.1:{self.runner_port}", "--container-id", CONTAINER]
            + ["--reconnect-delay", delay],
        )
        if wait:
            await self.registered()
        return self.agent

    async def registered(self, seconds=20):
        """Waits until the runner answers a client of the container with CONNECTED."""
        await until(seconds, "the registration of the agent", self.is_registered, 0.1)

    async def is_registered(self, port=9):
        uri = f"ws://127.0.0.1:{self.runner_port}/ws/forward/{CONTAINER}/{port}?proto=tcp"
        try:
            async with connect(uri, proxy=None, compression=None, open_timeout=5) as ws:
                return await asyncio.wait_for(ws.recv(), 15) == "CONNECTED"
        except Exception:  # whatever it is, it is not registered
            return False

    async def start(self):
        await self.start_runner()
        await self.start_agent()
        await self.start_host()

    async def forward(
        self, remote, *arguments, task=TASK, proto="tcp", side=None, ready=True, seconds=20
    ):
        command = [task, remote, "--local-port", 0, "--host", f"ws://127.0.0.1:{self.host_port}"]
        if proto != "tcp":
            command += ["--proto", proto]
        program = await self.launch("forward", [*command, *arguments], side=side, kind=Forward)
        if ready:
            await program.ready(seconds, remote, proto)
        return program

    def all_alive(self):
        for program in self.programs:
            check(program.code is None, f"{program.name} ended with exit code {program.code}")

    async def close(self):
        for program in self.programs:  # a stopped one would not see SIGTERM
            if program.process:
                program.signal(signal.SIGCONT)
        await asyncio.gather(*(program.stop() for program in self.programs))

    def tails(self):
        return "\n".join(text for program in self.programs if (text := program.tail()))


# Services


class Service:
    """A TCP service; the app's first nine bytes are a command and a size.

    E echo
    U read size bytes, answer their sha256
    D send the sha256 of size bytes, then the bytes
    B both at once, then send the sha256 of the bytes received
    S send size bytes (0: without end) and read nothing
    H read to the end, then answer the sha256
    F send size bytes and end that direction, then read to the end into `received`
    V send size bytes, then reset once the app has sent a byte
    N read to the end, answer nothing
    R read nothing at all
    """

    HEADER = struct.Struct("!cQ")
    blob = None

    def __init__(self):
        if Service.blob is None:
            Service.blob = os.urandom(32 * MIB)
        self.live = 0
        self.sent = 0
        self.received = asyncio.Queue()
        self.tasks = set()

    async def start(self, host="127.0.0.1", port=0):
        self.server = await asyncio.start_server(self.serve, host, port, limit=MIB)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def close(self):
        self.server.close()
        for task in list(self.tasks):
            task.cancel()

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        self.live += 1
        try:
            command, size = self.HEADER.unpack(await reader.readexactly(self.HEADER.size))
            await getattr(self, "do_" + command.decode())(reader, writer, size)
            while await reader.read(65536):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.live -= 1
            self.tasks.discard(asyncio.current_task())
            writer.close()

    async def send(self, writer, size):
        """`size` bytes: the blob, repeated."""
        view = memoryview(self.blob)
        sent = 0
        while not size or sent < size:
            at = sent % len(view)
            piece = view[at : min(at + 65536, at + size - sent if size else len(view))]
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            self.sent += len(piece)

    @classmethod
    def digest(cls, size):
        digest = hashlib.sha256()
        for at in range(0, size, len(cls.blob)):  # as `send` repeats it
            digest.update(memoryview(cls.blob)[: size - at])
        return digest.digest()

    async def do_E(self, reader, writer, _):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def do_U(self, reader, writer, size):
        writer.write(await hash_of(reader, size))

    async def do_D(self, _, writer, size):
        writer.write(self.digest(size))
        await self.send(writer, size)

    async def do_B(self, reader, writer, size):
        digest, _ = await asyncio.gather(hash_of(reader, size), self.send(writer, size))
        writer.write(digest)

    async def do_S(self, reader, writer, size):
        reader._transport.pause_reading()  # an end of the app is not noticed
        await self.send(writer, size)
        reader._transport.resume_reading()

    async def do_H(self, reader, writer, _):
        writer.write(hashlib.sha256(await reader.read(-1)).digest())
        await writer.drain()
        writer.close()

    async def do_F(self, reader, writer, size):
        await self.send(writer, size)
        writer.write_eof()
        await self.received.put(await reader.read(-1))

    async def do_V(self, reader, writer, size):
        await self.send(writer, size)
        await reader.readexactly(1)  # a reset discards what the other side has not read
        reset(writer)

    async def do_N(self, *_):
        """`serve` reads."""

    async def do_R(self, reader, *_):
        reader._transport.pause_reading()
        await asyncio.Event().wait()


async def hash_of(reader, size):
    digest = hashlib.sha256()
    while size:
        data = await reader.read(min(size, 65536))
        if not data:
            raise asyncio.IncompleteReadError(b"", size)
        digest.update(data)
        size -= len(data)
    return digest.digest()


# Apps


class App:
    """A connection of an application to the local end of a forward."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port, command=b"", size=0):
        app = cls(*await asyncio.open_connection("127.0.0.1", port, limit=MIB))
        if command:
            app.writer.write(Service.HEADER.pack(command, size))
        return app

    @classmethod
    async def ending(cls, port, first):
        """How a new connection ends after `first`. Data before the end is dropped."""
        try:
            app = await cls.open(port)
        except ConnectionResetError:
            return "reset"  # before connect() returned
        app.writer.write(first)
        end = await app.end()
        app.close()
        return end

    async def exactly(self, size, what):
        try:
            return await self.reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise Failed(f"{what}: ended after {len(error.partial)} of {size} bytes") from None
        except OSError as error:
            raise Failed(f"{what}: {error}") from None

    async def hash(self, size, what):
        try:
            return await hash_of(self.reader, size)
        except asyncio.IncompleteReadError as error:
            raise Failed(f"{what}: ended {error.expected} bytes early") from None
        except OSError as error:
            raise Failed(f"{what}: {error}") from None

    async def send(self, data, what="send"):
        view = memoryview(data)
        try:
            for at in range(0, len(view), 65536):
                self.writer.write(view[at : at + 65536])
                await self.writer.drain()
        except OSError as error:
            raise Failed(f"{what}: {error}") from None

    async def echo(self, data, what="echo"):
        back, _ = await asyncio.gather(self.exactly(len(data), what), self.send(data, what))
        if back != data:
            raise Failed(f"{what}: {differing(back, data)}")

    async def end(self):
        """How the connection ends: 'eof' or 'reset'. Data before the end is dropped."""
        try:
            while await self.reader.read(65536):
                pass
            return "eof"
        except OSError:
            return "reset"

    def vanish(self):
        """Ends the connection with a reset, as an application killed with unread data would."""
        reset(self.writer)

    def close(self):
        self.writer.close()


def reset(writer):
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def differing(got, want):
    at = next(at for at in range(len(want)) if got[at] != want[at])
    return f"byte {at} of {len(want)} is wrong"


def terminate_cleanly():
    """SIGTERM ends the driver as SIGINT does, so that it ends its programs."""
    main = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
