"""The index as a whole: plain folders, URLs, processes, what is written, and the command."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from children import answer, first_pixels
from data_files import BLUE, GREEN, RED, index, pack, picture, pixel, samples, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tbac_uniimage.core.prompts import MAX_IMAGES, MAX_TEXT_TOKENS
from tbac_uniimage.shell.main import main
from tbac_uniimage.training.data import arrow_files, command, examining, lengths, storage, work
from tbac_uniimage.training.data import build as build_module
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.data.index import Index
from tbac_uniimage.training.data.layouts import findings, tars
from tbac_uniimage.training.data.paths import list_files
from tbac_uniimage.training.data.refs import Ref
from tbac_uniimage.training.data.remarks import cut_texts
from tbac_uniimage.training.data.sets import TrainSet
from tbac_uniimage.training.data.storage import Storage
from tbac_uniimage.training.data.texts import CAPTION_RULES
from tbac_uniimage.training.exits import raised_by_us
from transformers import AutoTokenizer


def pairs(count: int) -> dict[str, bytes]:
    """Samples in the order of their names; the number is the red of the picture."""
    return {
        f"{i:04}.{kind}": data
        for i in range(count)
        for kind, data in (("png", picture((i, 0, 0))), ("txt", f"text {i}".encode()))
    }


FOLDER = {
    "cat.png": picture(RED),
    "cat.txt": "a cat\n",
    "dog.PNG": picture(BLUE),
    "dog.caption": "a dog",
    "dog.json": '{"caption": "not this"}',
    "sub/cat.webp": picture(GREEN, kind="WEBP", lossless=True),
    "sub/cat.json": '{"prompt": "third"}',
    "both.png": picture(RED),
    "both.webp": picture(BLUE, kind="WEBP", lossless=True),
    "both.txt": "shared",
    "edit.png": picture(GREEN),
    "edit.input.png": picture(RED),
    "edit.txt": "paint it green",
    "lonely.png": picture(RED),
    ".cache/x.png": picture(RED),
    ".cache/x.txt": "hidden",
}


def test_plain_folder(tmp_path):
    found, report = index(write(tmp_path / "my pictures", FOLDER), tmp_path / "out")
    assert samples(found) == {
        "both.png": ("shared", RED),
        "both.webp": ("shared", BLUE),
        "cat.png": ("a cat", RED),
        "dog.PNG": ("a dog", BLUE),
        "edit.png": ("paint it green", GREEN, RED),
        "sub/cat.webp": ("third", GREEN),
    }
    assert report.layout == "folder"
    assert report.refused_first == {"no text": ["lonely.png"]}
    assert found.input_counts().tolist() == [0, 0, 0, 0, 1, 0]


def test_sizes_are_those_of_the_upright_target(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "a.jpg": picture(RED, (40, 20), "JPEG", exif=exif),
        "a.txt": "x",
        "b.png": picture(RED, (60, 20)),
        "b.input.png": picture(RED, (30, 30)),
        "b.txt": "x",
    }
    found, report = index(write(tmp_path / "d", files), tmp_path / "out")
    assert found.sizes().tolist() == [[20, 40], [60, 20]] and found.sizes().dtype == np.int32
    assert (found[0].width, found[0].height) == (20, 40)
    assert dict(report.shapes) == {"tall": 1, "wide": 1}
    assert dict(report.converted) == {"turned by EXIF": 1}


@pytest.mark.parametrize("files", [FOLDER, {"a/x.tar": pack(pairs(5)), "b.tar": pack(pairs(3))}])
@pytest.mark.parametrize("check", ["decode", "header"])
def test_urls_give_what_paths_give(tmp_path, files, check):
    local, _ = index(write(tmp_path / "d", files), tmp_path / "out", check=check)
    by_url, _ = index(f"file://{tmp_path}/d", tmp_path / "out2", check=check)
    memory = fsspec.filesystem("memory")
    memory.rm("/set", recursive=True) if memory.exists("/set") else None
    for name, data in files.items():
        memory.pipe(f"/set/{name}", data.encode() if isinstance(data, str) else data)
    remote, _ = index("memory://set", tmp_path / "out3", check=check)
    assert samples(remote) == samples(local) == samples(by_url)
    if check == "decode" or "cat.png" not in files:  # heads alone do not tell what a file is, its time does
        assert remote.fingerprint == local.fingerprint
    assert remote[0].target.path.startswith("memory://set/")


def test_a_url_that_is_not_there():
    with pytest.raises(ValueError, match="There is nothing at memory://nowhere; check the URL"):
        list_files("memory://nowhere")
    with pytest.raises(ValueError, match="strange://x cannot be opened"):
        list_files("strange://x")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}


def test_the_number_of_processes_changes_nothing(tmp_path):
    files = {f"{n}.tar": pack(pairs(4 + n)) for n in range(5)} | {
        "5.tar": pack({"x.png": b"", "x.txt": b"x"})
    }
    write(tmp_path / "d", files)
    seen = []
    one, report_one = index(tmp_path / "d", tmp_path / "one")
    two, report_two = index(tmp_path / "d", tmp_path / "two", workers=2, progress=seen.append)
    assert contents(one.folder) == contents(two.folder)
    assert samples(one) == samples(two) and len(one) == 30
    assert sum(seen) == 31
    assert report_one.refused == report_two.refused == {"not a picture": 1}


class Deadly:
    """Ends the process that receives it."""

    def __reduce__(self) -> tuple:
        return os._exit, (1,)


def test_a_worker_that_dies_is_an_error(tmp_path, monkeypatch):
    write(tmp_path / "d", {f"{n}.tar": pack(pairs(1)) for n in range(3)})
    monkeypatch.setattr(tars, "units", lambda place: [Deadly()] * 3)
    with pytest.raises(ValueError, match="A worker process died, likely for want of memory"):
        index(tmp_path / "d", tmp_path / "out", workers=2)
    assert os.listdir(tmp_path / "out") == []


def test_batches_are_crossed(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_files, "BATCH", 4)
    monkeypatch.setattr(findings, "CHUNK", 3)
    found_, _ = index(write(tmp_path / "d", pairs(11)), tmp_path / "out")
    assert [found_[i].text for i in range(11)] == [f"text {i}" for i in range(11)]
    assert [pixel(found_[i].target)[0] for i in (10, 3, 4, 8)] == [10, 3, 4, 8]
    assert found_.selected(["000[0]*", "*04.png", "0010*"], lenient=True).tolist() == [
        0,
        1,
        2,
        3,
        5,
        6,
        7,
        8,
        9,
    ]
    assert len(found_.sizes()) == 11
    with pytest.raises(IndexError, match="has 11 samples; there is no sample 11"):
        found_[11]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_other_processes_read_too(tmp_path, method):
    """The parent's open files cross no fork, and an index is sent as little more than its path."""
    found, _ = index(write(tmp_path / "d", {"x.tar": pack(pairs(3))}), tmp_path / "out")
    store = Storage()
    assert pixel(found[0].target, store) == (0, 0, 0)
    assert len(pickle.dumps(found)) < 2000 and len(pickle.dumps(store)) < 200
    assert answer(first_pixels, found, store, method=method) == [(i, 0, 0) for i in range(3)]
    assert pixel(found[2].target, store) == (2, 0, 0)


