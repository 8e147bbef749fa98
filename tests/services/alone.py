"""The agent by itself: which files it needs, and how it ends. Most useful with `--empty-root`."""

import signal

from chain import check, until
from files import same
from nginx import Server, curl


def check_all(bench):
    place, chain = bench.place, bench.chain
    server = Server(place)
    chain.start()
    port = chain.forward(server.port)

    def fetch(name):
        got = place.folder / name
        place.run(curl("--output", got, f"http://127.0.0.1:{port}/big"))
        same(got, server.big)
        got.unlink()

    if chain.empty_root:
        with bench.check("its root folder has the program and nothing else, before and after"):
            only(chain.root)
            fetch("first")
            only(chain.root)

        with bench.check("it has no /dev, no /proc and no /etc"):
            seen = place.run(["ls", "-A", f"/proc/{chain.agent.popen.pid}/root/"]).split()
            check(seen == ["agent"], f"it sees {seen}")

    with bench.check("the runner is killed and comes back: the next download is whole"):
        address = chain.runner_url
        chain.runner.stop(signal.SIGKILL)
        chain.start_runner(address)
        until(30, "the agent's return", lambda: chain.agents() == 1)
        fetch("second")

    with bench.check("the runner's address may be the name localhost", 30):
        other = place.start(
            "agent",
            chain.agent_command("ws://localhost:" + chain.runner_url.partition(":")[2], "other"),
        )
        until(10, "two agents", lambda: other.alive() or chain.agents() == 2)
        check(other.stop(), "SIGTERM did not end it")
        check(other.popen.returncode == 0, f"exit code {other.popen.returncode}")

    with bench.check("a name that nothing can resolve ends in an error, exit code 3", 30):
        lost = place.start(
            "agent",
            [*chain.agent_command("ws://runner.invalid:8001", "lost"), "--max-reconnect", 1],
        )
        until(20, "its end", lambda: lost.popen.poll() is not None)
        said = lost.err.read_text(errors="replace")
        check(lost.popen.returncode == 3, f"exit code {lost.popen.returncode}: {said}")
        check("runner.invalid" in said, said)

    with bench.check("SIGTERM ends it with exit code 0", 30):
        check(chain.agent.stop(), "SIGTERM did not end it")
        check(chain.agent.popen.returncode == 0, f"exit code {chain.agent.popen.returncode}")


def only(root):
    found = [path.name for path in root.iterdir()]
    check(found == ["agent"], f"there are {found}")
