"""How a command ends: mistakes are one sentence and an exit code, bugs keep their traceback.

The shell and training's own entry both end here, so that no command knows of another.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

DONE = 0
LOST_PROCESS = 1  # another process of the run ended; that one has the code that tells
BAD_INPUT = 2
UNSTABLE = 3  # the gradient-norm monitor gave up
BAD_DATA = 4  # too many unreadable samples, or a data worker died
DISK = 5  # a checkpoint could not be written
INTERRUPTED = 75  # asked to stop (SIGTERM); saved, and can be resumed
STOPPED = 130  # Ctrl-C
PIPE_CLOSED = 141  # whoever read our output has left (`| head -1`); what a shell reports of SIGPIPE

PACKAGE = __name__.removesuffix(".training.exits")


class Stop(RuntimeError):
    """Ends a run with a sentence for people and an exit code for schedulers.

    Args:
        message: one sentence: what happened, and what to do.
        code: exit code of the process.
        alone: whether only this process of a run knows of it.
    """

    def __init__(self, message: str, code: int, alone: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.alone = alone


class Parser(argparse.ArgumentParser):
    """Reports a mistake as an exception, so that every mistake ends in the same place."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse with its sentence."""
        raise ValueError(f"{message} (see {self.prog} --help)")


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Options of a command line. KEY=VALUE may stand behind an option too, where argparse gives up."""
    options, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(options, "overrides") and all(re.match(r"[^-=][^=]*=", word) for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def run_command(command: Callable[[], None]) -> int:
    """Run a command. Returns the exit code: 0, 2 for bad input, 130 when stopped, others of training."""
    mend_streams()
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        report("Stopped.", prefix="")
        return STOPPED
    except Stop as stop:
        report(stop)
        return stop.code
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and drop_lost_streams():
            return PIPE_CLOSED
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
            drop_lost_streams()
            report("There is no space left for what is printed or written; free some.")
            return DISK
        sentence = about_a_path(error) or (error if raised_by_us(error) else None)
        if sentence is None:
            raise
        report(sentence)
        return BAD_INPUT
    return DONE


def about_a_path(error: Exception) -> str | None:
    """A sentence, if the system refuses a path that nobody looked at before, in our code or below it."""
    if not isinstance(error, OSError) or not error.filename:
        return None
    from ..core.paths import REFUSALS, refusal

    return refusal(error.filename, error) if error.errno in REFUSALS else None


def mend_streams() -> None:
    """Have every text printed: letters that a terminal lacks as escapes, into nothing where it is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `2>&-`; what is opened next must not take its place
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def drop_lost_streams() -> bool:
    """Whether an output takes nothing more; what is left for it is thrown away, or Python would complain."""
    lost = [stream for stream in (sys.stdout, sys.stderr) if is_lost(stream)]
    for stream in lost:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(lost)


def is_lost(stream: TextIO) -> bool:
    """Whether what was printed could not be written, or whoever read it has left."""
    try:
        stream.flush()
        if not hasattr(select, "poll"):  # Windows
            return False
        poll = select.poll()  # without a buffer nothing is left to flush
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except ValueError:  # no file, as in a test
        return False
    except OSError:
        return True


def report(error: BaseException | str, prefix: str = "tbac-uniimage: ") -> None:
    """Print the sentence of an error; of several processes that a launcher started, the first does."""
    sentence = " ".join(str(error).splitlines())  # names may hold line breaks
    if os.environ.get("RANK", "0") == "0":
        print(f"{prefix}{sentence}", file=sys.stderr)


def raised_by_us(error: BaseException) -> bool:
    """Whether this package's own code raised an error, and not a library below it."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals
    spec = module.get("__spec__")  # python -m calls our module __main__
    name = spec.name if spec is not None else module["__name__"]
    return name.startswith(f"{PACKAGE}.")