def test_the_header_check_reads_headers_only(tmp_path, monkeypatch):
    noise = os.urandom(300 * 300 * 3)
    file = tmp_path / "noise.png"
    Image.frombytes("RGB", (300, 300), noise).save(file)
    data = file.read_bytes()
    assert len(data) > 200_000
    read = []
    real = Storage.read_range
    monkeypatch.setattr(
        Storage,
        "read_range",
        lambda self, ref, start, count: read.append(count) or real(self, ref, start, count),
    )
    # damage behind the header is what this check does not see
    tar = pack([(f"{i}.{kind}", d) for i in range(4) for kind, d in (("png", data), ("txt", b"t"))])
    found, _ = index(write(tmp_path / "d", {"x.tar": tar}), tmp_path / "out", check="header")
    assert len(found) == 4
    assert sum(read) < len(tar) / 2


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "OPEN_FILES", 2)
    write(tmp_path / "d", {f"{n}.tar": pack(pairs(1)) for n in range(5)})
    found, _ = index(tmp_path / "d", tmp_path / "out")
    store = Storage()
    assert [pixel(found[i].target, store) for i in (0, 1, 2, 3, 4, 0)] == [(0, 0, 0)] * 6
    assert len(store._open) == 2


def test_the_fingerprint_is_that_of_the_contents(tmp_path):
    write(tmp_path / "d", {"x.tar": pack(pairs(3))})
    first, _ = index(tmp_path / "d", tmp_path / "a")
    again, _ = index(tmp_path / "d", tmp_path / "b")
    os.rename(tmp_path / "d", tmp_path / "moved")
    moved, _ = index(tmp_path / "moved", tmp_path / "c")
    assert first.fingerprint == again.fingerprint == moved.fingerprint
    write(tmp_path / "moved", {"x.tar": pack(pairs(3) | {"0001.txt": b"other"})})
    other, _ = index(tmp_path / "moved", tmp_path / "e")
    assert other.fingerprint != first.fingerprint


