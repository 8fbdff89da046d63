"""Parquet files and folders of datasets.save_to_disk."""

from __future__ import annotations

import io

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import BLUE, GREEN, RED, index, picture, pixel, samples, write
from PIL import Image
from tbac_uniimage.training.data import storage as storage_module
from tbac_uniimage.training.data.refs import Ref
from tbac_uniimage.training.data.storage import Storage

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def image(color, size=(24, 16)) -> dict:
    return {"bytes": picture(color, size), "path": "x.png"}


def omni_edit(numbers) -> pa.Table:
    """Rows of OmniEdit-Filtered-1.2M: every number is the red of the edited picture."""
    columns = {
        "omni_edit_id": pa.array([f"task_{i}" for i in numbers]),
        "task": pa.array(["swap"] * len(numbers)),
        "src_img": pa.array([image(GREEN) for _ in numbers], IMAGE),
        "edited_img": pa.array([image((i, 0, 0)) for i in numbers], IMAGE),
        "edited_prompt_list": pa.array([[f"short {i}", f"Long {i}."] for i in numbers]),
        "sc_score_1": pa.array([9] * len(numbers)),
        "width": pa.array([24] * len(numbers)),
    }
    return pa.table(columns)


def parquet(table: pa.Table, rows: int = 3) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=rows)
    return file.getvalue()


def test_omni_edit(tmp_path):
    files = {
        "data/train-00001-of-00002.parquet": parquet(omni_edit(range(8, 12))),
        "data/train-00000-of-00002.parquet": parquet(omni_edit(range(8))),
    }
    found, report = index(write(tmp_path / "OmniEdit", files), tmp_path / "out")
    assert report.layout == "parquet" and dict(report.inputs) == {"1": 12}
    storage = Storage()
    for number in (11, 0, 7, 4, 8):  # across files and row groups
        entry = found[number]
        assert entry.text == f"Long {number}."
        assert pixel(entry.target, storage) == (number, 0, 0)
        assert pixel(entry.inputs[0], storage) == GREEN
    assert found[9].key == "data/train-00001-of-00002/1"


def test_a_process_keeps_few_row_groups(tmp_path, monkeypatch):
    found, _ = index(write(tmp_path / "d", {"x.parquet": parquet(omni_edit(range(9)))}), tmp_path / "out")
    storage = Storage()
    for number in (0, 3, 6):
        storage.read(found[number].target)
    assert len(storage._groups) == 3
    monkeypatch.setattr(storage_module, "TABLE_CACHE", 1)
    storage.read(found[0].inputs[0])
    assert list(storage._groups) == [(str(tmp_path / "d/x.parquet"), 0, "src_img")]


def test_bytes_lists_and_gaps(tmp_path):
    table = pa.table(
        {
            "caption": pa.array(["a", "b", None, "d"]),
            "image": pa.array([picture(RED), picture(BLUE), picture(GREEN), None]),
            "input_images": pa.array([[picture(GREEN), picture(BLUE)], None, [], []], pa.list_(pa.binary())),
        }
    )
    found, report = index(write(tmp_path / "d", {"x.parquet": parquet(table)}), tmp_path / "out")
    assert samples(found) == {"x/0": ("a", RED, GREEN, BLUE), "x/1": ("b", BLUE)}
    assert report.refused_first == {"no text": ["x/2"], "no target picture": ["x/3"]}


def test_one_parquet_file_and_an_unnamed_picture(tmp_path):
    table = pa.table({"prompt": ["a"], "photo": pa.array([image(RED)], IMAGE)})
    write(tmp_path / "d", {"x.parquet": parquet(table)})
    found, _ = index(tmp_path / "d/x.parquet", tmp_path / "out")
    assert samples(found) == {"x/0": ("a", RED)}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            {"one": [b"x"], "two": [b"y"], "text": ["t"]},
            "has the columns one, two, text: of the pictures one, two it is not clear what one, two are; say "
            "which is which with --columns target=two input=one text=text",
        ),
        ({"image": [b"x"], "label": [3]}, "has the columns image, label: nothing of it is a text"),
    ],
)
def test_columns_that_cannot_be_told(tmp_path, table, sentence):
    write(tmp_path / "d", {"x.parquet": parquet(pa.table(table))})
    with pytest.raises(ValueError, match=sentence):
        index(tmp_path / "d", tmp_path / "out")


