"""Tars in the WebDataset layout: pairs, edits, torn, compressed and split ones."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import tarfile
import unicodedata

import pytest
from data_files import BLUE, GREEN, RED, index, pack, picture, pixel, samples, write
from hypothesis import given
from hypothesis import strategies as st
from tbac_uniimage.training.data.archives import Torn, walk
from tbac_uniimage.training.data.columns import Columns
from tbac_uniimage.training.data.layouts.pairs import pair
from tbac_uniimage.training.data.refs import Ref
from tbac_uniimage.training.data.storage import Storage
from tbac_uniimage.training.data.words import kind_of


def test_pairs_of_blip3o(tmp_path):
    """BLIP3o-60k: flat tars of <key>.jpg + <key>.txt; one of them is left out by its name."""
    files = {
        "data/geneval_train.tar": pack({"7.jpg": picture(GREEN, kind="PNG"), "7.txt": b"a green thing"}),
        "data/human.tar": pack({"b.webp": picture(BLUE, kind="WEBP", lossless=True), "b.txt": b"blue\n"}),
        "data/dalle3.tar": pack(
            {
                "a.png": picture(RED),
                "a.txt": b"\xef\xbb\xbf red",
                "b.png": picture(BLUE),
                "b.json": b'{"prompt": "B"}',
            }
        ),
    }
    found, report = index(write(tmp_path / "BLIP3o-60k", files), tmp_path / "out")
    assert samples(found) == {
        "data/dalle3/a": ("red", RED),
        "data/dalle3/b": ("B", BLUE),
        "data/geneval_train/7": ("a green thing", GREEN),
        "data/human/b": ("blue", BLUE),
    }
    assert list(samples(found)) == sorted(samples(found))
    assert found.selected(["*geneval_train*"]).tolist() == [0, 1, 3]
    assert found.selected(["*/a", "data/human/?"]).tolist() == [1, 2]
    assert found.selected().tolist() == [0, 1, 2, 3]
    assert found.sizes().tolist() == [[24, 16]] * 4
    assert (report.samples, report.layout, dict(report.inputs)) == (4, "tars", {"0": 4})


def test_edit_triplets(tmp_path):
    files = {
        "1.output.png": picture(BLUE),
        "1.input.png": picture(RED),
        "1.txt": b"make it blue",
        "2.input_1.png": picture(GREEN),
        "2.input_0.png": picture(RED),
        "2.output.png": picture(BLUE),
        "2.json": b'{"caption": "not this", "instruction": "merge"}',
        "3.source.png": picture(RED),
        "3.target.png": picture(GREEN),
        "3.txt": b"paint",
        "4.input.png": picture(RED),
        "4.txt": b"nothing came of it",
    }
    found, report = index(write(tmp_path / "d", {"edits.tar": pack(files)}), tmp_path / "out")
    assert samples(found) == {
        "edits/1": ("make it blue", BLUE, RED),
        "edits/2": ("merge", BLUE, RED, GREEN),
        "edits/3": ("paint", GREEN, RED),
    }
    assert dict(report.refused) == {"no target picture": 1}
    assert report.refused_first == {"no target picture": ["edits/4"]}
    assert found.input_counts().tolist() == [1, 2, 1]


def test_what_is_refused_is_counted_and_named(tmp_path):
    files = [
        ("a.png", b"no"), ("a.txt", b"x"),
        ("b.png", picture()), ("b.txt", b"  "),
        ("c.png", picture()),
        ("d.txt", b"alone"),
        ("e.png", picture()), ("e.txt", b"caf\xe9"),
        ("f.png", picture()), ("f.json", b"{"),
        ("g.png", picture()), ("g.json", b'{"seed": 1}'),
        ("h.png", picture(size=(1, 1))), ("h.txt", b"x"),
        ("i.output.png", picture()), ("i.input.png", b""), ("i.txt", b"x"),
        *[(f"j.input{n}.png", picture()) for n in range(5)], ("j.output.png", picture()), ("j.txt", b"x"),
        ("k.png", picture("white", mode="L")), ("k.txt", b"good"), ("k.cls", b"0"),
    ]  # fmt: skip
    found, report = index(write(tmp_path / "d", {"s.tar": pack(files)}), tmp_path / "out")
    assert samples(found) == {"s/k": ("good", (255, 255, 255))}
    assert dict(report.refused) == {
        "not a picture": 2,
        "empty text": 1,
        "no text": 1,
        "text without a picture": 1,
        "text is not UTF-8; say what it is with --encoding (gbk, latin-1, …)": 1,
        "JSON without a text": 1,
        "text is no JSON": 1,
        "smaller than 16 pixels": 1,
        "more than 4 input pictures": 1,
    }
    assert dict(report.converted) == {"L to RGB": 1}
    assert dict(report.ignored) == {".cls": 1} and report.notes == []
    assert "other files    .cls" in report.table()
    lines = [json.loads(line) for line in open(tmp_path / "out/set/refused.jsonl")]
    assert [line["key"] for line in lines] == [f"s/{key}" for key in "abcdefghij"]
    assert lines[0]["reason"] == "not a picture" and lines[0]["detail"].endswith("s.tar")


def test_keys_that_come_twice_are_distinct_samples(tmp_path):
    files = [("a.png", picture(RED)), ("a.txt", b"one"), ("a.png", picture(BLUE)), ("a.txt", b"two")]
    found, _ = index(
        write(tmp_path / "d", {"s.tar": pack(files), "t/s.tar": pack(files[:2])}), tmp_path / "out"
    )
    assert samples(found) == {"s/a": ("one", RED), "s/a#2": ("two", BLUE), "t/s/a": ("one", RED)}


def test_torn_tar(tmp_path):
    """All before the tear is there; the tear is named with its place."""
    whole = pack(
        {f"{i}.{kind}": data for i in range(4) for kind, data in (("png", picture((i, 0, 0))), ("txt", b"t"))}
    )
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        third = tar.getmember("2.png")
    cases = {
        "in_header": third.offset + 100,
        "in_data": third.offset_data + 10,
        "between": third.offset,
    }
    for name, size in cases.items():
        found, report = index(write(tmp_path / name, {"s.tar": whole[:size]}), tmp_path / name / "out")
        assert list(samples(found)) == ["s/0", "s/1"]
        assert len(report.notes) == 1
        assert report.notes[0].startswith(f"s.tar: torn at byte {third.offset} (")
        assert report.notes[0].endswith("; 2 samples before that were found.")


def test_garbage_in_the_middle_of_a_tar(tmp_path):
    whole = bytearray(pack({"0.png": picture(), "0.txt": b"t", "1.png": picture(), "1.txt": b"t"}))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        place = tar.getmember("1.png").offset
    whole[place : place + 512] = b"x" * 512
    found, report = index(write(tmp_path / "d", {"s.tar": bytes(whole)}), tmp_path / "out")
    assert list(samples(found)) == ["s/0"]
    assert f"s.tar: torn at byte {place} (" in report.notes[0]


def test_a_file_that_is_no_tar(tmp_path):
    files = {"bad.tar": b"<html>", "empty.tar": b"", "good.tar": pack({"0.png": picture(), "0.txt": b"t"})}
    found, report = index(write(tmp_path / "d", files), tmp_path / "out")
    assert list(samples(found)) == ["good/0"]
    assert [note.partition(":")[0] for note in report.notes] == ["bad.tar", "empty.tar"]
    assert all("torn at byte 0 (no tar" in note for note in report.notes)


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz"])
def test_compressed(tmp_path, name):
    data = pack({f"{i}.{k}": d for i in range(30) for k, d in (("png", picture((i, 0, 0))), ("txt", b"t"))})
    found, _ = index(write(tmp_path / "d", {name: gzip.compress(data)}), tmp_path / "out")
    storage = pickle.loads(pickle.dumps(Storage()))
    assert [pixel(found[i].target, storage) for i in (29, 0, 7)] == [(29, 0, 0), (0, 0, 0), (7, 0, 0)]


@pytest.mark.parametrize("compress", [True, False])
def test_split(tmp_path, compress):
    """Parts of an archive are read as one file; members cross their borders."""
    data = pack({f"{i}.{k}": d for i in range(9) for k, d in (("png", picture((i, 0, 0))), ("txt", b"t"))})
    whole, kind = (gzip.compress(data), "tar.gz") if compress else (data, "tar")
    size = len(whole) // 3
    parts = [whole[:size], whole[size : 2 * size], whole[2 * size :]]
    files = {f"x/s.{kind}.part{i + 1:03}": part for i, part in enumerate(parts)}
    found, report = index(write(tmp_path / "d", files), tmp_path / "out")
    assert samples(found) == {f"x/s/{i}": ("t", (i, 0, 0)) for i in range(9)}
    assert report.notes == []
    assert not list((tmp_path / "d").rglob("*.gzidx"))

    (tmp_path / "d" / f"x/s.{kind}.part002").unlink()
    with pytest.raises(ValueError, match=rf"Part 2 of x/s\.{kind} is missing"):
        index(tmp_path / "d", tmp_path / "out")


def bmps(data: bytes) -> bytes:
    """A tar of four samples with this picture."""
    return pack([(f"{i}.{kind}", d) for i in range(4) for kind, d in (("bmp", data), ("txt", b"t"))])


def test_torn_gzip(tmp_path):
    noise = picture((3, 4, 5), size=(500, 500), kind="BMP")
    data = gzip.compress(
        pack([(f"{i}.{k}", d) for i in range(4) for k, d in (("bmp", noise), ("txt", b"t"))]), 0
    )
    found, report = index(
        write(tmp_path / "d", {"s.tar.gz": data[: len(data) // 2 + 9000]}), tmp_path / "out"
    )
    assert samples(found) == {f"s/{i}": ("t", (3, 4, 5)) for i in range(2)}
    assert report.notes[0].startswith("s.tar.gz: torn at byte 15")


def test_corrupt_gzip(tmp_path):
    """Between the last seek point and the damage nothing can be read at random: such samples are refused."""
    noise = picture((3, 4, 5), (500, 500), "BMP")
    data = bytearray(gzip.compress(bmps(noise), 0))
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    files = {"s.tar.gz": bytes(data), "t.tar": pack({"a.png": picture(RED), "a.txt": b"t"})}
    found, report = index(write(tmp_path / "d", files), tmp_path / "out")
    assert samples(found) == {"t/a": ("t", RED)}
    assert report.refused_first == {"text cannot be read": ["s/0", "s/1"]}
    assert report.notes[0].startswith("s.tar.gz: torn at byte 15")


def test_a_changed_tar_is_noticed(tmp_path):
    write(tmp_path / "d", {"s.tar": pack({"0.png": picture(), "0.txt": b"t"})})
    found, _ = index(tmp_path / "d", tmp_path / "out")
    (tmp_path / "d" / "s.tar").write_bytes(b"short")
    with pytest.raises(OSError, match=r"s\.tar ends \d+ bytes too early; index it again"):
        Storage().read(found[0].target)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=30).filter(
    lambda name: name.strip(".") == name
)


def says_nothing(name: str) -> bool:
    """Whether the last part of a name is no role and no word for a text."""
    return kind_of(re.split(r"[._-]", name)[-1]) == "unknown" and not re.search(
        r"[._-](\d*|txt|text|edit)$", name
    )


@given(st.lists(NAMES.filter(says_nothing), min_size=1, max_size=5), st.randoms())
def test_any_names_in_any_order(keys, random):
    """Keys with dots, blanks and any script are found again, in whatever order the members come."""
    files = {}
    for number, key in enumerate(keys):
        files |= {f"k{number}{key}.png": (number, "target"), f"k{number}{key}.txt": (number, "text")}
    order = list(files)
    random.shuffle(order)
    packed = pack({name: str(files[name]).encode() for name in order})
    seen = {}
    found = [
        (member.name, Ref("", member.offset, member.size)) for member in walk(io.BytesIO(packed), len(packed))
    ]
    groups, _, _ = pair(found, Columns())
    for group in groups:
        (picture,), (text,) = group.pictures.values(), group.texts.values()
        seen[group.key] = [packed[r.offset : r.offset + r.size].decode() for r in (picture, text)]
    assert seen == {
        unicodedata.normalize("NFC", f"k{number}{key}"): [str((number, "target")), str((number, "text"))]
        for number, key in enumerate(keys)
    }


@given(st.integers(0, 6000))
def test_a_cut_anywhere_is_a_tear_or_the_end(size):
    whole = pack({f"{i}.txt": bytes(700) for i in range(3)})
    names = []
    try:
        names += [member.name for member in walk(io.BytesIO(whole[:size]), min(size, len(whole)))]
    except Torn:
        pass
    assert names == [] or size >= 512
    # the walk itself, without losing what came before the tear
    found, torn = [], False
    try:
        for member in walk(io.BytesIO(whole[:size]), size):
            found.append(member)
    except Torn:
        torn = True
    assert torn == (size < 3 * 1536 + 512)
    assert [m.name for m in found] == [f"{i}.txt" for i in range(3) if i * 1536 + 512 + 700 <= size]
