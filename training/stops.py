"""How a training run ends before its time: one sentence and an exit code of its own."""

from __future__ import annotations

DONE = 0
LOST_PROCESS = 1  # another process of the run ended; that one has the code that tells
BAD_INPUT = 2
UNSTABLE = 3  # the gradient-norm monitor gave up
BAD_DATA = 4  # too many unreadable samples, or a data worker died
DISK = 5  # a checkpoint could not be written
INTERRUPTED = 75  # asked to stop (SIGTERM); saved, and can be resumed


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
