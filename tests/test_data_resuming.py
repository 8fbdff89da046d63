"""An index is its pieces: kept over kills, taken from an older index, made in parts on several machines."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from data_files import BLUE, GREEN, RED, index, pack, picture, pixel, samples, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tbac_uniimage.shell.main import main
from tbac_uniimage.training.data import examining, units
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.data.columns import Columns, UnclearRoles
from tbac_uniimage.training.data.index import Index
from tbac_uniimage.training.data.joining import join
from tbac_uniimage.training.data.layouts import findings, folders, tars
from tbac_uniimage.training.data.layouts.findings import Place, Reading
from tbac_uniimage.training.data.layouts.pairs import pair
from tbac_uniimage.training.data.listing import Files
from tbac_uniimage.training.data.refs import Ref
from tbac_uniimage.training.data.report import read_report
from tbac_uniimage.training.data.storage import Storage
from tbac_uniimage.training.data.work import Work


def shard(first: int, count: int = 3, **files: bytes) -> bytes:
    """A tar of samples whose number is the red of the picture."""
    pairs = {}
    for i in range(first, first + count):
        pairs |= {f"{i:04}.png": picture((i, 0, 0)), f"{i:04}.txt": f"text {i}".encode()}
    return pack(pairs | {name.replace("_", "."): data for name, data in files.items()})


def contents(folder: Path) -> dict[str, bytes]:
    """All that an index is but the time it took."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}


@pytest.fixture
def looked_at(monkeypatch) -> list[str]:
    """Keys of the samples whose pictures were looked at."""
    seen, judge = [], examining.judge

    def noted(found, *arguments) -> None:
        seen.append(found.key)
        judge(found, *arguments)

    monkeypatch.setattr(examining, "judge", noted)
    return seen


def killed_after(count: int, monkeypatch) -> None:
    """The process ends before the piece after ``count`` is made; nothing is cleaned up."""
    made, make = [], units.make_piece

    def dying(*arguments):
        if len(made) == count:
            raise KeyboardInterrupt
        made.append(1)
        return make(*arguments)

    monkeypatch.setattr(units, "make_piece", dying)


SHARDS = {f"{n}.tar": shard(3 * n) for n in range(5)}
LOOSE = {
    f"{folder}/{i:03}{kind}": data
    for folder in ("a", "b")
    for i in range(20)
    for kind, data in ((".png", picture((i, 0, 0))), (".txt", f"text {i}"))
}
LIST = {f"p/{i:03}.png": picture((i, 0, 0)) for i in range(30)} | {
    "list.jsonl": "".join(f'{{"image": "p/{i:03}.png", "text": "text {i}"}}\n' for i in range(32))
}
SETS = {
    "tars": SHARDS,
    "folder": LOOSE,
    "lists": LIST,
    "gzip": {"x.tar.gz": gzip.compress(shard(0, 9)), "y.tar.gz": gzip.compress(shard(9))},
}


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("check", ["decode", "header"])
def test_goes_on_after_an_interruption(tmp_path, monkeypatch, looked_at, kind, check):
    monkeypatch.setattr(findings, "CHUNK", 7)
    write(tmp_path / "d", SETS[kind])
    whole, _ = index(tmp_path / "d", tmp_path / "whole", check=check)
    keys = list(looked_at)
    looked_at.clear()
    for count in (2, 1):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            killed_after(count, patch)
            index(tmp_path / "d", tmp_path / "out", check=check)
    assert os.listdir(tmp_path / "out") == [".set.work"]
    again, report = index(tmp_path / "d", tmp_path / "out", check=check)
    assert contents(again.folder) == contents(whole.folder)
    assert looked_at == keys  # each once
    assert os.listdir(tmp_path / "out") == ["set"] and report.samples == len(again)
    assert samples(again) == samples(whole)


