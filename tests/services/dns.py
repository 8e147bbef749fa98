"""dnsmasq with dig."""

import re

from chain import check, find, free_port, other_user

NAMES = 400
LARGE = [letter * 250 for letter in "abcdefghijklmn"]


class Server:
    def __init__(self, place):
        self.place = place
        self.user = other_user("dnsmasq")
        self.port = free_port()
        self.names = place.folder / "names"
        self.names.write_text(
            "".join(f"{address(number)} name-{number}.test\n" for number in range(NAMES))
        )
        self.start()

    def start(self):
        text = ",".join(LARGE)
        self.process = self.place.start(
            "dnsmasq",
            [
                find("dnsmasq"),
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file",
                "--log-facility=-",
            ]
            + [
                "--no-resolv",
                "--no-hosts",
                f"--addn-hosts={self.names}",
                "--local=/test/",
                "--edns-packet-max=4096",
            ]
            + [
                f"--port={self.port}",
                "--listen-address=127.0.0.1",
                "--bind-interfaces",
                f"--txt-record=large.test,{text}",
            ],
            user=self.user,
        )
        self.process.listens(self.port)


def address(number):
    return f"10.9.{number // 250}.{number % 250 + 1}"


def check_all(bench):
    place = bench.place
    server = Server(place)
    udp, tcp = bench.chain.start().forward(f"{server.port}/udp", server.port)

    def dig(port, *arguments, code=0):
        options = ["+time=5", "+tries=1", "+nocookie"]
        return place.run(
            [find("dig"), "-p", port, "@127.0.0.1", *options, *arguments], 60, code=code
        )

    with bench.check("an answer over UDP"):
        answer = dig(udp, "+notcp", "+ignore", "name-7.test")
        check(re.search(rf"\s{address(7)}$", answer, re.M), answer)
        check("(UDP)" in answer, answer)

    with bench.check("an answer over TCP"):
        answer = dig(tcp, "+tcp", "name-8.test")
        check(re.search(rf"\s{address(8)}$", answer, re.M), answer)
        check("(TCP)" in answer, answer)

    with bench.check("no such name"):
        check("status: NXDOMAIN" in dig(udp, "nothing.test"), "another status")

    with bench.check("a large answer (EDNS) in one datagram") as figures:
        answer = dig(udp, "+bufsize=4096", "+notcp", "+ignore", "large.test", "TXT")
        figures.append(f"{whole(answer, '(UDP)')} bytes")

    with bench.check("a large answer does not fit 512 bytes: truncated, then whole over TCP"):
        answer = dig(udp, "+noedns", "+notcp", "+ignore", "large.test", "TXT")
        check(re.search(r"flags: [a-z ]*\btc\b", answer), answer)
        whole(dig(tcp, "+tcp", "large.test", "TXT"), "(TCP)")

    with bench.check(f"{NAMES} names, one flow each, each its own address"):
        batch = place.folder / "batch"
        batch.write_text("".join(f"name-{number}.test A +short\n" for number in range(NAMES)))
        got = dig(udp, "-f", batch).split()
        check(
            got == [address(number) for number in range(NAMES)],
            f"{len(got)} answers, or others: {got[:5]}",
        )

    with bench.check("20 dig at once"):
        # Without a tunnel too, about one of 10,000 questions has no answer when 20 ask at once. dig
        # asks again then, and prints a line that begins with ";;".
        command = [find("dig"), "-p", udp, "@127.0.0.1", "+time=2", "+tries=3", "+short"]
        numbers = [range(first, NAMES, 20) for first in range(20)]
        got = place.run_all(
            [[*command, *(f"name-{number}.test" for number in part)] for part in numbers]
        )
        for file, part in zip(got, numbers):
            lines = file.read_text().splitlines()
            answers = [line for line in lines if not line.startswith(";;")]
            check(
                answers == [address(number) for number in part],
                f"other answers in {file.name}: {lines}",
            )

    with bench.check("the server is restarted: the next question is answered", 30):
        server.process.stop()
        dig(udp, "+time=1", "name-1.test", code=9)
        server.start()
        check(address(9) in dig(udp, "name-9.test"), "no answer")


def whole(answer, way):
    check(way in answer, answer)
    for part in LARGE:
        check(f'"{part}"' in answer, f"no {part[0]}: {answer}")
    return int(re.search(r"MSG SIZE\s+rcvd: (\d+)", answer)[1])