def test_a_changed_source_is_noticed(tmp_path):
    write(tmp_path / "d", {"x.tar": pack(pairs(3))})
    found, _ = index(tmp_path / "d", tmp_path / "out")
    found.check_source()
    write(tmp_path / "d", {"x.tar": pack(pairs(30))})
    with pytest.raises(ValueError, match=r"x\.tar of .* has changed; index the data set again"):
        found.check_source()
    (tmp_path / "d/x.tar").unlink()
    with pytest.raises(ValueError, match=r"x\.tar of .* cannot be used"):
        found.check_source()


@pytest.mark.parametrize("check", ["decode", "header"])
def test_a_loose_picture_that_was_replaced_is_noticed(tmp_path, check):
    """Of the same size, so that only its time and contents tell."""
    write(
        tmp_path / "d",
        {"a.bmp": picture(RED, kind="BMP"), "a.txt": "t", "b.bmp": picture(RED, kind="BMP"), "b.txt": "t"},
    )
    found, _ = index(tmp_path / "d", tmp_path / "out", check=check)
    first = found.cache_name(found[0])
    found.check_source()
    path = tmp_path / "d/a.bmp"
    path.write_bytes(picture(BLUE, kind="BMP"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(
        ValueError, match=r"a\.bmp is another file than was indexed; index the data set again"
    ):
        found.check_source()
    with pytest.raises(OSError, match=r"a\.bmp is another file than was indexed"):
        Storage().read(found[0].target)
    assert pixel(found[1].target) == RED
    again, _ = index(tmp_path / "d", tmp_path / "again", check=check)
    again.check_source()
    assert again.fingerprint != found.fingerprint and again.cache_name(again[0]) != first
    if check == "decode":  # what was not replaced keeps its entries
        assert again.cache_name(again[1]) == found.cache_name(found[1])


def test_a_copy_of_a_loose_picture_is_the_same_picture(tmp_path):
    write(tmp_path / "d", pairs(1))
    found, _ = index(tmp_path / "d", tmp_path / "out")
    os.utime(tmp_path / "d/0000.png", ns=(1, 1))
    found.check_source()
    assert pixel(found[0].target) == (0, 0, 0)


def test_two_samples_of_one_key_are_an_error(tmp_path):
    files = {
        "a.tar": pack({"b/1.png": picture(), "b/1.txt": b"x"}),
        "a/b.tar": pack({"1.png": picture(), "1.txt": b"y"}),
    }
    with pytest.raises(ValueError, match="Two samples have the key a/b/1; rename one of the files"):
        index(write(tmp_path / "d", files), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_an_exclude_glob_that_fits_nothing_is_an_error(tmp_path):
    found, _ = index(write(tmp_path / "d", pairs(3)), tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"No sample of set fits the exclude glob '\*geneval\*'; .*'0000\.png'"
    ):
        found.selected(["0001*", "*geneval*"])
    assert found.selected(["0001*", "*geneval*"], lenient=True).tolist() == [0, 2]


def test_an_index_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write(tmp_path / "d", pairs(3))
    old, _ = index(tmp_path / "d", tmp_path / "out")
    assert pixel(old[1].target) == (1, 0, 0)
    write(tmp_path / "d", pairs(5))
    monkeypatch.setattr(examining, "check_sample", lambda found: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index(tmp_path / "d", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["set"]
    assert len(Index(tmp_path / "out/set")) == 3
    monkeypatch.undo()
    new, _ = index(tmp_path / "d", tmp_path / "out")
    assert (len(new), len(old)) == (5, 3)
    assert old[2].text == "text 2"  # a run that has mapped the old one goes on
    assert os.listdir(tmp_path / "out") == ["set"]


def test_what_is_no_index_is_not_replaced(tmp_path):
    write(tmp_path / "out/set", {"thesis.txt": "years of work"})
    write(tmp_path / "d", pairs(1))
    with pytest.raises(ValueError, match="is there and no index; give another name"):
        index(tmp_path / "d", tmp_path / "out")
    assert (tmp_path / "out/set/thesis.txt").exists()


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"a.mp4": b"x", "b.mp4": b"x", "c": b"x"},
            r"no data set of a known layout \(found: 2 \.mp4, 1 without",
        ),
        ({"a.png": picture()}, r"found: 1 \.png\)"),
        ({}, "found: no files"),
        ({"a.png": b"x", "a.txt": "t"}, r"can be used: not a picture \(1, first a\.png\)\.$"),
        ({"x.tar": b""}, r"can be used: x\.tar: torn at byte 0"),
    ],
)
def test_nothing_to_index(tmp_path, files, sentence):
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match=sentence):
        index(write(tmp_path / "d", files), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_a_link_to_nothing_costs_its_sample(tmp_path):
    write(tmp_path / "d", pairs(2))
    (tmp_path / "d/x.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "d/x.txt").write_text("lost")
    (tmp_path / "d/LICENSE").symlink_to(tmp_path / "gone")
    found, report = index(tmp_path / "d", tmp_path / "out")
    assert len(found) == 2 and report.refused_first == {"picture file is missing": ["x.png"]}


def test_a_link_to_where_it_lies(tmp_path):
    write(tmp_path / "d/sub", pairs(1))
    (tmp_path / "d/sub/again").symlink_to(tmp_path / "d")
    with pytest.raises(ValueError, match=r"sub/again leads back to a folder that it lies in"):
        index(tmp_path / "d", tmp_path / "out")


def test_no_source(tmp_path):
    with pytest.raises(ValueError, match="There is nothing at .*nowhere; check the path"):
        build(str(tmp_path / "nowhere"), tmp_path / "out")


def test_bad_indexes(tmp_path):
    with pytest.raises(ValueError, match="There is no index at"):
        Index(tmp_path)
    found, _ = index(write(tmp_path / "d", pairs(2)), tmp_path / "out")
    whole = (found.folder / "samples.arrow").read_bytes()
    (found.folder / "samples.arrow").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"samples\.arrow is missing or damaged; index the data set again"):
        Index(found.folder)
    manifest = found.manifest | {"format": 99}
    (found.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is an index of format 99, not 4"):
        Index(found.folder)
    (found.folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        Index(found.folder)


FLIPPED = ["samples.arrow", "files.arrow", "manifest.json"]


def everything(folder: Path) -> list:
    """All that training reads of an index."""
    found = Index(folder)
    rows = [found[i] for i in range(len(found))]
    return [found.fingerprint, found.sizes().tolist(), found.selected(["*1*"]).tolist(), rows]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> tuple[Path, list]:
    folder = tmp_path_factory.mktemp("sound")
    found, _ = index(write(folder / "d", pairs(12)), folder / "out")
    return found.folder, everything(found.folder)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["samples.arrow", "files.arrow", "manifest.json"]),
    st.integers(0, 10**6),
    st.integers(0, 7),
)
def test_flipped_bits_are_refused_or_harmless(sound, name, at, bit):
    folder, expected = sound
    content = (folder / name).read_bytes()
    flipped = bytearray(content)
    flipped[at % len(content)] ^= 1 << bit
    (folder / name).write_bytes(flipped)
    try:
        assert everything(folder) == expected  # padding
    except ValueError as error:
        assert raised_by_us(error), error
        assert "index the data set again" in str(error) or "no index" in str(error)
    finally:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("old", [False, True])
def test_a_flipped_letter_of_a_text_and_an_offset_that_leads_out(tmp_path, old):
    found, _ = index(write(tmp_path / "d", pairs(3)), tmp_path / "out")
    if old:  # of an index from before there were sums only what cannot be read is found
        manifest = {name: value for name, value in found.manifest.items() if name != "sums"}
        (found.folder / "manifest.json").write_text(json.dumps(manifest))
    path = found.folder / "samples.arrow"
    whole = path.read_bytes()
    offsets = np.array([0, 6, 12, 18], "<i4").tobytes()
    assert offsets in whole and b"text 0" in whole
    cases = [whole.replace(offsets, np.array([0, 6, 1 << 30, 18], "<i4").tobytes())]
    cases += [] if old else [whole.replace(b"text 0", b"texu 0")]
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"samples\.arrow is damaged; index the data set again"):
            Index(found.folder)[0]
    path.write_bytes(whole)
    assert Index(found.folder)[1].text == "text 1"


