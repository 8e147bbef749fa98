"""Programs that are stopped, restarted or killed: what goes on, and what ends, and when."""

import signal
import time

from chain import check, until
from world import world

# A new connection is answered within this once the programs run.
ANSWER = 5
# A program knows by its keepalive that the other side is gone within this.
SILENCE = 35
# What was accepted while a program stood still is answered or ended within this.
HANGING = 20
# Connections through a restarted program have ended within this.
AT_ONCE = 5
CUT = " while its connection is cut"


def client_stopped(bench):
    # With the short times its connection is cut meanwhile. With the others the runner notices the
    # silence before the shorter of these.
    cut = not bench.full
    within, keep = (7, 20) if cut else (45, 60)
    with bench.check(
        f"forward stands still for {within} s{CUT * cut}, kept for {keep} s: connections go on", 120
    ) as figures:
        with world(bench, bench.database, keep=keep, client_gate=cut) as at:
            figures += stand_still(at, within)
            at.moves()
            at.finish(figures, "forward")

    if cut:
        too_long(bench, 10, keep=3, cut=True)
    else:
        too_long(bench, SILENCE + 2 * 10, keep=10)


def client_stopped_for_long(bench):
    """The same with the real times."""
    too_long(bench, 600, keep=120)


def too_long(bench, seconds, keep, cut=False):
    text = (
        f"forward stands still for {seconds} s{CUT * cut}, kept for {keep} s: connections are reset"
    )
    with bench.check(text, seconds + 120) as figures:
        with world(bench, keep=keep, client_gate=cut) as at:
            figures += stand_still(at, seconds)
            took = at.load.all_ended(AT_ONCE, "the end of the old connections")
            figures.append(f"old connections ended {took:.1f} s after it")
            reset = sum(app.how.startswith("reset") for app, _ in at.load.pairs)
            check(reset == len(at.load.pairs), f"{reset} of {len(at.load.pairs)} were reset")


def stand_still(at, seconds):
    """Stops forward and continues it. New connections have to be answered, and none to hang.

    Where there is a gate, it cuts forward's connection meanwhile.
    """
    at.client.send(signal.SIGSTOP)
    if at.client_gate:
        at.client_gate.tell("cut")
    early = []
    for _ in range(5):
        time.sleep(seconds / 5)
        early.append(at.probe())
    at.client.send(signal.SIGCONT)
    answered = at.probe().answer(ANSWER)
    end = time.monotonic() + HANGING
    how = [probe.outcome(end - time.monotonic()) for probe in early]
    check("left hanging" not in how, f"accepted while it stood still, then: {how}")
    return [f"a new connection is answered in {answered:.1f} s"]


def runner_restarted(bench):
    for number, name in ((signal.SIGTERM, "ended"), (signal.SIGKILL, "killed")):
        text = f"the runner is {name} and started again: connections end at once"
        with bench.check(text, 120) as figures:
            with world(bench) as at:
                start = time.monotonic()
                at.restart_runner(number)
                ends_at_once(at, start, figures)


def agent_restarted(bench):
    for number, name in ((signal.SIGTERM, "ended"), (signal.SIGKILL, "killed")):
        text = f"the agent is {name} and started again: connections end at once"
        with bench.check(text, 120) as figures:
            with world(bench) as at:
                start = time.monotonic()
                at.chain.agent.stop(number)
                at.start_agent()
                ends_at_once(at, start, figures)


def ends_at_once(at, start, figures):
    at.load.all_ended(AT_ONCE, "the end of every connection")
    for which, ends in zip(("applications", "services"), zip(*at.load.pairs)):
        figures.append(f"{which} ended after {max(end.ended for end in ends) - start:.1f} s")
    reset = sum(app.how.startswith("reset") for app, _ in at.load.pairs)
    check(reset == len(at.load.pairs), f"{reset} of {len(at.load.pairs)} were reset")
    until(20, "a new connection", lambda: at.probe().outcome(5) == "answered")


def turned_off(bench):
    for role in ("forward", "runner", "agent"):
        lost = "the agent's connection is cut" if role == "agent" else "the host is killed"
        text = f"{role} does not resume, {lost}: connections end at once, new ones go on"
        with bench.check(text, 120) as figures:
            with world(bench, off=[role], agent_gate=True) as at:
                start = time.monotonic()
                if role == "agent":
                    at.agent_gate.tell("cut")
                else:
                    at.restart_host()
                ends_at_once(at, start, figures)


def client_killed(bench):
    keep = 10 if bench.full else 4
    text = f"forward is killed: services are free within {keep} s and a moment"
    with bench.check(text, 120) as figures:
        with world(bench, keep=keep) as at:
            at.client.stop(signal.SIGKILL)
            start = time.monotonic()
            services = [service for _, service in at.load.pairs]
            until(keep + 10, "the end at the service", lambda: all(one.ended for one in services))
            first = min(one.ended for one in services) - start
            figures.append(f"freed after {first:.1f} to {time.monotonic() - start:.1f} s")
            if bench.resumes:
                check(first >= keep - 1, f"the first was free after {first:.1f} s already")
