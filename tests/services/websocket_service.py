"""A web page with an echo of the `websockets` library: python3 websocket_service.py PORT"""

import asyncio
import http
import sys

HTML = "text/html; charset=utf-8"
PAGE = b"""<!doctype html>
<title>websocket</title>
<p id="state">waiting</p>
<script>
  const tell = (text) => { document.getElementById("state").textContent = text; };
  const text = "gr\\u00fc\\u00df dich";
  const bytes = new Uint8Array(1 << 20).map((_, index) => index * 7 + (index >> 8));
  const socket = new WebSocket(`ws://${location.host}/echo`);
  socket.binaryType = "arraybuffer";
  socket.onerror = () => tell("websocket failed");
  socket.onclose = (event) => tell(`websocket closed with ${event.code}`);
  socket.onopen = () => socket.send(text);
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") {
      if (data !== text) return tell("websocket changed the text");
      return socket.send(bytes);
    }
    const back = new Uint8Array(data);
    const same = back.length === bytes.length && back.every((byte, index) => byte === bytes[index]);
    socket.onclose = ({ code, wasClean }) => {
      const ok = code === 1000 && wasClean && same;
      tell(ok ? "websocket ok" : `websocket: same ${same}, code ${code}`);
    };
    socket.close(1000);
  };
</script>
"""


async def echo(socket, *_):
    async for message in socket:
        await socket.send(message)


def answer(path, headers):
    """A status and a page, or None for what is to be a WebSocket."""
    if headers.get("Upgrade", "").lower() == "websocket":
        return None
    if path != "/":
        return http.HTTPStatus.NOT_FOUND, b""
    return http.HTTPStatus.OK, PAGE


async def page(connection, request):
    if found := answer(request.path, request.headers):
        response = connection.respond(found[0], found[1].decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = HTML
        return response


async def page_before_13(path, headers):
    if found := answer(path, headers):
        return found[0], [("Content-Type", HTML)], found[1]


async def main():
    try:
        from websockets.asyncio.server import serve
    except ImportError:
        from websockets import serve

        process = page_before_13
    else:
        process = page
    async with serve(
        echo, "127.0.0.1", int(sys.argv[1]), process_request=process, max_size=1 << 21
    ):
        await asyncio.Future()


asyncio.run(main())
