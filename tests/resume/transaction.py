"""A psql session that holds a transaction open, and adds a row to it again and again."""

import os
import pathlib
import select
import subprocess
import threading
import time

from chain import Failed, check, surroundings
from postgresql import psql

PAUSE = 0.1


class Transaction:
    """psql through `port`. `prefix` is a command that runs it elsewhere."""

    def __init__(self, server, port, prefix=()):
        self.server = server
        self.rows = 0
        self.longest = 0.0
        self.failed = None
        self.running = True
        self.table = f"kept_{port}"
        server.direct(f"create table {self.table} (n int)")
        self.said = pathlib.Path(server.place.folder / f"psql-{port}")
        with open(self.said, "wb") as said:
            self.psql = subprocess.Popen(
                [str(part) for part in [*prefix, *psql("127.0.0.1", port)]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=surroundings(),
                start_new_session=True,
            )
        self.began = self.ask("begin; select pg_backend_pid() || '/' || txid_current()", 20)
        self.thread = threading.Thread(target=self.insert, daemon=True)
        self.thread.start()

    def ask(self, query, seconds=300):
        """The one line that the query answers."""
        try:
            self.psql.stdin.write(query.encode() + b";\n")
            self.psql.stdin.flush()
        except OSError:
            raise Failed(f"psql ended: {self.words()}") from None
        line, end = b"", time.monotonic() + seconds
        while not line.endswith(b"\n"):
            left = max(0, end - time.monotonic())
            if not select.select([self.psql.stdout], [], [], left)[0]:
                raise Failed(f"psql got no answer within {seconds:g} s")
            data = os.read(self.psql.stdout.fileno(), 4096)
            if not data:
                raise Failed(f"psql ended: {self.words()}")
            line += data
        return line.decode().strip()

    def words(self):
        self.psql.wait(5)
        return " ".join(self.said.read_text(errors="replace").split())[:200]

    def insert(self):
        try:
            while self.running:
                start = time.monotonic()
                wanted = self.rows + 1
                got = self.ask(f"insert into {self.table} values ({wanted}) returning n")
                check(got == str(wanted), f"psql got {got!r} in place of {wanted}")
                self.rows = wanted
                self.longest = max(self.longest, time.monotonic() - start)
                time.sleep(PAUSE)
        except Exception as error:
            self.failed = error

    def check(self):
        if self.failed:
            raise Failed(f"the transaction: {self.failed}")

    def commit(self):
        """The transaction is still the same one, and what it did is there after its commit."""
        self.running = False
        self.thread.join(60)
        self.check()
        check(not self.thread.is_alive(), "the transaction: psql got no answer within 60 s")
        now = self.ask("select pg_backend_pid() || '/' || txid_current()", 60)
        check(now == self.began, f"the transaction is {now} and was {self.began}")
        done = self.ask("commit; select 'done'", 60)
        check(done == "done", f"psql got {done!r} in place of its commit")
        rows = self.server.direct(f"select count(*), coalesce(sum(n), 0) from {self.table}")
        wanted = f"{self.rows}|{self.rows * (self.rows + 1) // 2}"
        check(rows == wanted, f"{rows} rows in place of {wanted}")
        self.close()
        return [f"transaction of {self.rows} rows"]

    def close(self):
        self.running = False
        self.psql.kill()
        self.psql.wait()
