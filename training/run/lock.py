"""One run per folder: a lock that the system holds for a process, and lets go of however that ends."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # some network file systems


class RunLock:
    """Keeps a second run out of a run's folder while this one is in it.

    Only what runs counts: the file stays, and the lock on it ends with the process, also with SIGKILL.
    Programs that the process starts do not inherit it.

    Args:
        run: folder of the run.
        say: told where the file system knows no locks; the run goes on then.
    """

    def __init__(self, run: Path, say: Callable[[str], object]) -> None:
        self.path = run / LOCK_FILE
        self.say = say
        self.file: FileIO | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def take(self) -> bool:
        """Take the lock; the folder is there. Returns False if this run has it already.

        Raises:
            ValueError: another run has it.
            OSError: the folder cannot be written to.
        """
        if self.file is not None:
            return False
        file = FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        try:
            lock(file)
        except BlockingIOError as error:
            holder = file.read(200).decode("utf-8", "replace").strip()
            file.close()
            raise ValueError(
                f"The run folder {self.path.parent} is in use{f' by {holder}' if holder else ''}; wait for "
                "that run to end, or name another folder with run=."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise
            self.say(
                f"The file system of {self.path.parent} knows no locks ({error.strerror}); take care that no "
                "second run is started in this folder."
            )
        self.file = file
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}\n".encode())
        return True


@contextmanager
def wait_for(path: Path) -> Iterator[None]:
    """Let one process after the other pass; all at once where the system knows no locks. Raises OSError."""
    with open(path, "ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
        yield


def lock(file: FileIO) -> None:
    """Lock an open file for this process alone, without waiting.

    Raises:
        BlockingIOError: another one has it.
        OSError: the system or the file system knows no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no flock on this system")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
