"""PostgreSQL with psql."""

import os
import pathlib
import signal
import subprocess
import time

from chain import Failed, check, find, free_port, other_user
from files import rate, sha256

ROWS = 1_000_000
TABLE = "(id int, body text)"
DIGEST = "select count(*), md5(string_agg(id || ' ' || body, ';' order by id)) from"
CLIENTS = 12


class Server:
    def __init__(self, place):
        self.place = place
        binaries = pathlib.Path(find("/usr/lib/postgresql/*/bin/initdb")).parent
        self.user = other_user("postgres")
        self.folder = place.subfolder("postgresql", self.user)
        data = self.folder / "data"
        place.run(
            [
                binaries / "initdb",
                "-D",
                data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
            ],
            user=self.user,
            cwd=self.folder,
        )
        self.port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "max_wal_size": "1GB",
            "max_connections": 50,
        }
        self.process = place.start(
            "postgresql",
            [
                binaries / "postgres",
                "-D",
                data,
                *(f"--{key}={value}" for key, value in settings.items()),
            ],
            user=self.user,
            cwd=self.folder,
        )
        self.process.listens(self.port)

    def direct(self, query):
        """The answer on the server's own socket."""
        return self.place.run(psql(self.folder, self.port, query)).strip()

    def copy(self, query, path):
        with open(path, "wb") as file:
            self.place.run(psql(self.folder, self.port, f"copy {query} to stdout"), stdout=file)
        return path


def psql(host, port, *queries):
    command = [
        find("psql"),
        "-X",
        "-q",
        "-A",
        "-t",
        "-v",
        "ON_ERROR_STOP=1",
        "-h",
        host,
        "-p",
        port,
        "-U",
        "postgres",
    ]
    for query in queries:
        command += ["-c", query]
    return command


def check_all(bench):
    place = bench.place
    server = Server(place)
    server.direct(
        f"create table source {TABLE}; create table target {TABLE};"
        f"insert into source select g, repeat(md5(g::text), 3) from generate_series(1, {ROWS}) g"
    )
    original = server.copy("source", place.folder / "original")
    digest = server.direct(f"{DIGEST} source")
    size = original.stat().st_size
    megabytes = f"{size / 1e6:.0f} MB"

    port = bench.chain.start().forward(server.port)

    def through(*queries, seconds=60):
        return place.run(psql("127.0.0.1", port, *queries), seconds)

    with bench.check(f"COPY of {megabytes} out, sha256 as on the server's own socket") as figures:
        check(size > 100e6, f"only {size} bytes")
        out = place.folder / "out"
        start = time.monotonic()
        through(f"\\copy source to '{out}'")
        figures.append(rate(size, time.monotonic() - start))
        check(sha256(out) == sha256(original), "the bytes differ")

    with bench.check(f"COPY of {megabytes} in, as many rows with the same md5") as figures:
        start = time.monotonic()
        through(f"\\copy target from '{original}'")
        figures.append(rate(size, time.monotonic() - start))
        got = server.direct(f"{DIGEST} target")
        check(got == digest, f"{got} in place of {digest}")
        check(got.startswith(f"{ROWS}|"), got)

    with bench.check(f"{CLIENTS} psql at once, each its own rows"):
        part = ROWS // CLIENTS
        ranges = [
            f"id > {number * part} and id <= {(number + 1) * part}" for number in range(CLIENTS)
        ]
        rows = [f"(select * from source where {limits} order by id)" for limits in ranges]
        expected = [sha256(server.copy(query, place.folder / "part")) for query in rows]
        got = place.run_all([psql("127.0.0.1", port, f"copy {query} to stdout") for query in rows])
        for number, (file, wanted) in enumerate(zip(got, expected)):
            check(sha256(file) == wanted, f"client {number} got other rows")

    with bench.check("a query is cancelled over a second connection", 30):
        client = subprocess.Popen(
            [str(part) for part in psql("127.0.0.1", port, "select pg_sleep(60)")],
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        try:
            sleeping = (
                "select count(*) from pg_stat_activity"
                " where query like 'select pg_sleep%' and state = 'active'"
            )
            while server.direct(sleeping) != "1":
                time.sleep(0.05)
            client.send_signal(signal.SIGINT)
            said = client.communicate(timeout=10)[1].decode()
        except subprocess.TimeoutExpired:
            raise Failed("psql does not end") from None
        finally:
            client.kill()
            client.wait()
        check("canceling statement due to user request" in said, said)

    with bench.check("the server closes on its own: psql hears why", 30):
        try:
            through("select pg_terminate_backend(pg_backend_pid())")
        except Failed as failed:
            check("terminating connection due to administrator command" in str(failed), str(failed))
        else:
            raise Failed("psql did not notice")

    # Fast shutdown, because the default of SIGTERM waits for the clients.
    server.process.stop(signal.SIGINT)
