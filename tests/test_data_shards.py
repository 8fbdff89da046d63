"""Shards: entries by name, whatever is torn, and whoever is killed."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from children import answer
from hypothesis import given, settings
from hypothesis import strategies as st
from tbac_uniimage.training.data.shards import STORED, Damaged, Shards, ShardWriter, name_of


def fill(folder: Path, contents: dict[str, bytes], limit: int = 2**30) -> None:
    writer = ShardWriter(folder, limit)
    for name, data in contents.items():
        writer.add(name_of(name), data)
    writer.close()


def kept(folder: Path, names) -> dict[str, bytes]:
    """What is found of these."""
    shards = Shards(folder)
    return {name: data for name in names if (data := shards.get(name_of(name))) is not None}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), st.binary(max_size=300), max_size=8), max_size=4))
def test_what_several_writers_wrote_is_found(tmp_path_factory, writers):
    folder = tmp_path_factory.mktemp("shards")
    expected = {f"{number} {name}": data for number, own in enumerate(writers) for name, data in own.items()}
    for number, own in enumerate(writers):
        fill(folder, {f"{number} {name}": data for name, data in own.items()}, limit=100)
    assert kept(folder, [*expected, "nowhere"]) == expected
    assert len(Shards(folder)) == len(expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_torn_writer_loses_its_tail_and_nothing_else(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("shards")
    contents = {str(i): bytes([i]) * (50 + i) for i in range(5)}
    fill(folder, {"other": b"whole"})
    (first,) = folder.glob("*.data")
    fill(folder, contents)
    (path,) = set(folder.glob("*.data")) - {first}
    size = data.draw(st.integers(0, path.stat().st_size), "bytes that reached the disk")
    rows = data.draw(st.integers(0, 5 * STORED.itemsize), "bytes of rows")
    os.truncate(path, size)
    os.truncate(path.with_suffix(".rows"), rows)
    ends = np.cumsum([len(content) for content in contents.values()])
    whole = [name for name, end in zip(contents, ends, strict=True) if end <= size]
    whole = whole[: rows // STORED.itemsize]
    found = kept(folder, [*contents, "other"])
    assert found == {name: contents[name] for name in whole} | {"other": b"whole"}


def test_names_that_share_a_half(tmp_path):
    writer = ShardWriter(tmp_path)
    names = [b"12345678" + bytes([i]) * 8 for i in range(5)]
    for name in reversed(names):
        writer.add(name, name[-1:])
    shards = Shards(tmp_path)
    assert [shards.get(name) for name in names] == [name[-1:] for name in names]
    assert b"12345678" + b"x" * 8 not in shards


def test_flipped_bytes_are_named(tmp_path):
    fill(tmp_path, {"a": b"one", "b": b"two"})
    shards = Shards(tmp_path)
    assert name_of("a") in shards
    (path,) = tmp_path.glob("*.data")
    path.write_bytes(b"onetwx")
    assert shards.get(name_of("a")) == b"one"
    with pytest.raises(Damaged, match="its sum is another") as caught:
        shards.get(name_of("b"))
    assert caught.value.path == path
    os.truncate(path, 4)
    with pytest.raises(Damaged, match="it is cut off"):
        shards.get(name_of("b"))


@pytest.mark.slow
def test_one_table_that_all_map(tmp_path):
    fill(tmp_path, {str(i): b"x" for i in range(50)}, limit=10)
    shards = Shards(tmp_path)
    assert len(shards) == 50 and isinstance(shards._high, np.memmap) and isinstance(shards._rows, np.memmap)
    assert len(pickle.dumps(shards)) < 300
    (table,) = tmp_path.glob("*.table")
    assert answer(len, shards) == 50
    fill(tmp_path, {"more": b"y"})
    assert name_of("more") not in shards
    shards.refresh()
    assert shards.get(name_of("more")) == b"y"
    assert list(tmp_path.glob("*.table")) != [table] and len(list(tmp_path.glob("*.table"))) == 1


def test_a_folder_that_may_only_be_read(tmp_path, monkeypatch):
    fill(tmp_path, {"a": b"one"})

    def refuse(*arguments) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("tbac_uniimage.training.data.shards.write_table", refuse)
    assert kept(tmp_path, ["a"]) == {"a": b"one"}
    assert kept(tmp_path / "nowhere", ["a"]) == {}


@pytest.mark.slow
def test_a_writer_that_is_killed(tmp_path):
    """What it had said to be there is there."""
    code = "import sys, pathlib, children; children.write_until_killed(pathlib.Path(sys.argv[1]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parent
    )
    told = [int(child.stdout.readline()) for _ in range(300)]
    child.kill()
    child.wait(60)
    child.stdout.close()
    assert len(list(tmp_path.glob("*.data"))) > 3
    expected = {str(i): bytes([i % 251]) * (1000 + i) for i in told}
    assert kept(tmp_path, expected) == expected


def write_into_a_small_disk(folder: Path) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        fill(folder, {str(i): bytes([i]) * 1000 for i in range(5)})
    except OSError as error:
        return error.strerror
    return ""


def test_a_full_disk_keeps_what_was_whole(tmp_path):
    assert answer(write_into_a_small_disk, tmp_path, method="fork") == "File too large"
    assert list(kept(tmp_path, map(str, range(5)))) == ["0", "1"]
