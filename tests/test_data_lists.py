"""Lists that name picture files, on disk or in archives beside them."""

from __future__ import annotations

import gzip
import io
import json

import pytest
from data_files import BLUE, GREEN, RED, index, pack, picture, samples, write
from hypothesis import given
from hypothesis import strategies as st
from tbac_uniimage.training.data.records import parse_record, read_records
from tbac_uniimage.training.data.rows import Broken


def test_sharegpt_4o_image(tmp_path):
    """Two JSON arrays, tars at the root that nobody extracted, and pictures that are named but not there."""

    def edit(text: str, inputs: str | list[str]) -> dict:
        return {"input_prompt": text, "input_image": inputs, "output_image": "editing/out_1.png"}

    files = {
        "text_to_image.json": json.dumps(
            [
                {"input_prompt": "a red box", "output_image": "text_to_image/1.png"},
                {"input_prompt": "gone", "output_image": "text_to_image/2.png"},
            ]
        ),
        "text_and_image_to_image.json": json.dumps(
            [
                edit("blue", ["editing/in_1.png"]),
                edit("both", ["editing/in_1.png", "./editing//in_2.png"]),
                edit("x", "editing/gone.png"),
            ]
        ),
        "text_to_image_part_0.tar": pack({"text_to_image/1.png": picture(RED)}),
        "editing_part_0.tar": pack(
            {"./editing/in_1.png": picture(GREEN), "editing/out_1.png": picture(BLUE)}
        ),
        "editing_part_1.tar": pack({"editing/in_2.png": picture(RED)}),
        "README.md": "# ShareGPT-4o-Image",
    }  # fmt: skip
    found, report = index(write(tmp_path / "ShareGPT-4o-Image", files), tmp_path / "out")
    assert samples(found) == {
        "text_and_image_to_image/0:editing/out_1.png": ("blue", BLUE, GREEN),
        "text_and_image_to_image/1:editing/out_1.png": ("both", BLUE, GREEN, RED),
        "text_to_image/0:text_to_image/1.png": ("a red box", RED),
    }
    assert report.layout == "lists"
    assert dict(report.refused) == {"picture file is missing": 2}
    refused = [json.loads(line) for line in open(tmp_path / "out/set/refused.jsonl")]
    assert [(item["key"], item["detail"]) for item in refused] == [
        ("text_and_image_to_image/2:editing/out_1.png", "editing/gone.png"),
        ("text_to_image/1:text_to_image/2.png", "text_to_image/2.png"),
    ]


def test_extracted_files_come_before_archives(tmp_path):
    files = {
        "list.json": json.dumps([{"input_prompt": "t", "output_image": "images/1.png"}]),
        "images/1.png": picture(GREEN),
        "images.tar": pack({"images/1.png": picture(RED)}),
    }
    found, _ = index(write(tmp_path / "d", files), tmp_path / "out")
    assert samples(found) == {"list/0:images/1.png": ("t", GREEN)}


def test_members_without_the_folder_of_their_archive(tmp_path):
    """images/1.png is 1.png of images.tar; a name that two archives hold is not guessed."""
    rows = [{"prompt": "t", "image": name} for name in ("a/1.png", "b/1.png", "1.png", "2.png")]
    files = {
        "list.jsonl": "\n".join(map(json.dumps, rows)),
        "a.tar": pack({"1.png": picture(RED)}),
        "b.tar.gz": gzip.compress(pack({"1.png": picture(BLUE), "2.png": picture(GREEN)})),
    }
    found, report = index(write(tmp_path / "d", files), tmp_path / "out")
    assert samples(found) == {
        "list/0:a/1.png": ("t", RED),
        "list/1:b/1.png": ("t", BLUE),
        "list/3:2.png": ("t", GREEN),
    }
    assert report.refused_first == {"several files have this name; give more of its path": ["list/2:1.png"]}


