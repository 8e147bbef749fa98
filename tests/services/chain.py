"""Processes in a temporary folder, and our chain among them."""

import contextlib
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))
from environment import next_port, unconfigured  # noqa: E402

MIB = 1 << 20
TASK = "42"
CONTAINER = f"kohakuriver-vps-{TASK}"

# The version of a tunnel is a debug line.
DEBUG_LOG = {"RUST_LOG": "info,tunnel_programs=debug"}


class Failed(Exception):
    """A check failed; the text says how."""


class Cannot(Exception):
    """A check cannot be made here; the text says why."""


def check(condition, text):
    if not condition:
        raise Failed(text)


def until(seconds, what, condition, pause=0.02):
    """Waits for `condition()` to be true, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds:g} s")
        time.sleep(pause)
    return value


@contextlib.contextmanager
def within(seconds):
    """A time limit for everything inside."""

    def ring(*_):
        raise Failed(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def free_port():
    """A port that is free for TCP and for UDP."""
    while True:
        port = next_port()
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            with contextlib.suppress(OSError):
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
                return port


def connects(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def find(*names):
    """The first of these commands or patterns that exists."""
    places = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    for name in names:
        if name.startswith("/"):
            found = sorted(pathlib.Path("/").glob(name[1:]))
            if found:
                return str(found[-1])
        elif path := shutil.which(name, path=places):
            return path
    raise Cannot(f"{names[0]} is not installed: run tests/services/install.sh")


def other_user(*names):
    """The user of a server: the first of these that exists, if we are root, else ourselves."""
    if os.getuid() != 0:
        return None
    for name in (*names, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Cannot(f"no user {names[0]}")


def surroundings(extra=()):
    """The environment of the services and of the programs."""
    usual = unconfigured().items()
    kept = {key: value for key, value in usual if not key.startswith("PG")}
    return {**kept, "LC_ALL": "C.UTF-8", **dict(extra)}


def demoted(user):
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Process:
    """A process in a group of its own, with its output in two files."""

    def __init__(self, name, command, logs, user=None, env=(), **more):
        self.name = name
        self.out = logs / f"{name}.out"
        self.err = logs / f"{name}.err"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            if user:
                os.fchown(out.fileno(), user.pw_uid, user.pw_gid)
                os.fchown(err.fileno(), user.pw_uid, user.pw_gid)
            self.popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=surroundings(env),
                start_new_session=True,
                **demoted(user),
                **more,
            )

    def line(self, pattern, seconds=20):
        """Waits for a line on stdout that matches."""

        def look():
            match = re.search(pattern, self.out.read_text(errors="replace"), re.M)
            self.alive(match)
            return match

        return until(seconds, f"{pattern!r} of {self.name}", look)

    def alive(self, enough=None):
        code = self.popen.poll()
        check(enough or code is None, f"{self.name} ended with exit code {code}")

    def listens(self, port, seconds=20):
        def look():
            self.alive()
            return connects(port)

        until(seconds, f"{self.name} on port {port}", look)

    def send(self, number):
        if self.popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, number)

    def stop(self, number=signal.SIGTERM, grace=5):
        """Sends SIGTERM, then SIGKILL. True if SIGTERM was enough."""
        self.send(number)
        try:
            self.popen.wait(grace)
            return True
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.popen.wait()
            return False

    def tail(self, lines=15):
        text = []
        for path in (self.out, self.err):
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 8192))
                last = file.read().decode(errors="replace").splitlines()[-lines:]
            text += [f"    {path.name}: {line[:300]}" for line in last]
        return text


class Place:
    """A temporary folder, and the processes that run in it."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="services-"))
        self.folder.chmod(0o755)  # the servers' users have to get in
        self.logs = self.folder / "logs"
        self.logs.mkdir()
        self.processes = []

    def subfolder(self, name, user=None):
        folder = self.folder / name
        folder.mkdir()
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        return folder

    def start(self, name, command, **more):
        count = sum(process.name.split("-")[0] == name for process in self.processes)
        if count:
            name = f"{name}-{count + 1}"
        process = Process(name, command, self.logs, **more)
        self.processes.append(process)
        return process

    def run(self, command, seconds=60, user=None, code=0, env=(), **more):
        """Runs a command and returns its stdout. Fails unless the exit code is `code`."""
        command = [str(part) for part in command]
        more.setdefault("stdin", subprocess.DEVNULL)
        more.setdefault("stdout", subprocess.PIPE)
        try:
            done = subprocess.run(
                command,
                stderr=subprocess.PIPE,
                timeout=seconds,
                env=surroundings(env),
                **demoted(user),
                **more,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{' '.join(command)[:200]}: not done within {seconds:g} s") from None
        if done.returncode != code:
            said = done.stderr.decode(errors="replace").strip()[-500:]
            raise Failed(f"{' '.join(command)[:200]}: exit code {done.returncode}, {said}")
        return done.stdout.decode(errors="replace") if done.stdout is not None else None

    def run_all(self, commands, seconds=60):
        """Runs commands in parallel, each with its stdout in a file. All have to exit with 0."""
        running, files = [], []
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        end = time.monotonic() + seconds
        try:
            for number, command in enumerate(commands):
                files.append(folder / str(number))
                with open(files[-1], "wb") as out, open(f"{files[-1]}.err", "wb") as err:
                    running.append(
                        subprocess.Popen(
                            [str(part) for part in command],
                            stdin=subprocess.DEVNULL,
                            stdout=out,
                            stderr=err,
                            env=surroundings(),
                        )
                    )
            for popen, file in zip(running, files):
                try:
                    code = popen.wait(max(0.1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    raise Failed(
                        f"{' '.join(popen.args)[:200]}: not done within {seconds:g} s"
                    ) from None
                said = pathlib.Path(f"{file}.err").read_text(errors="replace").strip()[-500:]
                check(code == 0, f"{' '.join(popen.args)[:200]}: exit code {code}, {said}")
        finally:
            for popen in running:
                if popen.poll() is None:
                    popen.kill()
                    popen.wait()
        return files

    def tails(self):
        return [line for process in self.processes for line in process.tail()]

    def close(self):
        for process in reversed(self.processes):
            process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Chain:
    """Our programs in a folder: runner, agent, host, and a forward for each call of `forward`."""

    def __init__(self, place, programs, agent=None, empty_root=False):
        self.place = place
        self.programs = programs
        self.agent_program = agent or programs / "agent"
        self.empty_root = empty_root
        self.root = None
        self.log = DEBUG_LOG

    def start(self, *runner_arguments):
        self.start_runner("127.0.0.1:0", *runner_arguments)
        self.start_agent()
        self.start_host()
        return self

    def start_runner(self, address, *arguments):
        self.runner = self.launch("runner", "--listen", address, *arguments)
        self.runner_url = f"127.0.0.1:{self.port_of(self.runner)}"

    def start_agent(self, runner=None, *arguments):
        """Starts the agent and waits until it is registered. `runner` is another way to it."""
        command = self.agent_command(f"ws://{runner or self.runner_url}", CONTAINER)
        self.agent = self.place.start("agent", [*command, *arguments], env=self.log)
        until(20, "the registration of the agent", lambda: self.agent.alive() or self.agents() == 1)

    def start_host(self, address="127.0.0.1:0"):
        place = f"{TASK}={CONTAINER}@http://{self.runner_url}"
        self.host = self.launch("host", "--listen", address, "--task", place)
        self.host_url = f"{address.rpartition(':')[0]}:{self.port_of(self.host)}"

    def agent_command(self, url, container):
        arguments = ["--runner-url", url, "--container-id", container, "--reconnect-delay", "1"]
        if not self.empty_root:
            return [self.agent_program, *arguments]
        if self.root is None:
            self.root = self.place.subfolder("root")
            shutil.copyfile(self.agent_program, self.root / "agent")
            (self.root / "agent").chmod(0o555)
        become_root = [] if os.getuid() == 0 else [find("unshare"), "--map-root-user"]
        command = [*become_root, find("chroot")]
        tried = subprocess.run([*command, "/", "true"], capture_output=True, check=False)
        if tried.returncode != 0:
            said = tried.stderr.decode(errors="replace").strip()
            raise Cannot(f"an empty root needs root or user namespaces: {said}")
        return [*command, self.root, "/agent", *arguments]

    def launch(self, role, *arguments, prefix=()):
        command = [*prefix, self.programs / role, *arguments]
        return self.place.start(role, command, env=self.log)

    def forward(self, *ports, local=(), task=TASK, base=None, options=(), prefix=()):
        """Forwards ports and returns the local ones. A port is a number, or ends in `/udp`."""
        specs = []
        for port, own in zip(ports, [*local, *[0] * len(ports)]):
            number, slash, proto = str(port).partition("/")
            specs.append(f"{number}:{own}{slash}{proto}")
        base = base or f"ws://{self.host_url}"
        command = ["forward", "--host", base, task, *specs, *options]
        self.client = self.launch(*command, prefix=prefix)
        found = []
        for port in ports:
            number, _, proto = str(port).partition("/")
            line = self.client.line(
                rf"^Listening on 127\.0\.0\.1:(\d+) \({proto or 'tcp'}\) "
                rf"-> task {task} port {number}$"
            )
            found.append(int(line[1]))
        return found[0] if len(found) == 1 else found

    def port_of(self, server):
        return int(server.line(r"^Listening on [\d.]+:(\d+)")[1])

    def agents(self):
        return self.metric("runner_agents")

    def metric(self, name):
        """A value of the runner's page."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://{self.runner_url}/metrics", timeout=5
        ) as page:
            text = page.read().decode()
        found = re.search(rf"^\w*{name} (\d+)", text, re.M)
        check(found, f"the runner has no metric {name}")
        return int(found[1])
