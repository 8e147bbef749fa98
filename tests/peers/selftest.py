#!/usr/bin/env python3
"""Checks at the level of messages that the peers have the quirks of the deployed programs."""

import asyncio
import os
import pathlib
import shutil
import sys
import tempfile

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

import wire
from chain import (
    CONTAINER,
    MIB,
    App,
    Chain,
    Failed,
    Service,
    check,
    free_port,
    refusing_socket,
    within,
)

ECHO = Service.HEADER.pack(b"E", 0)


async def message(ws, seconds=3):
    """The next message, decoded, or None if none comes."""
    try:
        got = await asyncio.wait_for(ws.recv(), seconds)
    except asyncio.TimeoutError:
        return None
    return got if isinstance(got, str) else wire.unpack(got)


async def session(chain, port, place="runner"):
    if place == "runner":
        uri = f"ws://127.0.0.1:{chain.runner_port}/ws/forward/{CONTAINER}/{port}?proto=tcp"
    else:
        uri = f"ws://127.0.0.1:{chain.host_port}/ws/forward/42/{port}?proto=tcp"
    ws = await connect(uri, proxy=None)
    first = await message(ws)
    check(first == "CONNECTED", f"the first text is {first!r}")
    return ws


def same(got, *want):
    check(got == want, f"got {got}, want {want}")


async def expect(ws, *want):
    same(await message(ws) or (), *want)


async def ended(ws, code=None):
    try:
        await asyncio.wait_for(ws.wait_closed(), 3)
    except asyncio.TimeoutError:
        raise Failed("the session goes on") from None
    check(code is None or ws.close_code == code, f"close code {ws.close_code}")


class FakeAgent:
    """Replaces an agent, or the runner of an agent, and records."""

    def __init__(self):
        self.ws = asyncio.get_running_loop().create_future()

    async def __call__(self, ws):
        self.ws.set_result(ws)
        await ws.wait_closed()


async def agent_talks(chain, service):
    """The agent alone: port 0, PONG without payload, second CONNECT ignored, unknown ignored."""
    port = free_port()
    fake = FakeAgent()
    async with serve(fake, "127.0.0.1", port, ping_interval=None):
        await chain.launch(
            "agent", ["--runner-url", f"ws://127.0.0.1:{port}", "--container-id", CONTAINER]
        )
        ws = await within(10, "the agent", fake.ws)
        check(
            "permessage-deflate" in ws.request.headers.get("Sec-WebSocket-Extensions", ""),
            "no deflate offered",
        )
        await ws.send(wire.pack(wire.PING, wire.TCP, 77, 5, b"payload"))
        await expect(ws, wire.PONG, wire.TCP, 77, 0, b"")
        for odd in (
            b"short",
            wire.pack(99, wire.TCP, 1),
            wire.pack(wire.CONNECT, 9, 1, service.port),
            "text",
        ):
            await ws.send(odd)
        await ws.send(wire.pack(wire.CONNECT, wire.TCP, 1, service.port))
        await ws.send(wire.pack(wire.DATA, wire.TCP, 1, 0, ECHO + b"early"))  # before CONNECTED
        await expect(ws, wire.CONNECTED, wire.TCP, 1, 0, b"")
        await expect(ws, wire.DATA, wire.TCP, 1, 0, b"early")
        await ws.send(wire.pack(wire.CONNECT, wire.TCP, 1, service.port))
        await ws.send(wire.pack(wire.DATA, wire.TCP, 1, 0, b"still the first"))
        await expect(ws, wire.DATA, wire.TCP, 1, 0, b"still the first")
        await ws.send(wire.pack(wire.CLOSE, wire.TCP, 1))
        await expect(ws, wire.CLOSE, wire.TCP, 1, 0, b"")

        with refusing_socket() as sock:
            await ws.send(wire.pack(wire.CONNECT, wire.TCP, 2, sock.getsockname()[1]))
            kind, proto, client, at, reason = await message(ws)
            same((kind, proto, client, at, bool(reason)), wire.ERROR, wire.TCP, 2, 0, True)

        # After CLOSE the service's bytes still arrive, under an id that is free again.
        await ws.send(wire.pack(wire.CONNECT, wire.TCP, 3, service.port))
        await expect(ws, wire.CONNECTED, wire.TCP, 3, 0, b"")
        await ws.send(wire.pack(wire.DATA, wire.TCP, 3, 0, Service.HEADER.pack(b"S", 64 * MIB)))
        await ws.send(wire.pack(wire.CLOSE, wire.TCP, 3))
        late = 0
        while (got := await message(ws)) and got[0] == wire.DATA:
            late += len(got[4])
        same((late, got), 64 * MIB, (wire.CLOSE, wire.TCP, 3, 0, b""))

        # At the service's EOF, CLOSE is sent, and later data for the id is still written.
        await ws.send(wire.pack(wire.CONNECT, wire.TCP, 4, service.port))
        await expect(ws, wire.CONNECTED, wire.TCP, 4, 0, b"")
        await ws.send(wire.pack(wire.DATA, wire.TCP, 4, 0, Service.HEADER.pack(b"F", 3)))
        check((await message(ws))[0] == wire.DATA, "no DATA before the EOF")
        await expect(ws, wire.CLOSE, wire.TCP, 4, 0, b"")
        await ws.send(wire.pack(wire.DATA, wire.TCP, 4, 0, b"after the end"))
        await ws.send(wire.pack(wire.CLOSE, wire.TCP, 4))
        same((await within(3, "the service's bytes", service.received.get()),), b"after the end")

        # A service that reads nothing: 256 messages, then the WebSocket is not read.
        await ws.send(wire.pack(wire.CONNECT, wire.TCP, 5, service.port))
        await expect(ws, wire.CONNECTED, wire.TCP, 5, 0, b"")
        await ws.send(wire.pack(wire.DATA, wire.TCP, 5, 0, Service.HEADER.pack(b"R", 0)))

        async def fill():
            for _ in range(1000):
                await ws.send(wire.pack(wire.DATA, wire.TCP, 5, 0, os.urandom(65536)))

        filling = asyncio.create_task(fill())
        await asyncio.sleep(2)
        check(not filling.done(), "a stalled service did not stall the WebSocket")
        filling.cancel()
        ws.transport.abort()


