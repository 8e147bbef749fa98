"""netcat, which ends its direction and then waits for the reply, with `sort` as the service."""

import random
import socket
import subprocess
import threading

from chain import check, find
from files import sha256

LINES = 400_000


class Server:
    """Like inetd: one process per connection, with the socket as its stdin and stdout."""

    def __init__(self, *command):
        self.command = command
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            connection, _ = self.listener.accept()
            process = subprocess.Popen(
                self.command, stdin=connection, stdout=connection, env={"LC_ALL": "C"}
            )
            connection.close()
            threading.Thread(target=process.wait, daemon=True).start()


def check_all(bench):
    place = bench.place
    nc = find("nc.openbsd")
    sort, wc = Server(find("sort")), Server(find("wc"), "-c")
    lines = [f"{random.Random(number).randrange(10**40):040}" for number in range(LINES)]
    unsorted, ordered = place.folder / "unsorted", place.folder / "ordered"
    unsorted.write_text("".join(f"{line}\n" for line in lines))
    ordered.write_text("".join(f"{line}\n" for line in sorted(lines)))
    sort_port, wc_port = bench.chain.start().forward(sort.port, wc.port)

    def ask(port, path):
        out = place.folder / "reply"
        with open(path, "rb") as question, open(out, "wb") as reply:
            place.run([nc, "-N", "127.0.0.1", port], stdin=question, stdout=reply)
        return out

    with bench.check(
        f"half-close: {unsorted.stat().st_size / 1e6:.0f} MB to sort, and as many back"
    ):
        reply = ask(sort_port, unsorted)
        check(
            reply.stat().st_size == ordered.stat().st_size,
            f"{reply.stat().st_size} bytes came back",
        )
        check(sha256(reply) == sha256(ordered), "not sorted, or other lines")

    with bench.check("half-close: a short reply to much"):
        check(
            ask(wc_port, unsorted).read_text().strip() == str(unsorted.stat().st_size),
            "another count",
        )

    with bench.check("half-close at once: a reply to nothing"):
        check(ask(wc_port, "/dev/null").read_text().strip() == "0", "another count")

    with bench.check("20 at once"):
        command = ["sh", "-c", f'printf "b\\n$0\\na\\n" | "{nc}" -N 127.0.0.1 {sort_port}']
        for number, reply in enumerate(
            place.run_all([[*command, f"line-{number}"] for number in range(20)])
        ):
            check(
                reply.read_text() == f"a\nb\nline-{number}\n",
                f"client {number} got {reply.read_text()!r}",
            )