def test_gpt_image_edit(tmp_path):
    """The annotations lie in a repository of their own; the pictures in parts of a gzipped tar."""

    def row(text: str, *images: str) -> dict:
        said = [{"from": "human", "value": text}, {"from": "gpt", "value": "<image>"}]
        return {"image": [f"hqedit/edit/{name}.png" for name in images], "conversations": said}

    names = {
        f"hqedit/edit/{side}/{i:08}.png": color
        for i in range(3)
        for side, color in (("input", RED), ("output", BLUE))
    }
    packed = gzip.compress(pack({name: picture(color) for name, color in names.items()}))
    pictures = {
        f"gpt-edit/hqedit.tar.gz.part{i + 1:03}": packed[i * 200 : (i + 1) * 200]
        for i in range(-(-len(packed) // 200))
    }
    annotations = {
        "data.txt": "../data/gpt-edit,training_json/hqedit.json,true\n\n"
        "../data/gpt-edit, training_json/omni.json, false\n",
        "training_json/hqedit.json": json.dumps(
            [
                row("<image>Make it blue.", "input/00000000", "output/00000000"),
                row("<image>Lost", "input/00000009", "output/00000009"),
            ]
        ),
        "training_json/omni.json": json.dumps(
            [
                row("<image>\n<image>\nMerge", "input/00000001", "output/00000002", "output/00000001"),
                row("Draw it", "output/00000001"),
            ]
        ),
    }  # fmt: skip
    write(tmp_path / "data", pictures)
    found, report = index(write(tmp_path / "repo", annotations), tmp_path / "out")
    assert samples(found) == {
        "training_json/hqedit/0:hqedit/edit/output/00000000.png": ("Make it blue.", BLUE, RED),
        "training_json/omni/0:hqedit/edit/output/00000001.png": ("Merge", BLUE, RED, BLUE),
        "training_json/omni/1:hqedit/edit/output/00000001.png": ("Draw it", BLUE),
    }
    assert dict(report.refused) == {"picture file is missing": 1}
    assert found.selected(["*hqedit/[0]*", "*/omni/1:*"], lenient=True).tolist() == [0, 1]

    found, _ = index(
        tmp_path / "repo/training_json/hqedit.json", tmp_path / "out", images=str(tmp_path / "data/gpt-edit")
    )
    assert list(samples(found)) == ["hqedit/0:hqedit/edit/output/00000000.png"]


def test_image_folder_of_datasets(tmp_path):
    files = {
        "train/metadata.jsonl": '{"file_name": "1.png", "text": "one"}\n'
        '{"file_name": "sub/2.png", "text": "two"}\n',
        "train/1.png": picture(RED),
        "train/sub/2.png": picture(BLUE),
    }
    found, _ = index(write(tmp_path / "d", files), tmp_path / "out")
    assert samples(found) == {
        "train/metadata/0:1.png": ("one", RED),
        "train/metadata/1:sub/2.png": ("two", BLUE),
    }


def test_csv(tmp_path):
    files = {
        "metadata.csv": 'file_name,caption\r\n1.png,"red, and\nbright"\r\n2.png,\r\n',
        "1.png": picture(RED),
        "2.png": picture(BLUE),
    }
    found, report = index(write(tmp_path / "d", files), tmp_path / "out")
    assert samples(found) == {"metadata/0:1.png": ("red, and\nbright", RED)}
    assert dict(report.refused) == {"empty text": 1}


def test_broken_records(tmp_path):
    good = {"image": "1.png", "text": "t"}
    lines = [json.dumps(good), "{", "[1]", '{"image": "1.png"}', '{"text": "t"}', json.dumps(good)]
    files = {"a.jsonl": "\n".join(lines), "1.png": picture()}
    found, report = index(write(tmp_path / "d", files), tmp_path / "out")
    assert list(samples(found)) == ["a/0:1.png", "a/5:1.png"]
    assert report.refused_first == {
        "record is no JSON": ["a/1"],
        "record is no JSON object": ["a/2"],
        "record has no text": ["a/3"],
        "record names no picture": ["a/4"],
    }


def test_torn_array(tmp_path):
    text = json.dumps([{"image": "1.png", "text": "t"}] * 3)
    files = {"a.json": text[:-20], "1.png": picture()}
    found, report = index(write(tmp_path / "d", files), tmp_path / "out")
    assert list(samples(found)) == ["a/0:1.png", "a/1:1.png"]
    (note,) = report.notes
    assert f"a.json: torn at character {text.rindex('{'):,} (" in note
    assert note.endswith("2 records before that were read.")


def test_a_torn_archive_beside_a_list(tmp_path):
    whole = pack({"1.png": picture(RED), "2.png": picture(BLUE)})
    rows = [{"image": f"{i}.png", "text": "t"} for i in (1, 2)]
    files = {"a.json": json.dumps(rows), "x.tar": whole[:1560]}
    found, report = index(write(tmp_path / "d", files), tmp_path / "out")
    assert list(samples(found)) == ["a/0:1.png"]
    assert report.notes == ["x.tar: torn at byte 1024 (2.png is cut off); 1 files before that were found."]
    assert report.refused_first == {"picture file is missing": ["a/1:2.png"]}


def test_a_list_that_data_txt_names_must_be_there(tmp_path):
    write(tmp_path / "d", {"data.txt": ".,lost.json,false"})
    with pytest.raises(ValueError, match=r"There is no list at .*lost\.json"):
        index(tmp_path / "d", tmp_path / "out")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"image": "a", "text": " t "}, (("t",), "a", ())),
        ({"src_img": "a", "edited_img": "b", "edited_prompt_list": ["x", "y"]}, (("x", "y"), "b", ("a",))),
        (
            {"source_img": {"path": "a"}, "target_img": {"path": "b"}, "instruction": "i"},
            (("i",), "b", ("a",)),
        ),
        ({"image": 3, "text": "t"}, "record names no picture"),
        ({"image": "a", "input_image": [None], "text": "t"}, "record names no picture"),
        ({"image": "https://x.org/a.jpg", "text": "t"}, "pictures are URLs; fetch them first"),
        (
            {"image": ["a", "b", "c"], "prompt": "p"},
            "several pictures in image; say which with --columns target=image[-1] input=image[:-1] text=…",
        ),
        (["a"], "record is no JSON object"),
    ],
)
def test_parse_record(record, expected):
    named = parse_record(record)
    assert (named if isinstance(named, str) else (named.texts, named.target, named.inputs)) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=6), JSON, max_size=3), max_size=6)


@given(OBJECTS, st.integers(0, 2), st.booleans())
def test_arrays_are_read_as_json_reads_them(objects, indent, ascii_only):
    text = " \n" + json.dumps(objects, indent=indent or None, ensure_ascii=ascii_only)
    assert list(read_records(io.StringIO(text, newline=""), "x.json")) == objects


@given(OBJECTS)
def test_lines_are_read_as_json_reads_them(objects):
    text = "\n\n".join(map(json.dumps, objects))
    assert list(read_records(io.StringIO(text, newline=""), "x.jsonl")) == objects


@given(OBJECTS, st.data())
def test_a_cut_array_gives_what_is_whole_and_says_so(objects, data):
    text = json.dumps(objects)
    cut = data.draw(st.integers(1, len(text) - 1))
    *whole, last = read_records(io.StringIO(text[:cut], newline=""), "x.json")
    assert isinstance(last, Broken) and last.last
    assert whole == objects[: len(whole)]


def test_large_arrays_are_read_in_blocks():
    objects = [{"image": f"{i}.png", "text": "x" * 3000} for i in range(1500)]
    text = json.dumps(objects)
    assert len(text) > 4 * 2**20
    assert list(read_records(io.StringIO(text, newline=""), "x.json")) == objects
