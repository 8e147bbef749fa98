"""nginx with curl."""

import time

from chain import CONTAINER, MIB, check, find
from files import rate, same, write
from web import Web

BIG = 256 * MIB
SMALL = 2 * MIB
DOWNLOADS = 50
PUT = 128 * MIB

PUT_LOCATION = """location /put/ {
            dav_methods PUT;
            create_full_put_path on;
            client_max_body_size 0;
        }"""


class Server(Web):
    def __init__(self, place):
        super().__init__(place, PUT_LOCATION)
        self.big = write(self.www / "big", BIG, 0)


def curl(*arguments):
    return [find("curl"), "--silent", "--show-error", "--fail", *arguments]


def check_all(bench):
    place = bench.place
    server = Server(place)
    small = [
        write(server.www / f"small-{number}", SMALL, number) for number in range(1, DOWNLOADS + 1)
    ]
    port = bench.chain.start().forward(server.port)
    url = f"http://127.0.0.1:{port}"

    with bench.check("256 MiB down, sha256") as figures:
        download(place, f"{url}/big", server, figures)

    with bench.check(f"{DOWNLOADS} downloads at once, each its own 2 MiB, sha256"):
        got = place.run_all([curl(f"{url}/{file.name}") for file in small])
        for file, original in zip(got, small):
            same(file, original)

    with bench.check("128 MiB up by PUT, sha256") as figures:
        original = write(place.folder / "upload", PUT, 100)
        start = time.monotonic()
        place.run(curl("--upload-file", original, f"{url}/put/upload"))
        figures.append(rate(PUT, time.monotonic() - start))
        same(server.www / "put/upload", original)

    with bench.check("up and down at once, sha256"):
        place.run_all(
            [
                curl("--upload-file", original, f"{url}/put/beside"),
                curl("--output", place.folder / "beside", f"{url}/big"),
            ]
        )
        same(server.www / "put/beside", original)
        same(place.folder / "beside", server.big)

    with bench.check("keep-alive: 40 requests on one connection"):
        wanted = [f"{url}/small-{number}" for number in range(1, 41)]
        into = place.subfolder("kept")
        outputs = [
            part
            for address in wanted
            for part in ("--output", into / address.rpartition("/")[2], address)
        ]
        counts = place.run(curl("--write-out", "%{num_connects}\n", *outputs)).split()
        check(sorted(counts) == ["0"] * 39 + ["1"], f"connections made: {counts}")
        for original in small[:40]:
            same(into / original.name, original)

    with bench.check("a range: 206 and exactly these bytes"):
        part = place.folder / "part"
        code = place.run(
            curl(
                "--range",
                "100000001-103000000",
                "--output",
                part,
                "--write-out",
                "%{http_code}",
                f"{url}/big",
            )
        )
        check(code == "206", f"status {code}")
        with open(server.big, "rb") as file:
            file.seek(100000001)
            check(part.read_bytes() == file.read(3000000), "other bytes")

    with bench.check("a download that is broken off leaves the next one whole"):
        place.run(
            curl("--max-time", "1", "--limit-rate", "1M", "--output", "/dev/null", f"{url}/big"),
            code=28,
        )
        got = place.folder / "next"
        place.run(curl("--output", got, f"{url}/small-1"))
        same(got, small[0])

    with bench.check("the tunnels speak v2 from end to end"):
        v2(bench, "forward", "agent", "runner")


def check_direct(bench):
    """Shorter ways: a client at the runner itself, and a target that the runner dials itself."""
    place, chain = bench.place, bench.chain
    server = Server(place)
    chain.start("--target", "vm-7=127.0.0.1")
    with bench.check("256 MiB through forward, host, runner and agent, v2, sha256") as figures:
        download(place, f"http://127.0.0.1:{chain.forward(server.port)}/big", server, figures)
        v2(bench, "forward", "agent", "runner")

    with bench.check("256 MiB with the runner reached directly, v2, sha256") as figures:
        port = chain.forward(server.port, task=CONTAINER, base=f"ws://{chain.runner_url}")
        download(place, f"http://127.0.0.1:{port}/big", server, figures)
        v2(bench, "forward-2")

    with bench.check(
        "256 MiB with the runner reached directly and no agent, v2, sha256"
    ) as figures:
        port = chain.forward(server.port, task="vm-7", base=f"ws://{chain.runner_url}")
        download(place, f"http://127.0.0.1:{port}/big", server, figures)
        v2(bench, "forward-3")


def download(place, url, server, figures):
    got = place.folder / "got"
    start = time.monotonic()
    place.run(curl("--output", got, url))
    figures.append(rate(BIG, time.monotonic() - start))
    same(got, server.big)
    got.unlink()


def v2(bench, *names):
    """Each of these processes logs that it agreed on version 2, and none logs the opposite."""
    for process in bench.place.processes:
        if process.name in names:
            log = process.err.read_text(errors="replace")
            check("v2=true" in log, f"{process.name} does not say v2=true")
            check("v2=false" not in log, f"{process.name} says v2=false")