def test_what_changed_since_is_looked_at_again(tmp_path, monkeypatch, looked_at):
    write(tmp_path / "d", SHARDS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(4, patch)
        index(tmp_path / "d", tmp_path / "out")
    looked_at.clear()
    write(tmp_path / "d", {"1.tar": shard(50)})
    found, _ = index(tmp_path / "d", tmp_path / "out")
    assert looked_at[:3] == ["1/0050", "1/0051", "1/0052"]
    assert {key[0] for key in looked_at[3:]} == {"2", "3", "4"}  # which were not made yet
    assert pixel(found[3].target) == (50, 0, 0)


def test_other_options_look_again(tmp_path, monkeypatch, looked_at):
    write(tmp_path / "d", SHARDS)
    index(tmp_path / "d", tmp_path / "out")
    for options in ({"check": "header"}, {"reading": Reading(captions="all")}):
        looked_at.clear()
        index(tmp_path / "d", tmp_path / "out", **options)
        assert len(looked_at) == 15


def test_shards_are_added(tmp_path, looked_at):
    write(tmp_path / "d", SHARDS | {"bad.tar": shard(90, 1, x_png=b"no", x_txt=b"t")})
    first, _ = index(tmp_path / "d", tmp_path / "out")
    names = {entry.key: first.cache_name(entry) for entry in map(first.__getitem__, range(len(first)))}
    looked_at.clear()
    write(tmp_path / "d", {"05.tar": shard(70), "zz.tar.gz": gzip.compress(shard(80))})
    found, report = index(tmp_path / "d", tmp_path / "out")
    assert looked_at == [f"05/{i:04}" for i in (70, 71, 72)] + [f"zz/{i:04}" for i in (80, 81, 82)]
    fresh, _ = index(tmp_path / "d", tmp_path / "fresh")
    assert contents(found.folder) == contents(fresh.folder)
    assert report.refused_first == {"not a picture": ["bad/x"]}
    assert samples(found) == samples(fresh) and len(found) == len(first) + 6
    looked_at.clear()
    again, _ = index(tmp_path / "d", tmp_path / "out")
    assert looked_at == [] and contents(again.folder) == contents(fresh.folder)
    (tmp_path / "d/0.tar").unlink()
    assert len(index(tmp_path / "d", tmp_path / "out")[0]) == len(fresh) - 3
    kept = {entry.key: found.cache_name(entry) for entry in map(found.__getitem__, range(len(found)))}
    assert {key: kept[key] for key in names} == names  # what was cached stays


def test_added_shards_leave_the_entries_of_caches(tmp_path):
    """Also where only headers were read, so that contents name none."""
    write(tmp_path / "d", {"a.tar": shard(0)})
    first, _ = index(tmp_path / "d", tmp_path / "out", check="header")
    name = first.cache_name(first[1])
    write(tmp_path / "d", {"0.tar": shard(9)})
    found, _ = index(tmp_path / "d", tmp_path / "out", check="header")
    assert found[4].key == "a/0001" and found.cache_name(found[4]) == name
    assert found.cache_name(found[1]) != name
    write(tmp_path / "d", {"a.tar": shard(20)})
    again, _ = index(tmp_path / "d", tmp_path / "out", check="header")
    assert again.cache_name(again[4])[0] != name[0]


def test_a_damaged_index_is_made_again(tmp_path, looked_at):
    write(tmp_path / "d", SHARDS)
    found, _ = index(tmp_path / "d", tmp_path / "out")
    sound = contents(found.folder)
    for name in ("samples.arrow", "units.arrow", "manifest.json"):
        path = found.folder / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        again, _ = index(tmp_path / "d", tmp_path / "out")
        assert contents(again.folder) == sound


@pytest.mark.parametrize("check", ["decode", "header"])
def test_a_tar_of_equal_size_is_noticed(tmp_path, check):
    source = write(tmp_path / "d", {"x.tar": shard(0), "y.tar": shard(9)})
    found, _ = index(source, tmp_path / "out", check=check)
    size = (source / "x.tar").stat().st_size
    write(source, {"x.tar": shard(5)})
    assert (source / "x.tar").stat().st_size == size
    with pytest.raises(ValueError, match=r"x\.tar of .* has changed; index the data set again"):
        found.check_source()
    if check == "decode":
        with pytest.raises(OSError, match=r"x\.tar holds another picture than was indexed"):
            Storage().read(found[0].target)
    assert Storage().read(found[3].target)
    write(source, {"x.tar": shard(0)})  # a copy of what was indexed, with another time
    found.check_source()


def test_parts_of_an_archive_are_watched(tmp_path):
    data = shard(0, 9)
    source = write(tmp_path / "d", {"s.tar.part001": data[:4000], "s.tar.part002": data[4000:]})
    found, _ = index(source, tmp_path / "out")
    found.check_source()
    other = bytearray(data[4000:])
    other[5000] ^= 1
    write(source, {"s.tar.part002": bytes(other)})
    with pytest.raises(ValueError, match=r"s\.tar of .* has changed; index the data set again"):
        found.check_source()


@pytest.mark.parametrize("kind", SETS)
def test_parts_joined_are_the_whole(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(findings, "CHUNK", 4)
    source = write(tmp_path / "d", SETS[kind])
    whole, _ = index(source, tmp_path / "whole")
    for number in (2, 3, 1):
        build(str(source), tmp_path / "out", name="set", part=(number, 3))
    folders = [tmp_path / f"out/set.part-{number}-of-3" for number in (3, 1, 2)]
    report = join(folders, tmp_path / "out")
    joined = Index(tmp_path / "out/set")
    assert contents(joined.folder) == contents(whole.folder)
    assert samples(joined) == samples(whole)
    assert report.table().splitlines()[1:-1] == read_report(whole.folder).table().splitlines()[1:-1]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(1, 4))
def test_any_shards_in_any_parts(tmp_path_factory, counts, parts):
    folder = tmp_path_factory.mktemp("parts")
    source = write(folder / "d", {f"{n}.tar": shard(5 * n, count) for n, count in enumerate([*counts, 1])})
    whole, _ = index(source, folder / "whole")
    for number in range(1, parts + 1):
        build(str(source), folder / "out", name="set", part=(number, parts))
    join(sorted((folder / "out").glob("set.part-*")), folder / "out")
    assert contents(folder / "out/set") == contents(whole.folder)


def test_parts_that_do_not_fit(tmp_path):
    source = write(tmp_path / "d", SHARDS)
    out = tmp_path / "out"
    made = {}
    for number, count in ((1, 3), (2, 3), (3, 3), (1, 2)):
        build(str(source), out, name="set", part=(number, count))
        made[number, count] = out / f"set.part-{number}-of-{count}"
    first, second, third, other = made.values()
    build(str(source), tmp_path / "headers", name="set", part=(3, 3), check="header")
    index(source, tmp_path / "whole")
    copied = tmp_path / "copy"
    os.symlink(second, copied)
    cases = [
        ([first, third], "Of 3 parts of set these are missing: 2; index them with --part"),
        ([first, second, copied, third], "are both part 2; take one away"),
        (
            [first, second, third, other],
            "one of 2 parts and .* one of 3; index all of them with the same --part",
        ),
        ([first, second, tmp_path / "headers/set.part-3-of-3"], "other options: check is header and decode"),
        ([first, second, tmp_path / "whole/set"], "is a whole index and no part of one"),
    ]
    write(source, {"9.tar": shard(60)})
    build(str(source), tmp_path / "more", name="set", part=(3, 3))
    cases.append(([first, second, tmp_path / "more/set.part-3-of-3"], "saw other files below"))
    for chosen, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            join(chosen, out)
    with pytest.raises(ValueError, match=r"is part 1 of 3 of an index; .*tbac-uniimage data join"):
        Index(first)
    assert sorted(os.listdir(out)) == sorted(path.name for path in made.values())
    join([first, second, third], out)
    assert len(Index(out / "set")) == 15


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_large_tar_is_divided(tmp_path, monkeypatch, name):
    files = {"0.input.png": picture(RED), "0.output.png": picture(BLUE), "0.txt": b"edit"}
    files |= {"1.output.png": picture(GREEN), "1.txt": b"no source"}
    data = {f"k{i}.{kind}": d for i in range(20) for kind, d in (("png", picture((i, 0, 0))), ("txt", b"t"))}
    packed = pack(files | data, "w:gz") if name.endswith("gz") else pack(files | data).rstrip(b"\0")
    source = write(tmp_path / "d", {name: packed})
    whole, told = index(source, tmp_path / "whole")
    monkeypatch.setattr(tars, "LARGE", 0)
    monkeypatch.setattr(tars, "PART_SAMPLES", 3)
    divided, report = index(source, tmp_path / "out")
    assert samples(divided) == samples(whole) and len(divided) == 21
    assert report.refused_first == told.refused_first == {"no picture to start from": ["x/1"]}
    assert report.notes == told.notes
    parts = [tmp_path / f"parts/set.part-{number}-of-2" for number in (1, 2)]
    for number in (1, 2):
        build(str(source), tmp_path / "parts", name="set", part=(number, 2))
    assert all(0 < len(Index(part, part=True)) < 21 for part in parts)
    join(parts, tmp_path / "parts")
    assert contents(tmp_path / "parts/set") == contents(divided.folder)


# --- real processes

SCRIPT = """
import sys, time
from pathlib import Path
from tbac_uniimage.training.data import examining
from tbac_uniimage.training.data.build import build
judge = examining.judge
def slow(found, *arguments):
    print(found.key, flush=True)
    if found.key.startswith("3"):
        time.sleep(600)
    judge(found, *arguments)
examining.judge = slow
if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]), name="set", workers=int(sys.argv[3]))
"""


def started(folder: Path, source: Path, workers: int = 1) -> subprocess.Popen:
    script = folder / "slow.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(source), str(folder / "out"), str(workers)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_process_is_gone_on_from(tmp_path, looked_at):
    """And while it lives no other one touches what it makes."""
    source = write(tmp_path / "d", SHARDS)
    child = started(tmp_path, source)
    try:
        while not child.stdout.readline().startswith("3"):
            assert child.poll() is None
        with pytest.raises(ValueError, match=r"\.set\.work is in use by another .*data index"):
            index(source, tmp_path / "out")
        assert (tmp_path / "out/.set.work/pieces").is_dir()
    finally:
        child.kill()
        child.wait(60)
        child.stdout.close()
    found, _ = index(source, tmp_path / "out")
    assert looked_at == [f"{n}/{i:04}" for n in (3, 4) for i in range(3 * n, 3 * n + 3)]
    assert os.listdir(tmp_path / "out") == ["set"] and len(found) == 15


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """Though it is killed, and they are in the middle of something."""
    source = write(tmp_path / "d", SHARDS)
    child = started(tmp_path, source, workers=2)
    workers = []
    try:
        task = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        while len(workers) < 3:  # with the one that tracks resources
            assert child.poll() is None
            workers = [int(word) for word in task.read_text().split()]
        first, _ = child.stdout.readline(), child.kill()
        child.wait(60)
        assert first and child.stdout.read() is not None  # which all of them hold open, so they have ended
    finally:
        child.kill()
        child.stdout.close()
    assert os.listdir(tmp_path / "out") == [".set.work"]


def test_a_run_that_was_killed_between_two_renames(tmp_path):
    source = write(tmp_path / "d", SHARDS)
    index(source, tmp_path / "out")
    work = tmp_path / "out/.set.work"
    work.mkdir()
    os.replace(tmp_path / "out/set", work / "old")
    (work / "new").mkdir()
    write(tmp_path / "bad", {"a.png": b"no", "a.txt": "t"})
    with pytest.raises(ValueError, match="can be used"):
        build(str(tmp_path / "bad"), tmp_path / "out", name="set")
    assert os.listdir(tmp_path / "out") == ["set"] and len(Index(tmp_path / "out/set")) == 15


# --- the files of a data set in a database

LETTERS = st.characters(codec="utf-8", exclude_characters="\0")


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(LETTERS, min_size=1), st.integers(0, 9)), st.text(LETTERS))
def test_files_are_sorted_and_found(sizes, start):
    found = Files(iter(sizes.items()))
    assert list(found) == sorted(sizes.items()) and len(found) == len(sizes)
    assert all(name in found for name in sizes) and start + "\0" not in found
    assert list(found.beginning(start)) == sorted(name for name in sizes if name.startswith(start))
    assert found.suffixes == Counter(os.path.splitext(name)[1].lower() for name in sizes)


