"""The lines of a run: one for each check."""

import contextlib
import sys
import time
import traceback

from chain import Cannot, Failed, within


class Bench:
    """Passed to a service's checks: a folder, a chain in it, and a line for each check."""

    def __init__(self, name, place, chain, programs):
        self.name = name
        self.place = place
        self.chain = chain
        self.programs = programs
        self.passed = 0
        self.failed = 0

    @contextlib.contextmanager
    def check(self, text, seconds=90):
        """One check. A failure inside ends the check, not the run."""
        figures = []
        start = time.monotonic()
        try:
            with within(seconds):
                yield figures
        except Cannot:
            raise
        except Exception as error:
            self.fail(text, error)
        else:
            self.passed += 1
            told = ", ".join([f"{time.monotonic() - start:.1f} s", *figures])
            print(f"ok    {self.name}: {text} ({told})", flush=True)

    def fail(self, text, error):
        self.failed += 1
        print(f"FAIL  {self.name}: {text}: {error}")
        if not isinstance(error, Failed):
            traceback.print_exception(error, file=sys.stdout)
        sys.stdout.flush()