def test_full_disk_while_indexing(tmp_path, monkeypatch, capsys):
    class Full(work.Work):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            (self.new / "samples.arrow").symlink_to("/dev/full")

    monkeypatch.setattr(build_module, "Work", Full)
    source = write(tmp_path / "d", pairs(2))
    assert main(["data", "index", str(source), "-o", str(tmp_path / "out"), "--workers", "1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("out/d does not fit, the disk is full; free some space.")
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_unicode(tmp_path):
    write(tmp_path / "d", pairs(1))
    os.makedirs(os.fsencode(tmp_path / "d"), exist_ok=True)
    for kind, data in ((b"png", picture()), (b"txt", b"t")):
        with open(os.fsencode(tmp_path / "d") + b"/\xff." + kind, "wb") as file:
            file.write(data)
    found, report = index(tmp_path / "d", tmp_path / "out")
    assert len(found) == 1 and dict(report.refused) == {"name or text is not Unicode": 1}
    report.table().encode()


def test_limits_agree_with_core():
    assert findings.MAX_INPUTS == MAX_IMAGES
    assert command.LAYOUTS == tuple(build_module.LAYOUTS)
    assert command.CAPTIONS == CAPTION_RULES and lengths.LIMIT == MAX_TEXT_TOKENS


# --- the command


def call(*words: str | Path) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args([str(word) for word in words])
    options.run(options)


def test_index_command(tmp_path, capsys):
    write(tmp_path / "mine", FOLDER)
    write(tmp_path / "shards.v2", {"x.tar": pack(pairs(3) | {"bad.png": b"", "bad.txt": b"b"})})
    call("index", tmp_path / "mine", tmp_path / "shards.v2", "-o", tmp_path / "index", "--workers", "1")
    printed = capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "index")) == ["mine", "shards"]
    assert "mine: 6 samples (folder, " in printed and "shards: 3 samples (tars, " in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "input pictures 0 5" in lines and "1 1" in lines
    assert "refused not a picture 1 x/bad" in lines
    assert "samples/s (decode)" in printed
    report = json.loads((tmp_path / "index/shards/report.json").read_text())
    assert report["samples"] == 3 and report["refused"] == {"not a picture": 1}
    assert report["samples_per_second"] > 0


