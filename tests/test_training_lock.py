"""Two runs in one folder: the second is refused for as long as the first one lives, and no longer."""

from __future__ import annotations

import errno
import os
import signal
import socket
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from tbac_uniimage.training.run.lock import RunLock
from training_runs import (
    LIMIT,
    finish,
    losses,
    make_data,
    recipe,
    start,
    wait_until,
    write_recipe,
)


def silent(sentence: str) -> None:
    pytest.fail(sentence)


def test_one_at_a_time(tmp_path):
    holder = f"process {os.getpid()} of {socket.gethostname()}"
    with RunLock(tmp_path, silent) as first:
        assert first.take() and not first.take()
        with RunLock(tmp_path, silent) as second:
            with pytest.raises(ValueError, match=f"is in use by {holder}; wait .* run=") as caught:
                second.take()
            assert str(tmp_path) in str(caught.value)
        with RunLock(tmp_path, silent) as third, pytest.raises(ValueError):
            third.take()  # the refused one has not let go of it
    with RunLock(tmp_path, silent) as again:
        assert again.take()
    assert (tmp_path / ".lock").read_text() == f"{holder}\n"


def test_an_untaken_lock_leaves_nothing(tmp_path):
    with RunLock(tmp_path / "run", silent):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_file_systems_without_locks_are_named(tmp_path, monkeypatch, code):
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    said = []
    monkeypatch.setattr("fcntl.flock", refuse)
    with RunLock(tmp_path, said.append) as lock:
        assert lock.take() and not lock.take()
    (sentence,) = said
    assert f"{tmp_path} knows no locks ({os.strerror(code)})" in sentence


def test_systems_without_locks_are_named(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("tbac_uniimage.training.run.lock.fcntl", None)
    with RunLock(tmp_path, said.append) as lock:
        assert lock.take()
    assert "no flock on this system" in said[0]


def test_other_errors_are_not_swallowed(tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr("fcntl.flock", fail)
    with RunLock(tmp_path, silent) as lock, pytest.raises(OSError, match="broken disk"):
        lock.take()
    assert lock.file is None


def logged(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def state(process: int) -> str:
    """What Linux says of a process; T is stopped."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def in_use(output: Path) -> bool:
    (sentence,) = [line for line in output.read_text().splitlines() if line.startswith("tbac-uniimage: ")]
    return "is in use by process" in sentence and "Traceback" not in output.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    """One process and two are kept out; what the first had written is as it was; SIGKILL frees the folder."""
    settings = recipe(tmp_path / "run", [make_data(tmp_path)], checkpoint={"every": 2})
    settings["train"] |= {"steps": 100_000}
    path, folder = write_recipe(settings), tmp_path / "run"
    (first,) = running = start([path], tmp_path / "first")
    wait_until(lambda: logged(folder) > 2, running, tmp_path / "first")
    os.kill(first.pid, signal.SIGSTOP)  # nothing moves while others try
    wait_until(lambda: state(first.pid) == "T", running, tmp_path / "first")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for world in (1, 2):
        assert finish(start([path], tmp_path / f"other{world}", world)) == [2] * world
        assert in_use(tmp_path / f"other{world}")
        assert f"process {first.pid} of" in (tmp_path / f"other{world}").read_text()
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    first.kill()
    first.join(LIMIT)

    (last,) = running = start([path], tmp_path / "last")
    wait_until(lambda: logged(folder) > 4, running, tmp_path / "last")
    os.kill(last.pid, signal.SIGTERM)
    assert finish(running) == [75]
    assert losses(folder)  # every step once


@pytest.mark.slow
def test_of_two_that_begin_at_once_one_runs(tmp_path):
    """The folder is not there when both look; the second one to make it is told."""
    settings = recipe(tmp_path / "run", [make_data(tmp_path)])
    settings["train"] |= {"steps": 100_000}
    path = write_recipe(settings)
    processes = [start([path], tmp_path / name)[0] for name in ("a", "b")]
    wait([process.sentinel for process in processes], LIMIT)
    (ended,) = [i for i in (0, 1) if processes[i].exitcode is not None]
    other = 1 - ended
    assert processes[ended].exitcode == 2
    # refused before the other had written its number, after it, or after its first file
    said = (tmp_path / "ab"[ended]).read_text()
    assert "Traceback" not in said
    assert f"{tmp_path / 'run'} is in use" in said or "has begun in" in said
    wait_until(lambda: logged(tmp_path / "run") > 2, [processes[other]], tmp_path / "ab"[other])
    os.kill(processes[other].pid, signal.SIGTERM)
    assert finish([processes[other]]) == [75]
    assert losses(tmp_path / "run")  # every step once