async def runner_with_agent(chain, service):
    """Ids and unknown types pass, PONG does not, CLOSE ends delivery, a lost client is closed."""
    await chain.start_runner()
    uri = f"ws://127.0.0.1:{chain.runner_port}/ws/tunnel/{CONTAINER}"
    async with connect(uri, proxy=None) as agent:
        ws = await session(chain, 80)
        await ws.send(wire.pack(wire.CONNECT, wire.TCP, 7, 80))
        await expect(agent, wire.CONNECT, wire.TCP, 7, 80, b"")
        for odd in ((wire.PING, wire.TCP, 3, 0, b"x"), (99, 5, 6, 7, b"y")):
            await ws.send(wire.pack(*odd))
            await expect(agent, *odd)
        for kind in (wire.PONG, wire.PING, 99):
            await agent.send(wire.pack(kind, wire.TCP, 7))
        await agent.send(wire.pack(wire.CONNECTED, wire.TCP, 7))
        await agent.send(wire.pack(wire.DATA, wire.TCP, 8, 0, b"nobody's"))
        await expect(ws, wire.CONNECTED, wire.TCP, 7, 0, b"")
        await ws.send(wire.pack(wire.CLOSE, wire.TCP, 7))
        await expect(agent, wire.CLOSE, wire.TCP, 7, 0, b"")
        await agent.send(wire.pack(wire.DATA, wire.TCP, 7, 0, b"late"))
        check(await message(ws, 0.5) is None, "something came after CLOSE")
        for client in (8, 9):
            await ws.send(wire.pack(wire.CONNECT, wire.TCP, client, 80))
            await expect(agent, wire.CONNECT, wire.TCP, client, 80, b"")
        await ws.close()
        closed = {await message(agent), await message(agent)}
        same((closed,), {(wire.CLOSE, wire.TCP, client, 0, b"") for client in (8, 9)})
        ws = await session(chain, 80)
        await ws.send("text")
        await ended(ws)


async def runner_without_agent(chain, service):
    await chain.start_runner()
    uri = f"ws://127.0.0.1:{chain.runner_port}/ws/forward/{CONTAINER}/80?proto=tcp"
    async with connect(uri, proxy=None) as ws:
        check((await message(ws)).startswith("Error: "), "no Error text")
        await ended(ws, 1011)


async def runner_with_vm(chain, service):
    """Direct mode: the port is in CONNECTED and ERROR, PING is ignored, UDP is TCP."""
    await chain.start_runner("--target", f"{CONTAINER}=127.0.0.1")
    ws = await session(chain, service.port)
    await ws.send(wire.pack(wire.PING, wire.TCP, 1))
    for client, proto in ((1, wire.TCP), (2, wire.UDP)):
        await ws.send(wire.pack(wire.CONNECT, proto, client, service.port))
        await ws.send(wire.pack(wire.DATA, proto, client, 0, ECHO + b"early"))
        await expect(ws, wire.CONNECTED, wire.TCP, client, service.port, b"")
        await expect(ws, wire.DATA, wire.TCP, client, 0, b"early")
        await ws.send(wire.pack(wire.CLOSE, proto, client))
    with refusing_socket() as sock:
        port = sock.getsockname()[1]
        await ws.send(wire.pack(wire.CONNECT, wire.TCP, 3, port))
        kind, _, client, at, reason = await message(ws)
        same((kind, client, at, bool(reason)), wire.ERROR, 3, port, True)
    await ws.send(wire.pack(wire.CONNECT, wire.TCP, 4, service.port))
    await ws.send(wire.pack(wire.DATA, wire.TCP, 4, 0, Service.HEADER.pack(b"V", 3)))
    await expect(ws, wire.CONNECTED, wire.TCP, 4, service.port, b"")
    check((await message(ws))[0] == wire.DATA, "no DATA before the reset")
    await ws.send(wire.pack(wire.DATA, wire.TCP, 4, 0, b"!"))
    kind, _, client, at, _ = await message(ws)
    same((kind, client, at), wire.ERROR, 4, service.port)  # in mid-stream
    await ws.close()


