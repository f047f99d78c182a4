"""A fuzz of images and configs: each case is right, skipped for its reason, or refused with an error that says why.

    python tests/support/fuzz.py image 0 1000    runs cases 0 to 999 in this process and prints what came out, as JSON
    python tests/support/fuzz.py config 17 18     case 17 alone

What is no accepted outcome is a failure: another kind of error, a message without a name, a hang, wrong pixels.
"""

import builtins
import contextlib
import faulthandler
import importlib
import io
import json
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS = 30  # of computing, for one case


class Hang(BaseException):
    """No `except Exception` catches it."""


class Failure(AssertionError):
    """A case came out as none may."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises `Hang` after so many seconds of computing, ten times as many of waiting, or a question to the terminal.

    Where Python does not run any more, it ends the process with a traceback.
    """

    def stop(*args):
        raise Hang(f"not done within {seconds} seconds")

    def ask(*args):
        raise Hang(f"a question to the terminal: {args}")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 10 * seconds)}
    handlers = {number: signal.signal(number, stop) for number in timers}
    terminal, builtins.input = builtins.input, ask
    for timer in timers.values():
        signal.setitimer(*timer)
    faulthandler.dump_traceback_later(20 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        builtins.input = terminal
        for number, handler in handlers.items():
            signal.signal(number, handler)


def refusal(call: Callable, *names: str, kinds: tuple[type, ...] = (ValueError,)) -> tuple[object, str | None]:
    """What `call` returns and None, or None and the message with which it refuses.

    Raises:
        Failure: it raises another kind of error, or one whose message is long, or holds none of the names.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return call(), None
    except kinds as error:
        message = str(error)
        if len(message) > 1_500 or not any(name in message for name in names):
            raise Failure(f"a message that names nothing or is too long: {message[:2_000]!r}") from error
        return None, message
    except Exception as error:
        raise Failure(f"{type(error).__name__}: {error}"[:500]) from error


def run(cases: Callable[[int, Path], str], numbers: range) -> dict:
    """{"outcomes": how many of each, "failures": [[number, what]], "slowest": [seconds, number], "grown": bytes}."""
    outcomes, failures, slowest = Counter(), [], (0.0, -1)
    with tempfile.TemporaryDirectory() as folder:
        start_size = peak()
        for number in numbers:
            start = time.process_time()
            try:
                with within(SECONDS):
                    outcomes[cases(number, Path(folder))] += 1
            except (Failure, Hang) as failure:
                failures.append([number, str(failure)])
            slowest = max(slowest, (time.process_time() - start, number))
    return {"outcomes": dict(outcomes), "failures": failures, "slowest": slowest, "grown": peak() - start_size}


def peak() -> int:
    """The most memory this process has had so far, in bytes.

    Not Linux's `ru_maxrss`: that of a process which a large one started begins at the large one's.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def main(kind: str, start: str, stop: str) -> None:
    cases = importlib.import_module(f"fuzz_{kind}_cases").Cases()
    print(json.dumps(run(cases, range(int(start), int(stop)))))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    importlib.import_module("fuzz").main(*sys.argv[1:])  # not this copy, whose classes are others
