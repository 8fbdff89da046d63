"""What is not understood is refused by name: neither a question nor a mark of nothing is ever learned."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import BLUE, GREEN, RED, index, picture, samples, write
from tbac_uniimage.training.data.columns import parse_columns
from tbac_uniimage.training.data.layouts.findings import Reading


def a_list(name: str, text: str) -> dict[str, bytes | str]:
    """A list beside three pictures."""
    return {name: text, "0.png": picture(RED), "1.png": picture(GREEN), "2.png": picture(BLUE)}


@pytest.mark.parametrize(
    "fields",
    [
        {"instruction": "Describe it.", "output": "red"},
        {"prompt": "What is it?", "response": "red"},
        {"text": "What is it?", "answer": "red"},
        {"question": "What is it?", "answer": "red"},
    ],
)
def test_a_question_is_no_caption(tmp_path, fields):
    source = write(tmp_path / "d", a_list("l.jsonl", json.dumps({"image": "0.png", **fields})))
    answer = list(fields)[1]
    with pytest.raises(ValueError, match=f"--columns target=image text={answer}"):
        index(source, tmp_path / "out")
    reading = Reading(parse_columns(["target=image", f"text={answer}"]))
    assert samples(index(source, tmp_path / "out", reading=reading)[0]) == {"l/0:0.png": ("red", RED)}


def test_an_instruction_beside_an_answer_is_one_where_there_is_an_edit(tmp_path):
    row = {"input_image": "0.png", "output_image": "1.png", "instruction": "green", "response": "Here it is."}
    found, _ = index(write(tmp_path / "d", a_list("l.jsonl", json.dumps(row))), tmp_path / "out")
    assert samples(found) == {"l/0:1.png": ("green", GREEN, RED)}


@pytest.mark.parametrize(
    "field", ["negative_prompt", "caption_type", "prompt_id", "captionSource", "text_lang"]
)
def test_what_is_about_a_text_is_none(tmp_path, field):
    rows = [
        {"image": "0.png", field: "long", "title": "red"},
        {"image": "1.png", field: "x", "short_caption": "g"},
    ]
    found, report = index(
        write(tmp_path / "d", a_list("l.jsonl", "\n".join(map(json.dumps, rows)))), tmp_path / "out"
    )
    assert samples(found) == {"l/1:1.png": ("g", GREEN)}
    assert f"of the texts {field}, title it is not clear" in next(iter(report.refused))
    assert "text=title" in next(iter(report.refused))


@pytest.mark.parametrize("nothing", ["nan", "NaN", "None", "null", "N/A", "<NA>", " nan "])
def test_marks_of_nothing_are_no_texts(tmp_path, nothing):
    files = a_list("l.csv", f"image,caption\n0.png,{nothing}\n1.png,nan bread\n")
    found, report = index(write(tmp_path / "list", files), tmp_path / "out")
    assert samples(found) == {"l/1:1.png": ("nan bread", GREEN)}
    assert report.refused_first == {"empty text": ["l/0"]}
    files = a_list("0.txt", nothing) | {"1.txt": "none of these"}
    found, report = index(write(tmp_path / "folder", files), tmp_path / "out")
    assert samples(found) == {"1.png": ("none of these", GREEN)}
    assert report.refused_first["empty text"] == ["0.png"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage;caption\n0.png;a red, square thing\n1.png;green\n",
        "sep=;\r\nimage;caption\r\n0.png;a red, square thing\r\n1.png;green\r\n",
        "image|caption\n0.png|a red, square thing\n1.png|green\n",
        "image\tcaption\n0.png\ta red, square thing\n1.png\tgreen\n",
        'image,caption\n0.png,"a red, square thing"\n1.png,green\n',
    ],
)
def test_whatever_separates_the_cells_of_a_csv(tmp_path, text):
    found, report = index(write(tmp_path / "d", a_list("l.csv", text)), tmp_path / "out")
    assert samples(found) == {
        "l/0:0.png": ("a red, square thing", RED),
        "l/1:1.png": ("green", GREEN),
    }
    assert not report.refused


@pytest.mark.parametrize("name, mark", [("l.csv", ","), ("l.tsv", "\t"), ("l.csv", ";")])
def test_a_table_without_a_header_loses_no_row_in_silence(tmp_path, name, mark):
    rows = "".join(f"{i}.png{mark}a text\n" for i in range(3))
    with pytest.raises(ValueError, match=f"{name} has no header, its first row is 0.png, a text; put"):
        index(write(tmp_path / "d", a_list(name, rows)), tmp_path / "out")


def test_splits_of_one_json_object(tmp_path):
    parts = {"train": [{"image": "0.png", "caption": "r"}], "dev": [{"image": "1.png", "caption": "g"}]}
    source = write(tmp_path / "d", a_list("l.json", json.dumps(parts)))
    found, report = index(source, tmp_path / "out")
    assert samples(found) == {"l/0:0.png": ("r", RED)}
    assert dict(report.left_out) == {"validation": 1}
    del parts["train"]
    with pytest.raises(ValueError, match="left out are the splits validation"):
        index(write(tmp_path / "e", a_list("l.json", json.dumps(parts))), tmp_path / "out")


@pytest.mark.parametrize("kind", ["field", "url", "chat"])
def test_pictures_within_a_list_are_refused_by_name(tmp_path, kind):
    file = io.BytesIO(picture(RED, (400, 400), "BMP"))
    text = base64.b64encode(file.getvalue()).decode()
    url = f"data:image/bmp;base64,{text}"
    asked = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "red"}]
    row = {
        "field": {"image": text, "caption": "red"},
        "url": {"image": url, "caption": "red"},
        "chat": {"messages": turns},
    }[kind]
    with pytest.raises(ValueError, match=r"pictures are in the list itself \(base64\)") as error:
        index(write(tmp_path / "d", {"l.jsonl": json.dumps(row)}), tmp_path / "out")
    assert len(str(error.value)) < 400


def test_a_list_in_a_zip_is_named(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("0.png", picture(RED))
        archive.writestr("metadata.jsonl", json.dumps({"file_name": "0.png", "text": "red"}))
    with pytest.raises(ValueError, match="a.zip: its .jsonl is not read; unpack it"):
        index(write(tmp_path / "d", {"a.zip": file.getvalue()}), tmp_path / "out")


def test_conversations_in_a_table_are_named(tmp_path):
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"image": [picture(RED)], "conversations": [turns]}), tmp_path / "d/a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet holds conversations \(conversations\)"):
        index(tmp_path / "d", tmp_path / "out")