def test_index_command_refusals(tmp_path):
    write(tmp_path / "a/x", pairs(1))
    write(tmp_path / "b/x", pairs(1))
    with pytest.raises(ValueError, match="2 data sets cannot share the name y"):
        call("index", tmp_path / "a/x", tmp_path / "b/x", "--name", "y")
    with pytest.raises(ValueError, match="Two data sets are called x"):
        call("index", tmp_path / "a/x", tmp_path / "b/x", "-o", tmp_path / "index")
    with pytest.raises(SystemExit):
        call("index", tmp_path / "a/x", "--workers", "0")
    with pytest.raises(ValueError, match="Nothing in"):
        call("index", tmp_path / "a/x", "-o", tmp_path / "index", "--format", "tars")


def test_show_command(tmp_path, capsys):
    write(tmp_path / "mine", FOLDER | {"cat.txt": "a " * 300 + "猫" * 300})
    call("index", tmp_path / "mine", "-o", tmp_path / "index", "--workers", "1")
    (tmp_path / "mine/cat.png").unlink()
    table = capsys.readouterr().out
    call("show", tmp_path / "index/mine")
    assert capsys.readouterr().out.startswith(table)
    with Image.open(tmp_path / "index/mine/sheet.png") as sheet:
        colors = {color for _, color in sheet.convert("RGB").getcolors(10**6)}
        assert sheet.width <= 1200
    assert {RED, GREEN, BLUE, (255, 0, 0)} <= colors  # pure red: the picture that is gone
    call("show", tmp_path / "index/mine", "-o", tmp_path / "few.png", "--samples", "1")
    with Image.open(tmp_path / "few.png") as few:
        assert few.height < 300
    with pytest.raises(ValueError, match=r"few\.jpg is no \.png"):
        call("show", tmp_path / "index/mine", "-o", tmp_path / "few.jpg")