async def host_passes_and_limits(chain, service):
    """Errors, close codes, the client's headers dropped, 1 MiB, text ends the session."""
    fake = FakeAgent()

    async def runner(ws):
        await ws.send("CONNECTED")
        await fake(ws)

    await chain.start_host()
    base = f"ws://127.0.0.1:{chain.host_port}/ws/forward"
    for task, code in (("4711", 1008), ("42", 1011)):  # unknown; its runner is not there
        async with connect(f"{base}/{task}/80?proto=tcp", proxy=None) as ws:
            check((await message(ws)).startswith("Error: "), "no Error text")
            await ended(ws, code)

    async with serve(runner, "127.0.0.1", chain.runner_port):
        for last in ("text from the client", "text from the runner", "too long"):
            fake.ws = asyncio.get_running_loop().create_future()
            ws = await connect(
                f"{base}/42/80?proto=tcp",
                proxy=None,
                subprotocols=["any"],
                additional_headers={"Authorization": "Bearer x"},
            )
            check(ws.subprotocol is None, "a subprotocol was chosen")
            check(await message(ws) == "CONNECTED", "no CONNECTED")
            other = await within(3, "the runner's side", fake.ws)
            check(
                "Authorization" not in other.request.headers,
                "the client's header reached the runner",
            )
            check(
                "Sec-WebSocket-Protocol" not in other.request.headers,
                "the subprotocol reached the runner",
            )
            check(other.request.path == f"/ws/forward/{CONTAINER}/80?proto=tcp", other.request.path)
            for sender, receiver in ((ws, other), (other, ws)):
                odd = (99, 5, 0xDEADBEEF, 7, bytes(MIB - 8))
                await sender.send(wire.pack(*odd))
                await expect(receiver, *odd)
            if last == "text from the client":
                await ws.send(last)
            else:
                await other.send(last if last.startswith("text") else bytes(MIB + 1))
            await ended(other)
            try:
                while True:
                    await within(3, "the client's end", ws.recv())
            except ConnectionClosed:
                pass


async def cli_is_optimistic(chain, service):
    """Ids from 1, DATA before CONNECTED, port only in CONNECT, CLOSE on EOF, at most 1 MiB."""
    fake = FakeAgent()

    async def host(ws):
        await ws.send("CONNECTED")
        await fake(ws)

    async with serve(host, "127.0.0.1", chain.host_port):
        forward = await chain.forward(5000)
        ws = await fake.ws
        check(
            "permessage-deflate" in ws.request.headers.get("Sec-WebSocket-Extensions", ""),
            "no deflate offered",
        )
        for client in (1, 2):
            app = await App.open(forward.port)
            await app.send(b"hello")
            await expect(ws, wire.CONNECT, wire.TCP, client, 5000, b"")
            await expect(ws, wire.DATA, wire.TCP, client, 0, b"hello")
            app.writer.write_eof()
            await expect(ws, wire.CLOSE, wire.TCP, client, 0, b"")
            await ws.send(wire.pack(wire.DATA, wire.TCP, client, 0, b"the reply is lost"))
            check(not await app.reader.read(-1), "a reply after the app's EOF")
            app.close()
        await ws.send(wire.pack(99, 9, 1))  # ignored
        app = await App.open(forward.port)
        await expect(ws, wire.CONNECT, wire.TCP, 3, 5000, b"")
        await ws.send(wire.pack(wire.DATA, wire.TCP, 3, 0, bytes(MIB)))
        await ended(ws, 1009)
        await within(3, "the end of the CLI", forward.process.wait())
        check(forward.code == 0, f"exit code {forward.code}")


async def run():
    logs = pathlib.Path(tempfile.mkdtemp(prefix="selftest-"))
    passed = failed = 0
    for test in (
        agent_talks,
        runner_with_agent,
        runner_without_agent,
        runner_with_vm,
        host_passes_and_limits,
        cli_is_optimistic,
    ):
        chain = Chain(("theirs",) * 4, ".", logs / test.__name__)
        service = await Service().start()
        try:
            await within(60, test.__name__, test(chain, service))
            passed += 1
            print(f"pass  {test.__name__}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAIL  {test.__name__}  {error if isinstance(error, Failed) else repr(error)}")
            print(chain.tails(), flush=True)
        finally:
            await chain.close()
            await service.close()
    shutil.rmtree(logs)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(run()))
