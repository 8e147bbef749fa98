"""Headless Chromium: pages with a WebSocket."""

import contextlib
import json
import os
import pathlib
import select

from chain import Failed, check, find, free_port, other_user, until

OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]


class Browser:
    """A browser with an empty profile, controlled over a pair of pipes."""

    def __init__(self, place):
        user = other_user("nobody")
        home = place.subfolder("browser", user)
        commands, self.to = os.pipe()
        self.of, answers = os.pipe()
        # It takes commands on descriptor 3 and answers on 4.
        join = f'exec 3<&{commands} 4>&{answers}; exec "$@"'
        self.process = place.start(
            "chromium",
            [
                find("bash"),
                "-c",
                join,
                "chromium",
                find("chromium"),
                *OPTIONS,
                f"--user-data-dir={home}/profile",
            ],
            user=user,
            cwd=home,
            env={"HOME": str(home), "XDG_RUNTIME_DIR": str(home)},
            pass_fds=(commands, answers),
        )
        os.close(commands)
        os.close(answers)
        self.last = 0
        self.rest = b""

    def open(self, url):
        """Opens a page. Returns a function that reads its text."""
        page = self.call("Target.createTarget", url=url)["targetId"]
        session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

        def text():
            told = self.call(
                "Runtime.evaluate",
                session,
                expression="document.body ? document.body.innerText : ''",
                returnByValue=True,
            )
            return told["result"].get("value", "")

        return text

    def call(self, method, session=None, **parameters):
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self.next()).get("id") != self.last:
            pass
        check("result" in answer, f"{method}: {answer}")
        return answer["result"]

    def next(self):
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.of], [], [], 30)
            check(ready, "the browser does not answer")
            data = os.read(self.of, 1 << 16)
            if not data:
                raise Failed("the browser ended")
            self.rest += data
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def close(self):
        self.process.stop()
        os.close(self.to)
        os.close(self.of)


@contextlib.contextmanager
def browser(place):
    started = Browser(place)
    try:
        yield started
    finally:
        started.close()


def check_all(bench):
    """A page and an echo of the `websockets` library, through the chain."""
    place = bench.place
    own = free_port()
    service = pathlib.Path(__file__).with_name("websocket_service.py")
    # The library is Debian's, so it has to be Debian's Python.
    place.start("websocket-service", ["/usr/bin/python3", service, own]).listens(own)
    port = bench.chain.start().forward(own)

    with bench.check('the page says "websocket ok" after an echo of text and 1 MiB'), browser(
        place
    ) as chromium:
        text = chromium.open(f"http://127.0.0.1:{port}/")
        shown = until(30, "an answer", lambda: text().strip().partition("waiting")[0], 0.1)
        check(shown == "websocket ok", shown)


def check_demo(bench):
    """`forward` without arguments."""
    place = bench.place
    demo = place.start("demo", [bench.programs / "forward"])
    port = int(demo.line(r"^Listening on 127\.0\.0\.1:(\d+) ")[1])

    with bench.check("the sample page's WebSocket answers"), browser(place) as chromium:
        text = chromium.open(f"http://127.0.0.1:{port}/")
        until(30, "an echo", lambda: "hello through the tunnel  (" in text(), 0.1)
        check("State: open" in text(), text())

    with bench.check("the sample's download and upload"):
        curl = [find("curl"), "--silent", "--show-error", "--fail"]
        got = place.folder / "download"
        place.run([*curl, "--output", got, f"http://127.0.0.1:{port}/download/64"])
        check(got.stat().st_size == 64 << 20, f"{got.stat().st_size} bytes")
        said = place.run([*curl, "--data-binary", f"@{got}", f"http://127.0.0.1:{port}/upload"])
        check(said == f"{64 << 20} bytes\n", said)

    with bench.check("SIGTERM ends it with exit code 0"):
        check(demo.stop(), "it had to be killed")
        check(demo.popen.returncode == 0, f"exit code {demo.popen.returncode}")