TOKENIZER = Path(__file__).resolve().parent.parent / "assets/nano/tokenizer"


@pytest.mark.parametrize("tokenizer", [None, TOKENIZER])
def test_texts_that_are_cut_are_counted(tmp_path, capsys, tokenizer):
    texts = {"a": "a panda " * 127, "b": "a panda " * 130, "c": "猫" * 500, "d": "short"}
    write(tmp_path / "d", {f"{n}.png": picture() for n in texts} | {f"{n}.txt": t for n, t in texts.items()})
    given = ["--tokenizer", tokenizer] if tokenizer else []
    call("index", tmp_path / "d", "-o", tmp_path / "out", "--workers", "1", *given)
    line = next(line for line in capsys.readouterr().out.splitlines() if "cut at 256 tokens" in line)
    assert line.split()[6] == "2" and ("estimated; --tokenizer DIR counts" in line) == (tokenizer is None)
    assert Index(tmp_path / "out/d").manifest["cut"] == 2
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        call("index", tmp_path / "d", "-o", tmp_path / "out", "--tokenizer", tmp_path)


def test_the_dry_run_counts_texts_that_are_cut(tmp_path):
    texts = {f"{i:02}": "word " * (300 if i % 2 else 3) for i in range(10)}
    files = {f"{n}.png": picture() for n in texts} | {f"{n}.txt": t for n, t in texts.items()}
    found, _ = index(write(tmp_path / "d", files), tmp_path / "out")
    parts = SimpleNamespace(max_text_tokens=256, tokenizer=None)
    line = cut_texts(TrainSet(found, [range(10)]), parts)
    assert line == "set: 5 of 10 texts looked at are cut at 256 tokens, by estimate."
    parts.tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    line = cut_texts(TrainSet(found, [range(4), range(6, 10)]), parts)
    assert line == "set: 4 of 8 texts looked at are cut at 256 tokens."
    assert cut_texts(TrainSet(found, [range(0, 10, 2)]), parts) == ""


def test_the_sheet_shows_what_the_model_sees(tmp_path):
    """The middle of a wide picture, and the text up to where it is cut."""
    wide = Image.new("RGB", (300, 100), RED)
    wide.paste(BLUE, (100, 0, 200, 100))
    wide.save(tmp_path / "wide.png")
    files = {"a.png": (tmp_path / "wide.png").read_bytes(), "a.txt": "a panda " * 140}
    write(tmp_path / "d", files)
    call("index", tmp_path / "d", "-o", tmp_path / "out", "--workers", "1")
    recipe = Path(command.__file__).parent.parent / "recipes/nano/own_pictures.yaml"
    colors, heights = {}, {}
    for name, words in {"whole": [], "seen": ["--recipe", recipe, "--tokenizer", TOKENIZER]}.items():
        call("show", tmp_path / "out/d", "-o", tmp_path / f"{name}.png", *words)
        with Image.open(tmp_path / f"{name}.png") as sheet:
            colors[name] = {color for _, color in sheet.convert("RGB").getcolors(10**6)}
            heights[name] = sheet.height
    assert {RED, BLUE} <= colors["whole"]
    assert BLUE in colors["seen"] and RED not in colors["seen"]
    assert heights["seen"] < heights["whole"]  # 280 words were drawn there, and here 256


def test_the_parser_imports_nothing_heavy():
    code = (
        "import argparse, sys; from tbac_uniimage.training.data import command;"
        "command.add_arguments(argparse.ArgumentParser());"
        "print([m for m in ('torch', 'pyarrow', 'PIL', 'numpy', 'fsspec') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "[]"


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Storage().read(Ref(str(tmp_path / "x.png")))