WORDS = st.lists(
    st.sampled_from(["cat", "dog", "a", "in", "out", "source", "x2", "mask"]), min_size=1, max_size=3
)
STEMS = st.tuples(WORDS, st.sampled_from("._-")).map(lambda drawn: drawn[1].join(drawn[0]))
NAMES = st.tuples(
    st.sampled_from(["", "s/", "s/control/", "s/t/", "target/", "s/masks/"]),
    STEMS,
    st.sampled_from([".png", ".txt"]),
)


@settings(max_examples=200, deadline=None)
@given(st.sets(NAMES.map("".join), min_size=1, max_size=14), st.integers(1, 3))
def test_blocks_pair_as_the_whole_folder_does(names, chunk):
    """Whatever the names: no block parts files of one sample."""
    files = [(name, Ref(name)) for name in sorted(names)]
    try:
        whole, _, _ = pair(files, Columns())
    except UnclearRoles:
        return
    listed = Files((name, 0) for name in names)
    place = Place("", listed, None, Path())
    roles = folders.find_roles(place)
    folders.arrange(listed, roles, frozenset())
    before, findings.CHUNK = findings.CHUNK, chunk
    try:
        blocks = list(folders.blocks(listed))
    finally:
        findings.CHUNK = before
    assert sorted(name for block in blocks for name in block) == sorted(names)
    groups = [group for block in blocks for group in pair(folders.refs("", block), Columns(), roles)[0]]
    assert {g.key: (set(g.pictures), set(g.texts)) for g in groups} == {
        g.key: (set(g.pictures), set(g.texts)) for g in whole
    }