def test_a_torn_parquet_file_is_named(tmp_path):
    whole = parquet(omni_edit(range(4)))
    files = {"a.parquet": whole[: len(whole) // 2], "b.parquet": whole}
    found, report = index(write(tmp_path / "d", files), tmp_path / "out")
    assert len(found) == 4 and found[0].key == "b/0"
    assert len(report.notes) == 1 and report.notes[0].startswith("a.parquet: ")


def test_rows_that_are_gone(tmp_path):
    write(tmp_path / "d", {"x.parquet": parquet(omni_edit(range(4)))})
    with pytest.raises(OSError, match="has 4 rows, so no row 9; index it again"):
        Storage().read(Ref(str(tmp_path / "d/x.parquet"), 0, -1, 9, "src_img"))


def saved(folder, count=5, splits=False):
    rows = {
        "source_image": [Image.new("RGB", (20, 20), BLUE) for _ in range(count)],
        "edited_image": [Image.new("RGB", (20, 20), (i, 0, 0)) for i in range(count)],
        "instruction": [f"do {i}" for i in range(count)],
    }
    found = datasets.Dataset.from_dict(rows)
    found = datasets.DatasetDict({"test": found.select([0]), splits: found}) if splits else found
    options = {} if splits else {"num_shards": 2}
    found.save_to_disk(folder, **options)


def test_save_to_disk(tmp_path):
    saved(tmp_path / "d")
    found, report = index(tmp_path / "d", tmp_path / "out")
    assert report.layout == "datasets"
    assert list(samples(found).values()) == [(f"do {i}", (i, 0, 0), BLUE) for i in range(5)]
    assert [found[i].key for i in (0, 4)] == ["data-00000-of-00002/0", "data-00001-of-00002/1"]
    assert found[0].target.row == -1  # a range of bytes: no table has to be opened


def test_save_to_disk_with_splits(tmp_path):
    saved(tmp_path / "d", splits="train")
    found, _ = index(tmp_path / "d", tmp_path / "out")
    assert len(found) == 5
    saved(tmp_path / "e", splits="validation")
    with pytest.raises(
        ValueError, match="has the splits test, validation, but not train; choose one with --split test"
    ):
        index(tmp_path / "e", tmp_path / "out")


def test_save_to_disk_lists_paths_and_gaps(tmp_path):
    write(tmp_path / "pictures", {"1.png": picture(RED)})
    rows = {
        "image": [{"bytes": None, "path": str(tmp_path / "pictures/1.png")}, None, image(GREEN)],
        "input_images": [[image(RED), image(BLUE)], [], []],
        "text": ["a", "b", "c"],
    }
    kinds = {
        "image": datasets.Image(),
        "input_images": datasets.List(datasets.Image()),
        "text": datasets.Value("string"),
    }
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    made = made.add_column("extra", [1, 2, 3])
    made.save_to_disk(tmp_path / "d")
    found, report = index(tmp_path / "d", tmp_path / "out")
    assert list(samples(found).values()) == [("a", RED, RED, BLUE), ("c", GREEN)]
    assert dict(report.refused) == {"no target picture": 1}


def test_torn_arrow(tmp_path):
    saved(tmp_path / "d", 4)
    path = tmp_path / "d/data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:900])
    found, report = index(tmp_path / "d", tmp_path / "out")
    assert len(found) == 2
    assert len(report.notes) == 1 and report.notes[0].startswith("data-00001-of-00002: torn after row 0 (")
