"""Layouts in use, each in small and as it is published: right, or refused by a sentence that says why.

Those that have a writer are written with it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import unicodedata
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import BLUE, GREEN, RED, index, pack, picture, samples, write
from PIL import Image
from tbac_uniimage.training.data.columns import parse_columns
from tbac_uniimage.training.data.layouts.findings import Reading
from tbac_uniimage.training.data.splits import split_of_file

RED_PNG, GREEN_PNG, BLUE_PNG = picture(RED), picture(GREEN), picture(BLUE)
EDIT = ("do it", RED, BLUE)  # text, target, input
PICTURES = {"1.png": RED_PNG, "2.png": BLUE_PNG}


def lines(*records: dict) -> str:
    return "\n".join(map(json.dumps, records))


def parquet(**columns: list) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def packed_zip(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def read(tmp_path, files: dict, *columns: str, **reading):
    """Texts and colours by key, and the report."""
    options = Reading(parse_columns(columns), **reading)
    found, report = index(write(tmp_path / "d", files), tmp_path / "out", reading=options)
    return samples(found), report


IMG_EDIT = pack({"action/1_in.png": BLUE_PNG, "action/1_out.png": RED_PNG})
EDITS = {
    "diffsynth": {"metadata.csv": "image,prompt,edit_image\n1.png,do it,2.png\n", **PICTURES},
    "musubi-tuner": {
        "m.jsonl": lines({"image_path": "1.png", "control_path": "2.png", "caption": "do it"}),
        **PICTURES,
    },
    "controlnet of diffusers": {
        "metadata.jsonl": lines({"file_name": "1.png", "conditioning_image": "2.png", "text": "do it"}),
        **PICTURES,
    },
    "imagefolder with several file names": {
        "train/metadata.csv": "input_image_file_name,edited_image_file_name,edit_prompt\n2.png,1.png,do it\n",
        "train/1.png": RED_PNG,
        "train/2.png": BLUE_PNG,
    },
    "pico-banana": {
        "jsonl/sft.jsonl": lines(
            {
                "local_input_image": "openimage/2.png",
                "open_image_input_url": "https://x.org/2.jpg",
                "output_image": "images/1.png",
                "text": "do it",
                "summarized_text": "do",
            }
        ),
        "openimage/2.png": BLUE_PNG,
        "images/1.png": RED_PNG,
    },
    "anyedit": {
        "x.parquet": parquet(image_file=[BLUE_PNG], edited_file=[RED_PNG], edit_instruction=["do it"])
    },
    "instruct-pix2pix": {
        "x.parquet": parquet(
            original_image=[BLUE_PNG],
            edited_image=[RED_PNG],
            original_prompt=["a"],
            edit_prompt=["do it"],
            edited_prompt=["b"],
        )
    },
    "parquet of image and edited_image": {
        "x.parquet": parquet(image=[BLUE_PNG], edited_image=[RED_PNG], instruction=["do it"])
    },
    "magicbrush": {
        "x.parquet": parquet(
            source_img=[BLUE_PNG], mask_img=[GREEN_PNG], instruction=["do it"], target_img=[RED_PNG]
        )
    },
    "ultraedit": {
        "x.parquet": parquet(
            source_image=[BLUE_PNG],
            edited_image=[RED_PNG],
            mask_image=[GREEN_PNG],
            source_caption=["a"],
            target_caption=["b"],
            edit_prompt=["do it"],
        )
    },
    "hq-edit": {
        "x.parquet": parquet(
            input=["a"], input_image=[BLUE_PNG], edit=["do it"], output=["b"], output_image=[RED_PNG]
        )
    },
    "imgedit": {
        "Singleturn/a.tar.split.000": IMG_EDIT[:1300],
        "Singleturn/a.tar.split.001": IMG_EDIT[1300:],
        "Parquet/a.parquet": parquet(
            input_images=[["action/1_in.png"]], output_images=[["action/1_out.png"]], prompt=["do it"]
        ),
    },
    "ai-toolkit": {"target/1.png": RED_PNG, "target/1.txt": "do it", "control/1.png": BLUE_PNG},
    "images and conditioning_images": {
        "images/1.png": RED_PNG,
        "conditioning_images/1.png": BLUE_PNG,
        "captions/1.txt": "do it",
    },
    "start and end": {"1_start.png": BLUE_PNG, "1_end.png": RED_PNG, "1.txt": "do it"},
    "source and target with its text": {
        "1-source.png": BLUE_PNG,
        "1-target.png": RED_PNG,
        "1-target.txt": "do it",
    },
    "original and edited in tars": {
        "x.tar": pack({"1.original.png": BLUE_PNG, "1.edited.png": RED_PNG, "1.caption.txt": b"do it"})
    },
    "start and end in zips": {
        "x.zip": packed_zip({"1_start.png": BLUE_PNG, "1_end.png": RED_PNG, "1.txt": b"do it"})
    },
    "gpt-image-edit": {
        "x.json": json.dumps(
            [
                {
                    "image": ["2.png", "1.png"],
                    "conversations": [
                        {"from": "human", "value": "<image>\ndo it"},
                        {"from": "gpt", "value": "<image>"},
                    ],
                }
            ]
        ),
        **PICTURES,
    },
    "messages": {
        "x.jsonl": lines(
            {
                "messages": [
                    {"role": "system", "content": "Help."},
                    {"role": "user", "content": "<image>do it"},
                    {"role": "assistant", "content": "<image>"},
                ],
                "images": ["2.png", "1.png"],
            }
        ),
        **PICTURES,
    },
    "marks within X2I": {
        "x.jsonl": lines(
            {
                "instruction": "<img><|image_1|></img> do it",
                "input_images": ["2.png"],
                "output_image": "1.png",
            }
        ),
        **PICTURES,
    },
}


@pytest.mark.parametrize("layout", EDITS)
def test_edits(tmp_path, layout):
    found, report = read(tmp_path, EDITS[layout])
    assert list(found.values()) == [EDIT]
    assert report.refused == {} and report.left_out == {}


CAPTIONED = {
    "simpletuner by file name": {
        "m.parquet": parquet(filename=["1.png"], caption=["red"]),
        "pics/1.png": RED_PNG,
    },
    "simpletuner by id": {
        "m.parquet": parquet(id=[1], cogvlm_caption=["red"], tags=["x"]),
        "1.png": RED_PNG,
    },
    "imagefolder with parquet": {
        "train/metadata.parquet": parquet(file_name=["1.png"], text=["red"]),
        "train/1.png": RED_PNG,
    },
    "llava": {
        "x.json": json.dumps(
            [
                {
                    "id": "1",
                    "image": "1.png",
                    "conversations": [
                        {"from": "human", "value": "<image>\nWhat is it?"},
                        {"from": "gpt", "value": "red"},
                    ],
                }
            ]
        ),
        "1.png": RED_PNG,
    },
    "messages with parts": {
        "x.jsonl": lines(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": "1.png"}, {"type": "text", "text": "?"}],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
                ]
            }
        ),
        "1.png": RED_PNG,
    },
    "zip, deflated": {"x.zip": packed_zip({"1.png": RED_PNG, "1.txt": b"red"}, zipfile.ZIP_DEFLATED)},
    "list beside a zip": {
        "x.zip": packed_zip({"a/1.png": RED_PNG}, zipfile.ZIP_DEFLATED),
        "m.jsonl": lines({"file_name": "a/1.png", "text": "red"}),
    },
    "karpathy": {
        "dataset_flickr30k.json": json.dumps(
            {
                "images": [{"filename": "1.png", "split": "train", "sentences": [{"raw": "red"}]}],
                "dataset": "f",
            }
        ),
        "images/1.png": RED_PNG,
    },
    "split zip": {
        f"x.zip.{part + 1:03}": packed_zip({"1.png": RED_PNG, "1.txt": b"red"})[part * 150 : (part + 1) * 150]
        for part in range(3)
    },
    "names as keys": {"m.json": json.dumps({"1.png": {"caption": "red"}}), "1.png": RED_PNG},
    "tab-separated": {"m.tsv": "file_name\tcaption\n1.png\tred\n", "1.png": RED_PNG},
    "decomposed file name": {
        unicodedata.normalize("NFD", "café.png"): RED_PNG,
        "m.jsonl": lines({"image": "café.png", "text": "red"}),
    },
    "decomposed beside its text": {unicodedata.normalize("NFD", "café.png"): RED_PNG, "café.txt": "red"},
    "utf-16 with a mark": {"m.csv": "image,text\n1.png,red\n".encode("utf-16"), "1.png": RED_PNG},
    "caption that is empty beside one that is not": {
        "m.jsonl": lines({"image": "1.png", "caption": "", "text": "red"}),
        "1.png": RED_PNG,
    },
}


@pytest.mark.parametrize("layout", CAPTIONED)
def test_captions(tmp_path, layout):
    found, report = read(tmp_path, CAPTIONED[layout])
    assert list(found.values()) == [("red", RED)]
    assert report.refused == {}


COCO = {
    "annotations/captions_train2017.json": json.dumps(
        {
            "images": [{"id": 7, "file_name": "007.png", "coco_url": "http://x.org/7.jpg"}],
            "annotations": [{"image_id": 7, "caption": "one"}, {"image_id": 7, "caption": "two"}],
        }
    ),
    "annotations/captions_val2017.json": json.dumps(
        {"images": [{"id": 8, "file_name": "008.png"}], "annotations": [{"image_id": 8, "caption": "x"}]}
    ),
    "annotations/instances_train2017.json": json.dumps(
        {
            "images": [{"id": 7, "file_name": "007.png"}],
            "annotations": [{"image_id": 7, "bbox": [0, 0, 1, 1]}],
        }
    ),
    "train2017/007.png": RED_PNG,
    "val2017/008.png": BLUE_PNG,
}


@pytest.mark.parametrize(
    ("rule", "texts"), [("last", ["two"]), ("first", ["one"]), ("all", ["one", "two"]), ("random", ["one"])]
)
def test_several_captions_of_coco(tmp_path, rule, texts):
    found, report = read(tmp_path, COCO, captions=rule)
    assert [text for text, *_ in found.values()] == texts
    assert len(found) == len(texts) and report.several == 1
    assert report.left_out == {"validation": 1} and "see --captions" in report.table()


X2EDIT_TEXT = b'{"instruction": "do it", "zh": "x"}'
X2EDIT = {
    "x.tar": pack({"1.1.png": BLUE_PNG, "1.2.png": RED_PNG, "1.json": b'{"instruction": "do it", "zh": "x"}'})
}
UNCLEAR = {
    "X2Edit": (
        X2EDIT,
        r"x/1: of the pictures \.1\.png, \.2\.png it is not clear what \.1\.png, \.2\.png are; say which is "
        r"which with --columns target=\.2\.png input=\.1\.png text=\.json",
    ),
    "two pictures in a table": (
        {"x.parquet": parquet(jpg_0=[RED_PNG], jpg_1=[BLUE_PNG], caption=["x"])},
        "what jpg_0, jpg_1 are; .*--columns target=jpg_1 input=jpg_0 text=caption",
    ),
    "a picture beside source and target": (
        {
            "m.jsonl": lines(
                {"input_image": "1.png", "output_image": "2.png", "image": "1.png", "text": "x"}
            ),
            **PICTURES,
        },
        "it is not clear what image is",
    ),
    "a source alone": (
        {"x.parquet": parquet(source_image=[RED_PNG], caption=["x"])},
        "source_image is a picture to start from, and none is to be learned",
    ),
    "two captions of equal rank": (
        {"x.parquet": parquet(image=[RED_PNG], blip_caption=["x"], llava_caption=["y"])},
        "blip_caption, llava_caption could each be the text; .*--columns target=image text=blip_caption",
    ),
    "captions of both sides of an edit": (
        {"x.parquet": parquet(source_img=[RED_PNG], target_img=[BLUE_PNG], target_caption=["x"])},
        "of the texts target_caption it is not clear which is to be learned",
    ),
    "several pictures in a field": (
        {"m.jsonl": lines({"images": ["2.png", "1.png"], "text": "x"}), **PICTURES},
        r"several pictures in images; .*--columns target=images\[-1\] input=images\[:-1\]",
    ),
    "another ending": (
        {"cat.png": RED_PNG, "cat.v2.png": BLUE_PNG, "cat.txt": "x"},
        r"it is not clear what \.v2\.png is; .*--columns target=\.png input=\.v2\.png text=\.txt",
    ),
    "folders of pairs": (
        {"first/1.png": BLUE_PNG, "second/1.png": RED_PNG, "second/1.txt": "do it"},
        "first/ and second/ hold pictures .*--columns target=second/ input=first/ text=.txt",
    ),
    "conversation of many turns": (
        {
            "m.json": json.dumps(
                [{"image": "1.png", "conversations": 2 * [{"from": "human", "value": "<image>a"},
                                                          {"from": "gpt", "value": "b"}]}]
            ),
            **PICTURES,
        },
        "conversation is not one question and its answer",
    ),
    "urls": (
        {"m.jsonl": lines({"image": "http://x.org/1.png", "text": "x"})},
        "m.jsonl has image, text: name the column of pictures with --columns",
    ),
    "latin-1": (
        {"m.csv": "image,text\n1.png,café\n".encode("latin-1"), **PICTURES},
        r"m\.csv: text is not UTF-8; say what it is with --encoding",
    ),
    "utf-16 without a mark": (
        {"m.csv": "image,text\n1.png,x\n".encode("utf-16-le"), **PICTURES},
        r"m\.csv: text is not UTF-8, but perhaps UTF-16 \(--encoding utf-16-le\)",
    ),
    "tar and zip of one name": (
        {
            "a.tar": pack({"1.png": RED_PNG, "1.txt": b"x"}),
            "a.zip": packed_zip({"1.png": RED_PNG, "1.txt": b"x"}),
        },
        r"a\.tar and a\.zip would give their samples the same keys",
    ),
    "two lists of one name": (
        {
            "a.json": json.dumps([{"image": "1.png", "text": "x"}]),
            "a.jsonl": lines({"image": "1.png", "text": "x"}),
            **PICTURES,
        },
        r"a\.json and .*a\.jsonl would give their samples the same keys",
    ),
    "a column that comes twice": (
        {"a.csv": "image,text,text\n1.png,x,y\n", **PICTURES},
        "two columns are called 'text'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", UNCLEAR)
def test_what_is_unclear_is_an_error(tmp_path, layout):
    files, sentence = UNCLEAR[layout]
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, files)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("files", "columns"),
    [
        (X2EDIT, ["input=.1.png", "target=.2.png"]),
        (
            {
                "x.parquet": parquet(
                    image_file=[BLUE_PNG],
                    edited_file=[RED_PNG],
                    visual_input=pa.array([None], pa.binary()),
                    edit_instruction=["do it"],
                )
            },
            ["target=edited_file", "input=image_file,visual_input", "text=edit_instruction"],
        ),
        (X2EDIT, ["input=.1.png", "target=.2.png", "text=instruction"]),
        (
            {"x.parquet": parquet(a=[RED_PNG], b=[BLUE_PNG], words=["do it"])},
            ["target=a", "input=b", "text=words"],
        ),
        (
            {"m.csv": "nr,other,say\n1.png,2.png,do it\n", **PICTURES},
            ["target=nr", "input=other", "text=say"],
        ),
        (
            {"m.jsonl": lines({"images": ["2.png", "1.png"], "text": "do it"}), **PICTURES},
            ["target=images[-1]", "input=images[:-1]"],
        ),
        (
            {"first/1.png": BLUE_PNG, "second/1.png": RED_PNG, "second/1.txt": "do it"},
            ["target=second/", "input=first/", "text=.txt"],
        ),
        (
            {"c.png": RED_PNG, "c.v1.png": BLUE_PNG, "c.txt": "do it", "c.v2.png": GREEN_PNG},
            ["target=.png", "input=.v1.png"],
        ),
    ],
)
def test_columns_that_are_named(tmp_path, files, columns):
    found, _ = read(tmp_path, files, *columns)
    assert list(found.values()) == [EDIT]
    kept = json.loads((tmp_path / "out/set/manifest.json").read_text())["given"]["columns"]
    assert sorted(kept) == sorted(columns)


def test_a_list_whose_pictures_lie_elsewhere(tmp_path):
    turns = [{"from": "human", "value": "Describe it.\n<image>"}, {"from": "gpt", "value": "red"}]
    files = {"llava.json": json.dumps([{"image": "00000/1.png", "conversations": turns}])}
    write(tmp_path / "pictures", {"00000/1.png": RED_PNG})
    path = write(tmp_path / "d", files) / "llava.json"
    found, _ = index(path, tmp_path / "out", images=str(tmp_path / "pictures"))
    assert list(samples(found).values()) == [("red", RED)]


def test_diffusiondb(tmp_path):
    records = {"1.png": {"p": "red", "se": 3}}
    files = {"part-000001/1.png": RED_PNG, "part-000001/part-000001.json": json.dumps(records)}
    found, _ = read(tmp_path, files, "text=p")
    assert list(found.values()) == [("red", RED)]


@pytest.mark.parametrize("words", ["a=b", "target", "target=", "target=a,b", "input=a,,b"])
def test_columns_that_cannot_be_understood(words):
    with pytest.raises(ValueError, match="--columns"):
        parse_columns([words])


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "gbk"])
def test_a_named_encoding(tmp_path, encoding):
    text = "猫" if encoding == "gbk" else "café"
    files = {"a.csv": f"image,text\n1.png,{text}\n".encode(encoding), "1.png": RED_PNG}
    found, _ = read(tmp_path / "list", files, encoding=encoding)
    assert list(found.values()) == [(text, RED)]
    found, _ = read(
        tmp_path / "folder", {"1.png": RED_PNG, "1.txt": text.encode(encoding)}, encoding=encoding
    )
    assert list(found.values()) == [(text, RED)]


def test_rows_of_a_csv_cost_none_but_themselves(tmp_path):
    rows = [
        "1.png,a dog, asleep",
        '1.png,"open',
        "1.png,fine",
        '1.png,"two\nlines"',
        "1.png",
        "1.png," + "x" * 140_000,
    ]
    files = {"m.csv": "\n".join(["image,text", *rows, "1.png,last", ""]), "1.png": RED_PNG}
    found, report = read(tmp_path, files)
    assert [text for text, _ in found.values()] == ["fine", "two\nlines", "last"]
    assert report.refused == {
        "row has more or fewer cells than columns": 2,
        "a quote is not closed": 1,
        "cell is longer than 131,072 characters": 1,
    }


SPLITS = ("train", "test", "dev")
SPLIT = {
    "parquet": {f"data/{split}-0-of-1.parquet": parquet(image=[RED_PNG], text=[split]) for split in SPLITS},
    "tars": {f"{split}/0.tar": pack({"1.png": RED_PNG, "1.txt": split.encode()}) for split in SPLITS},
    "lists": {f"{split}.jsonl": lines({"image": "1.png", "text": split}) for split in SPLITS} | PICTURES,
    "folder": {f"{split}/1.txt": split for split in SPLITS} | {f"{split}/1.png": RED_PNG for split in SPLITS},
    "imagefolder": {f"{split}/metadata.csv": f"file_name,text\n1.png,{split}\n" for split in SPLITS}
    | {f"{split}/1.png": RED_PNG for split in SPLITS},
    "column of a list": {
        "m.jsonl": lines(*({"image": "1.png", "text": split, "split": split} for split in SPLITS)),
        **PICTURES,
    },
    "column of a table": {"x.parquet": parquet(image=[RED_PNG] * 3, text=[*SPLITS], split=[*SPLITS])},
}  # fmt: skip


@pytest.mark.parametrize("layout", SPLIT)
def test_splits(tmp_path, layout):
    def texts(number: int, *splits: str) -> list[str]:
        found, report = read(tmp_path / str(number), SPLIT[layout], splits=splits)
        assert report.left_out.total() == 3 - len(found)
        return sorted(text for text, *_ in found.values())

    assert texts(0) == ["train"]
    assert texts(1, "val") == ["dev"]
    assert texts(2, "train", "test") == ["test", "train"]
    assert texts(3, "all") == ["dev", "test", "train"]
    rest = {
        name: data for name, data in SPLIT[layout].items() if not name.startswith(("train", "data/train"))
    }
    if "column" not in layout:
        with pytest.raises(
            ValueError, match="has the splits test, validation, but not train; choose one with --split"
        ):
            read(tmp_path / "4", rest)


def test_an_edit_whose_source_is_missing_is_no_picture_from_text(tmp_path):
    files = {"target/1.png": RED_PNG, "target/1.txt": "do it", "control/1.png": BLUE_PNG}
    files |= {"target/2.png": RED_PNG, "target/2.txt": "lost"}
    found, report = read(tmp_path / "a", files)
    assert len(found) == 1 and report.refused == {"no picture to start from": 1}
    tar = pack(
        {f"{i}.{name}": data for i in (1, 2) for name, data in (("output.png", RED_PNG), ("txt", b"x"))}
        | {"1.input.png": BLUE_PNG}
    )
    found, report = read(tmp_path / "b", {"x.tar": tar})
    assert list(found) == ["x/1"] and report.refused_first == {"no picture to start from": ["x/2"]}


def test_pictures_that_are_not_read_are_counted(tmp_path):
    files = {
        "a.jfif": picture(RED, kind="JPEG"),
        "a.txt": "x",
        "b.HEIC": b"ftypheic",
        "b.txt": "y",
        "c.mp4": b"z",
    }
    found, report = read(tmp_path, files)
    assert list(found) == ["a.jfif"]
    assert report.refused_first == {".heic is not read; convert it to .jpg or .png": ["b.HEIC"]}
    assert report.ignored == {".mp4": 1, ".txt": 1}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/test-00000-of-00001.parquet", "test"),
        ("val2017/0.tar", "validation"),
        ("trainA/0.tar", "train"),
        ("TEST/0.tar", "test"),
        ("x/dev/train_0.json", "train"),
        ("hold_out.csv", "test"),
        ("data/geneval_train.tar", "train"),
        ("latest/0.tar", None),
        ("device/protest.tar", None),
        ("evaluate.tar", None),
    ],
)
def test_marks_of_splits(name, split):
    assert split_of_file(name, shard=True) == split
    assert split_of_file(f"{name}/x.png", shard=False) == split


def test_what_lies_beside_shards_is_counted(tmp_path):
    files = {
        "0.tar": pack({"1.png": RED_PNG, "1.txt": b"x"}),
        "a.HEIC": b"x",
        "b.png": RED_PNG,
        "LICENSE": "y",
    }
    _, report = read(tmp_path, files)
    assert report.ignored == {".heic": 1, ".png": 1, "without suffix": 1}
    listed = {
        "m.jsonl": lines({"image": "1.png", "text": "x"}),
        "1.png": RED_PNG,
        "a.HEIC": b"x",
        "b.mp4": b"y",
    }
    _, report = read(tmp_path / "list", listed)
    assert report.ignored == {".heic": 1, ".mp4": 1}


def test_img2dataset(tmp_path):
    """As its writers leave it: a table of metadata beside each shard, also of what could not be fetched."""
    meta = parquet(
        url=["http://x.org/1.jpg", "http://x.org/2.jpg"],
        caption=["red", "gone"],
        key=["000000000", "000000001"],
        status=["success", "failed_to_download"],
        width=[24, None],
    )
    beside = {"00000.parquet": meta, "00000_stats.json": json.dumps({"count": 2, "successes": 1})}
    one = {"0.jpg": RED_PNG, "0.txt": b"red", "0.json": b'{"caption": "red", "url": "http://x.org/1.jpg"}'}
    found, report = read(tmp_path / "tars", {"00000.tar": pack(one), **beside})
    assert found == {"00000/0": ("red", RED)} and report.layout == "tars"
    found, report = read(tmp_path / "files", {f"00000/{name}": data for name, data in one.items()} | beside)
    assert found == {"00000/0.jpg": ("red", RED)} and report.layout == "folder"
    table = parquet(url=["u", "v"], key=["0", "1"], caption=["red", "x"], jpg=[RED_PNG, None])
    found, report = read(tmp_path / "parquet", beside | {"00000.parquet": table})
    assert found == {"00000/0": ("red", RED)} and report.refused == {"no target picture": 1}


def img2dataset_writers():
    """img2dataset's module of writers, without its package, which wants a downloader's dependencies."""
    pytest.importorskip("webdataset")
    spec = importlib.util.find_spec("img2dataset")
    if spec is None:
        pytest.skip("img2dataset is not installed")
    place = Path(spec.submodule_search_locations[0]) / "writer.py"
    spec = importlib.util.spec_from_file_location("img2dataset_writer", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["Files", "WebDataset", "Parquet"])
def test_img2dataset_as_its_own_writers_write_it(tmp_path, kind):
    writers = img2dataset_writers()
    (tmp_path / "d").mkdir()
    names = ("url", "caption", "key", "status", "error_message")
    schema = pa.schema([(name, pa.string()) for name in names])
    writer = getattr(writers, f"{kind}SampleWriter")(0, str(tmp_path / "d"), True, 5, schema, "png")
    for i in range(3):
        meta = {"url": f"http://x.org/{i}.png", "caption": f"text {i}", "key": f"{i:09}"}
        status = (
            {"status": "success", "error_message": None}
            if i
            else {"status": "failed", "error_message": "404"}
        )
        writer.write(picture((i, 0, 0)) if i else None, f"{i:09}", f"text {i}", meta | status)
    writer.close()
    found, report = read(tmp_path, {"00000_stats.json": json.dumps({"count": 3, "successes": 2})})
    assert list(found.values()) == [(f"text {i}", (i, 0, 0)) for i in (1, 2)]
    assert report.layout == {"Files": "folder", "WebDataset": "tars", "Parquet": "parquet"}[kind]


def test_webdataset_writes_what_is_read(tmp_path):
    writer = pytest.importorskip("webdataset")
    (tmp_path / "d").mkdir()
    with writer.ShardWriter(str(tmp_path / "d/shard-%03d.tar"), maxcount=2, verbose=0) as sink:
        for i in range(3):
            sink.write(
                {"__key__": f"s{i}", "png": picture((i, 0, 0)), "txt": f"text {i}", "json": {"seed": i}}
            )
            sink.write(
                {
                    "__key__": f"e{i}",
                    "input.png": BLUE_PNG,
                    "output.png": RED_PNG,
                    "json": {"instruction": "do it"},
                }
            )
    found, _ = read(tmp_path, {})
    assert found == {f"shard-{i:03}/s{i}": (f"text {i}", (i, 0, 0)) for i in range(3)} | {
        f"shard-{i:03}/e{i}": EDIT for i in range(3)
    }


def message(*fields: tuple[int, bytes]) -> bytes:
    """A message of protocol buffers of length-delimited fields."""
    return b"".join(varint(number << 3 | 2) + varint(len(data)) + data for number, data in fields)


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def tfrecord(*examples: dict[str, bytes | int]) -> bytes:
    """A TFRecord file, without checksums that hold."""
    records = []
    for example in examples:
        items = []
        for name, value in example.items():
            if isinstance(value, int):
                feature = message((3, b"\x08" + varint(value)))
            else:
                feature = message((1, message((1, value))))
            items.append((1, message((1, name.encode()), (2, feature))))
        data = message((1, message(*items)))
        records.append(len(data).to_bytes(8, "little") + bytes(4) + data + bytes(4))
    return b"".join(records)


def test_tfrecords_of_img2dataset(tmp_path):
    rows = [
        {"key": b"0", "jpg": RED_PNG, "txt": b"red", "width": 300, "url": b"http://x.org/1.jpg"},
        {"key": b"1", "jpg": BLUE_PNG, "txt": "bleu é".encode(), "width": 24, "url": b"http://x.org/2.jpg"},
    ]
    whole = tfrecord(*rows)
    beside = {"00000.parquet": parquet(url=["u", "v"], key=["0", "1"], caption=["red", "blue"])}
    found, report = read(tmp_path / "a", {"00000.tfrecord": whole, **beside})
    assert found == {"00000/0": ("red", RED), "00000/1": ("bleu é", BLUE)} and report.layout == "tfrecords"
    found, report = read(tmp_path / "b", {"00000.tfrecord": whole[:-30]})
    assert found == {"00000/0": ("red", RED)}
    assert report.notes == ["00000.tfrecord: torn after record 1 (cut off)."]
    edit = tfrecord({"image/source": BLUE_PNG, "image/target": RED_PNG, "instruction": b"do it"})
    found, _ = read(tmp_path / "c", {"x.tfrecord-00000-of-00001": edit})
    assert list(found.values()) == [EDIT]


def mds(*samples: dict[str, bytes], encodings: dict[str, str]) -> dict[str, bytes]:
    """A shard of MDS and its index."""
    heads = [
        b"".join(len(v).to_bytes(4, "little") for v in sample.values()) + b"".join(sample.values())
        for sample in samples
    ]
    config = b"{}"
    place, bounds = 4 + 4 * (len(heads) + 1) + len(config), []
    for head in (*heads, b""):
        bounds.append(place.to_bytes(4, "little"))
        place += len(head)
    raw = len(heads).to_bytes(4, "little") + b"".join(bounds) + config + b"".join(heads)
    shard = {
        "format": "mds",
        "column_names": list(encodings),
        "column_encodings": list(encodings.values()),
        "column_sizes": [None] * len(encodings),
        "raw_data": {"basename": "shard.00000.mds", "bytes": len(raw), "hashes": {}},
        "samples": len(heads),
    }
    return {"shard.00000.mds": raw, "index.json": json.dumps({"shards": [shard], "version": 2}).encode()}


def test_mds(tmp_path):
    columns = {"edited_image": "png", "image": "png", "instruction": "str"}
    rows = [{"edited_image": RED_PNG, "image": BLUE_PNG, "instruction": b"do it"}] * 2
    files = mds(*rows, encodings=columns)
    found, report = read(tmp_path / "a", files)
    assert found == {"shard.00000/0": EDIT, "shard.00000/1": EDIT} and report.layout == "mds"
    found, report = read(
        tmp_path / "b",
        {f"train/{n}": d for n, d in files.items()} | {f"val/{n}": d for n, d in files.items()},
    )
    assert list(found) == ["train/shard.00000/0", "train/shard.00000/1"] and report.left_out == {
        "validation": 1
    }
    found, report = read(tmp_path / "c", files | {"shard.00000.mds": files["shard.00000.mds"][:-9]})
    assert list(found) == ["shard.00000/0"] and "cut off" in report.notes[0]
    with pytest.raises(ValueError, match="column image is encoded as pil, not as a picture file"):
        read(tmp_path / "d", mds(*rows, encodings=columns | {"image": "pil"}))
    packed = json.loads(files["index.json"])
    packed["shards"][0]["zip_data"] = {"basename": "shard.00000.mds.zstd"}
    with pytest.raises(
        ValueError, match=r"has shard\.00000\.mds\.zstd .* unpack it: zstd -d --rm .*/\*\.zstd"
    ):
        read(tmp_path / "e", {"index.json": json.dumps(packed), "shard.00000.mds.zstd": b"x"})


def test_mds_as_its_own_writer_writes_it(tmp_path):
    streaming = pytest.importorskip("streaming")
    columns = {"image": "png", "caption": "str", "score": "int"}
    with streaming.MDSWriter(out=str(tmp_path / "d"), columns=columns) as out:
        for i in range(3):
            out.write({"image": Image.new("RGB", (20, 20), (i, 0, 0)), "caption": f"text {i}", "score": i})
    found, _ = read(tmp_path, {})
    assert list(found.values()) == [(f"text {i}", (i, 0, 0)) for i in range(3)]


def test_lance(tmp_path):
    lance = pytest.importorskip("lance")
    table = pa.table({"edited_image": [RED_PNG] * 3, "image": [BLUE_PNG] * 3, "instruction": ["do it"] * 3})
    lance.write_dataset(table, str(tmp_path / "a/d/x.lance"), max_rows_per_file=2)
    found, report = read(tmp_path / "a", {})
    assert found == {f"x/{i}": EDIT for i in range(3)} and report.layout == "lance"
    lance.write_dataset(table, str(tmp_path / "b.lance"))
    opened, _ = index(tmp_path / "b.lance", tmp_path / "out")
    opened.check_source()
    lance.write_dataset(table, str(tmp_path / "b.lance"), mode="append")
    with pytest.raises(ValueError, match="has changed; index the data set again"):
        opened.check_source()


def test_lance_without_its_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(ValueError, match="is a Lance data set; install its reader: pip install pylance"):
        read(tmp_path, {"x.lance/_versions/1.manifest": b"x"})