def test_a_file_that_is_added_moves_few_blocks(tmp_path, looked_at):
    files = {
        f"{i:04}.{kind}": d
        for i in range(600)
        for kind, d in (("png", picture((i % 256, 0, 0))), ("txt", "t"))
    }
    write(tmp_path / "d", files)
    index(tmp_path / "d", tmp_path / "out", check="header")
    looked_at.clear()
    write(tmp_path / "d", {"0300b.png": picture(), "0300b.txt": "new"})
    found, _ = index(tmp_path / "d", tmp_path / "out", check="header")
    assert len(found) == 601 and 0 < len(looked_at) < 600
    assert contents(found.folder) == contents(
        index(tmp_path / "d", tmp_path / "fresh", check="header")[0].folder
    )


# --- names


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", ".hidden", "a\\b", "a\nb", ".."])
def test_a_name_that_is_a_path(tmp_path, capsys, name):
    source = write(tmp_path / "d", SHARDS)
    assert main(["data", "index", str(source), "-o", str(tmp_path / "out"), "--name", name]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(
            f"An index cannot be called {name!r}; give a name without slashes and without a dot at its start."
        )
    )
    assert not (tmp_path / "out").exists() and sorted(os.listdir(tmp_path)) == ["d"]


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_parts_that_are_none(tmp_path, part, capsys):
    assert main(["data", "index", str(tmp_path), "--part", part]) == 2
    assert f"{part} is no part; give one such as 3/16" in capsys.readouterr().err


def test_the_commands_make_parts_and_join_them(tmp_path, capsys):
    source = write(tmp_path / "d", SHARDS)
    out = tmp_path / "out"
    for part in ("1/2", "2/2"):
        assert main(["data", "index", str(source), "-o", str(out), "--part", part, "--workers", "1"]) == 0
    assert (
        main(["data", "join", str(out / "d.part-1-of-2"), str(out / "d.part-2-of-2"), "--name", "all"]) == 0
    )
    assert "all: 15 samples (tars, " in capsys.readouterr().out
    assert len(Index(out / "all")) == 15


def test_folders_of_the_dead_are_taken_away(tmp_path, monkeypatch):
    """But for what can be gone on from, and what a living process has."""
    out = tmp_path / "out"
    living, dead = Work(out, "living"), Work(out, "dead")
    dead.close()
    source = write(tmp_path / "d", SHARDS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(3, patch)
        build(str(source), out, name="stopped")
    index(source, out)
    assert sorted(os.listdir(out)) == [".living.work", ".stopped.work", "set"]
    living.close()
    build(str(source), out, name="stopped")
    assert sorted(os.listdir(out)) == ["set", "stopped"]
