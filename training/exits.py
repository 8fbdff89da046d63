"""How a command ends: mistakes are one sentence and an exit code, bugs keep their traceback.

The shell and training's own entry both end here, so that no command knows of another.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

DONE = 0
LOST_PROCESS = 1  # another process of the run ended; that one has the code that tells
BAD_INPUT = 2
UNSTABLE = 3  # the gradient-norm monitor gave up
BAD_DATA = 4  # too many unreadable samples, or a data worker died
DISK = 5  # a checkpoint could not be written
INTERRUPTED = 75  # asked to stop (SIGTERM); saved, and can be resumed
STOPPED = 130  # Ctrl-C

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
    try:
        command()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return STOPPED
    except Stop as stop:
        report(stop)
        return stop.code
    except (ValueError, OSError, ImportError) as error:
        if not raised_by_us(error):
            raise
        report(error)
        return BAD_INPUT
    return DONE


def report(error: BaseException) -> None:
    """Print the sentence of an error; of several processes that a launcher started, the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"tbac-uniimage: {error}", file=sys.stderr)


def raised_by_us(error: BaseException) -> bool:
    """Whether this package's own code raised an error, and not a library below it."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals
    spec = module.get("__spec__")  # python -m calls our module __main__
    name = spec.name if spec is not None else module["__name__"]
    return name.startswith(f"{PACKAGE}.")
