#!/usr/bin/env python3
"""The page of examples/embed_browser in headless Chromium, with a real runner behind it.

    .ci/embed-browser          # builds the page and runs this

nginx serves the page and passes its WebSocket on: a runner without a token takes none from pages of
another origin. Exit code 0 if nothing failed, 77 if something needed is missing.
"""

import argparse
import http.server
import pathlib
import shutil
import sys
import threading

from browser import browser
from chain import Cannot, Chain, Failed, Place, check, free_port, until
from web import Web

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

TUNNEL_LOCATION = """location /api/tunnel/ {{
            proxy_pass http://{runner};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
        }}"""

# More than a window, so that credit has to come back.
LINES = [f"line {number} of the page behind the tunnel" for number in range(20_000)]


class Service(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = "\n".join(LINES).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve_page(place, page, runner):
    server = Web(place, TUNNEL_LOCATION.format(runner=runner))
    shutil.copytree(page, server.www, dirs_exist_ok=True)
    return server.port


def run(place, options):
    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    chain = Chain(place, options.programs)
    chain.start_runner("127.0.0.1:0", "--target", "vm-7=127.0.0.1")
    origin = f"127.0.0.1:{serve_page(place, options.page, chain.runner_url)}"

    with browser(place) as chromium:

        def shown(name, port, last):
            url = f"http://{origin}/?port={port}&url=ws://{origin}/api/tunnel/{name}"
            text = chromium.open(url)
            try:
                until(30, f"{last!r} in the page", lambda: last in text(), 0.1)
            except Failed as failed:
                raise Failed(f"{failed}; it shows {text()[-300:]!r}") from None
            print(f"ok    page: {last}", flush=True)
            return text()

        text = shown("vm-7", service.server_port, "(end)")
        check("\n".join(LINES) in text, f"the page shows something else: {text[:200]!r}")
        shown("vm-7", free_port(), "failed: ")
        shown("vm-8", service.server_port, "failed: no agent is connected for vm-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=pathlib.Path, required=True, metavar="DIR")
    folder = ROOT / "target/release/examples"
    parser.add_argument("--programs", type=pathlib.Path, default=folder, metavar="DIR")
    options = parser.parse_args()
    place = Place()
    try:
        run(place, options)
    except Cannot as reason:
        print(reason)
        return 77
    except Failed as reason:
        print(f"FAIL  page: {reason}", *place.tails(), sep="\n")
        return 1
    finally:
        place.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
