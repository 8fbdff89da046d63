"""Masks: found in every layout, refused where they are none, cut as the target is; what they do to losses."""

from __future__ import annotations

import argparse
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_files import BLUE, GREEN, RED, index, pack, picture, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tbac_uniimage.core.conditions import LadderCondition
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.data.cache import command as cache
from tbac_uniimage.training.data.columns import parse_columns
from tbac_uniimage.training.data.command import show_index
from tbac_uniimage.training.data.joining import join
from tbac_uniimage.training.data.layouts.findings import Reading
from tbac_uniimage.training.data.pictures import decode_mask, mask_cells
from tbac_uniimage.training.data.storage import Storage
from tbac_uniimage.training.step.objective import flow_matching_losses
from test_data_cache import dataset, losses, make_recipe, png
from training_runs import metrics, recipe, train


def mask_of(size=(24, 16), white=(0, 0, 12, 16), mode="L", kind="PNG") -> bytes:
    """A mask that is white in a box (left, top, right, bottom) and black elsewhere."""
    image = Image.new("L", size)
    image.paste(255, white)
    file = io.BytesIO()
    image.convert(mode).save(file, kind)
    return file.getvalue()


RED_PNG, GREEN_PNG, BLUE_PNG, MASK = picture(RED), picture(GREEN), picture(BLUE), mask_of()


def parquet(**columns: list) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def read(tmp_path, files: dict, *columns: str, **options):
    """The index of some files, and the report."""
    reading = Reading(parse_columns(columns))
    return index(write(tmp_path / "d", files), tmp_path / "out", reading=reading, **options)


CAT = {"cat.png": RED_PNG, "cat.txt": "a cat"}
DOG = {"dog.png": GREEN_PNG, "dog.txt": "a dog"}
LAYOUTS = {
    "masklabel of OneTrainer": {**CAT, "cat-masklabel.png": MASK, **DOG},
    "behind a dot": {**CAT, "cat.mask.png": MASK, **DOG},
    "behind an underscore": {**CAT, "cat_mask.png": MASK, **DOG},
    "within the folder": {**CAT, "masks/cat.png": MASK, **DOG},
    "within the folder, with an ending": {**CAT, "masks/cat_mask.png": MASK, **DOG},
    "beside images": {
        "images/cat.png": RED_PNG,
        "images/cat.txt": "a cat",
        "images/dog.png": GREEN_PNG,
        "images/dog.txt": "a dog",
        "masks/cat.png": MASK,
    },
    "beside a folder of any name": {
        "pets/cat.png": RED_PNG,
        "pets/cat.txt": "a cat",
        "pets/dog.png": GREEN_PNG,
        "pets/dog.txt": "a dog",
        "mask/cat.png": MASK,
    },
    "as many folders below": {
        "a/cat.png": RED_PNG,
        "a/cat.txt": "a cat",
        "b/cat.png": GREEN_PNG,
        "b/cat.txt": "a dog",
        "masks/a/cat.png": MASK,
    },
    "edit by endings": {
        "cat_start.png": BLUE_PNG,
        "cat_end.png": RED_PNG,
        "cat_mask.png": MASK,
        "cat.txt": "a cat",
        "dog_start.png": BLUE_PNG,
        "dog_end.png": GREEN_PNG,
        "dog.txt": "a dog",
    },
    "edit by folders": {
        "control/cat.png": BLUE_PNG,
        "target/cat.png": RED_PNG,
        "masks/cat.png": MASK,
        "target/cat.txt": "a cat",
        "control/dog.png": BLUE_PNG,
        "target/dog.png": GREEN_PNG,
        "target/dog.txt": "a dog",
    },
    "tar": {
        "x.tar": pack(
            {"0.png": RED_PNG, "0.mask.png": MASK, "0.txt": b"a cat", "1.png": GREEN_PNG, "1.txt": b"a dog"}
        )
    },
    "parquet": {"x.parquet": parquet(image=[RED_PNG, GREEN_PNG], mask=[MASK, None], text=["a cat", "a dog"])},
    "json lines": {
        "m.jsonl": "\n".join(
            json.dumps(record)
            for record in (
                {"image_path": "cat.png", "mask_path": "m/cat.png", "caption": "a cat"},
                {"image_path": "dog.png", "mask_path": None, "caption": "a dog"},
            )
        ),
        "cat.png": RED_PNG,
        "dog.png": GREEN_PNG,
        "m/cat.png": MASK,
    },
    "csv of an edit": {
        "list.csv": "source,target,mask,instruction\nb.png,cat.png,m.png,a cat\nb.png,dog.png,,a dog\n",
        "b.png": BLUE_PNG,
        "cat.png": RED_PNG,
        "dog.png": GREEN_PNG,
        "m.png": MASK,
    },
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, files):
    """The cat has its mask and the dog has none, whatever says so."""
    found, report = read(tmp_path, files)
    storage = Storage()
    entries = {entry.text: entry for entry in (found[i] for i in range(len(found)))}
    assert set(entries) == {"a cat", "a dog"} and report.refused.total() == 0
    assert storage.read(entries["a cat"].target) == RED_PNG
    assert storage.read(entries["a cat"].mask) == MASK and entries["a dog"].mask is None
    assert found.masked().tolist() == [found[i].text == "a cat" for i in range(2)]
    assert found.input_counts().tolist() == [len(found[i].inputs) for i in range(2)]
    assert report.masks == 1 and "white counts in the loss" in report.table()


@pytest.mark.parametrize(
    ("files", "columns"),
    [
        ({**CAT, "alpha/cat.png": MASK}, ["mask=alpha/"]),
        ({**CAT, "cat-matte.png": MASK}, ["mask=-matte.png"]),
        ({"x.parquet": parquet(image=[RED_PNG], matte=[MASK], text=["a cat"])}, ["mask=matte"]),
        (
            {"x.parquet": parquet(image=[RED_PNG], mask=[[BLUE_PNG, MASK]], text=["a cat"])},
            ["mask=mask[-1]"],
        ),
        (
            {"x.parquet": parquet(a=[RED_PNG], b=[BLUE_PNG], mask_image=[MASK], text=["a cat"])},
            ["target=a", "input=b", "mask=mask_image"],
        ),
    ],
)
def test_named_by_hand(tmp_path, files, columns):
    found, _ = read(tmp_path, files, *columns)
    assert Storage().read(found[0].mask) == MASK and Storage().read(found[0].target) == RED_PNG
    assert found.manifest["given"]["columns"] == columns


def test_what_may_be_a_mask_and_is_not_taken_is_told(tmp_path):
    table = parquet(source_img=[BLUE_PNG], target_img=[RED_PNG], mask_img=[MASK], instruction=["do it"])
    found, report = read(tmp_path, {"x.parquet": table})
    assert found[0].mask is None and len(found[0].inputs) == 1
    assert "mask_img is not used" in report.table() and "--columns mask=mask_img" in report.table()


@pytest.mark.parametrize(
    ("files", "columns", "sentence"),
    [
        (
            {"x.parquet": parquet(image=[RED_PNG], mask=[MASK], mask_path=[MASK], text=["a"])},
            [],
            "mask, mask_path could each be the mask",
        ),
        (
            {"x.parquet": parquet(mask=[MASK], text=["a"])},
            [],
            "none is to be learned",
        ),
        ({"x.parquet": parquet(image=[RED_PNG], mask=[MASK], text=["a"])}, ["mask=mak"], "has a mask mak"),
        (
            {"a/1.png": RED_PNG, "a/1.txt": "a", "b/1.png": BLUE_PNG, "b/1.txt": "b", "masks/1.png": MASK},
            [],
            "masks/ may hold masks of a/, b/",
        ),
    ],
)
def test_what_is_unclear_is_an_error(tmp_path, files, columns, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, files, *columns)


def test_all_parts_together_have_the_mask_that_was_named(tmp_path):
    """A part may have none."""
    other = parquet(image=[GREEN_PNG], mask=pa.nulls(1, pa.binary()), text=["b"])
    files = {"x.parquet": parquet(image=[RED_PNG], mask=[MASK], text=["a"]), "y.parquet": other}
    for name in ("mask", "mak"):
        reading, out = Reading(parse_columns([f"mask={name}"])), tmp_path / name
        for part in (1, 2):
            build(str(write(tmp_path / "d", files)), out, name="set", reading=reading, part=(part, 2))
        folders = sorted(out.glob("set.part-*"))
        if name == "mask":
            assert join(folders, out).masks == 1
        else:
            with pytest.raises(ValueError, match="has a mask mak, which --columns names"):
                join(folders, out)
            assert not (out / "set").exists()


def test_a_mask_of_a_list_that_is_replaced_is_looked_at_again(tmp_path):
    row = json.dumps({"image": "cat.png", "mask": "white.png", "text": "a cat"})
    files = {"l.jsonl": row, "cat.png": RED_PNG, "white.png": MASK}
    assert read(tmp_path, files)[1].masks == 1
    with pytest.raises(ValueError, match="mask is nowhere white"):
        read(tmp_path, {"white.png": BLACK})  # and nothing else


BLACK = picture(0, mode="L")
BAD = {
    "black": (BLACK, "mask is nowhere white"),
    "zeros and ones": (picture(1, mode="L"), "mask is nowhere white"),
    "in colours": (RED_PNG, "mask is in colours"),
    "transparent": (picture((255, 255, 255, 100), mode="RGBA"), "mask is transparent in parts"),
    "of another shape": (mask_of((24, 24)), "mask has other proportions than its picture"),
    "torn": (MASK[:50], "truncated"),
}


@pytest.mark.parametrize(("mask", "reason"), BAD.values(), ids=BAD)
def test_what_is_no_mask_is_refused_by_name(tmp_path, mask, reason):
    _, report = read(tmp_path, {**CAT, "cat.mask.png": mask, **DOG})
    (found,) = report.refused
    assert found.startswith(reason) and report.refused_first[found] == ["cat.png"]
    line = json.loads((tmp_path / "out/set/refused.jsonl").read_text())
    assert "cat.mask.png" in line["detail"] and report.samples == 1


def test_a_missing_mask_is_refused(tmp_path):
    lines = "image,mask,text\ncat.png,gone.png,a cat\ndog.png,,a dog\n"
    _, report = read(tmp_path, {"m.csv": lines, "cat.png": RED_PNG, "dog.png": GREEN_PNG})
    assert dict(report.refused) == {"picture file is missing": 1} and report.samples == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_masks_of_every_mode_are_read_alike(mode):
    if mode == "I;16":
        file = io.BytesIO()
        values = np.zeros((16, 24), np.uint16)
        values[:, :12] = 65535
        Image.fromarray(values).save(file, "PNG")
        data = file.getvalue()
    else:
        data = mask_of(mode=mode)
    assert np.array_equal(np.asarray(decode_mask(data)), np.asarray(decode_mask(MASK)))
    assert decode_mask(mask_of((64, 64), (0, 0, 32, 64), "L", "JPEG")).size == (64, 64)


@given(
    factor=st.sampled_from([2, 4, 8]),
    grid=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    scale=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_cells_are_means_of_areas(factor, grid, scale, seed):
    """A mask of any multiple of the target's size; what is cut off the long side does not count."""
    width, height = grid[0] * factor, grid[1] * factor
    values = np.random.default_rng(seed).integers(0, 256, (height * scale, width * scale), np.uint8)
    border = np.full((height * scale, 2 * scale), 255, np.uint8)  # cut off on the left and on the right
    mask = Image.fromarray(np.hstack([border, values, border]))
    side = factor * scale
    expected = values.reshape(grid[1], side, grid[0], side).mean((1, 3)) / 255
    cells = mask_cells(mask, width, height, factor)
    assert cells.dtype == np.float32 and np.allclose(cells, expected, atol=1e-6)


def test_crops_are_those_of_the_target():
    mask = Image.new("L", (32, 16))
    mask.paste(255, (16, 0, 32, 16))
    assert mask_cells(mask, 16, 16, 8, (0.0, 0.5)).tolist() == [[0, 0], [0, 0]]
    assert mask_cells(mask, 16, 16, 8, (1.0, 0.5)).tolist() == [[1, 1], [1, 1]]
    assert mask_cells(mask, 16, 16, 8).tolist() == [[0, 1], [0, 1]]


def predicting(values: torch.Tensor):
    """A transformer that predicts these velocities."""

    return lambda noisy, states, timestep, encoder_attention_mask, text_tokens, return_dict: (values,)


def test_loss_is_the_mean_over_what_counts():
    errors = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[1.0, 2.0], [3.0, 4.0]]]])
    mask = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    zeros = torch.zeros_like(errors)
    arguments = (LadderCondition(torch.zeros(1, 2, 1, 1), torch.ones(2, 1)), zeros, zeros, torch.zeros(2))
    found = flow_matching_losses(predicting(errors), *arguments, mask=mask)
    assert found.tolist() == pytest.approx([(1 + 0.5 * 4) / 1.5, (1 + 4 + 9 + 16) / 4])
    whole = flow_matching_losses(predicting(errors), *arguments)
    assert torch.equal(found[1], whole[1])  # a neighbour's mask changes nothing


@given(st.integers(0, 10_000))
def test_no_mask_and_a_white_one_are_the_same_to_the_bit(seed):
    values = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    condition = LadderCondition(torch.zeros(1, 2, 1, 1), torch.ones(2, 1))
    arguments = (condition, torch.zeros_like(values), torch.zeros_like(values), torch.zeros(2))
    white = flow_matching_losses(predicting(values), *arguments, mask=torch.ones(2, 5, 7))
    assert torch.equal(white, flow_matching_losses(predicting(values), *arguments))


def test_what_is_black_gets_no_gradient():
    values = torch.randn(1, 2, 4, 4, requires_grad=True)
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    zeros = torch.zeros_like(values)
    condition = LadderCondition(torch.zeros(1, 1, 1, 1), torch.ones(1, 1))
    flow_matching_losses(predicting(values), condition, zeros, zeros, torch.zeros(1), mask=mask).backward()
    assert torch.equal(values.grad[:, :, 2:], torch.zeros(1, 2, 2, 4))
    torch.testing.assert_close(values.grad[:, :, :2], values.detach()[:, :, :2] / 8)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """An index of pictures of 64 pixels: half of them with a mask that is white on the left."""
    files = {}
    for i in range(8):
        files |= {f"{i}.png": png(i, (64, 64)), f"{i}.txt": f"picture {i}"}
        if i % 2 == 0:
            files[f"{i}.mask.png"] = mask_of((64, 64), (0, 0, 32, 64))
    folder = tmp_path_factory.mktemp("masked")
    return folder, index(write(folder / "d", files), folder / "out")[0].folder


def with_train(settings, **changes):
    """The same recipe with other settings of training."""
    return settings.model_copy(update={"train": settings.train.model_copy(update=changes)})


def by_key(batches) -> dict[str, torch.Tensor | None]:
    """The masks of an epoch by the sample's number."""
    found = {}
    for number in range(4):
        batch = batches[number]
        for i, key in enumerate(batch.keys):
            found[key[4]] = None if batch.mask is None else batch.mask[i]
    return found


def test_masks_of_a_batch(masked, tiny):
    settings = make_recipe(masked[1], None)
    masks = by_key(dataset(settings, tiny, False))
    side = tiny.vae.spatial_compression_ratio
    half = torch.zeros(64 // side, 64 // side)
    half[:, : 32 // side] = 1
    assert set(masks) == set("01234567")
    for number, mask in masks.items():
        if int(number) % 2 == 0:
            assert torch.equal(mask, half)
        else:
            assert mask is None or torch.equal(mask, torch.ones_like(half))
    soft = by_key(dataset(with_train(settings, mask_floor=0.25), tiny, False))
    assert torch.equal(soft["0"], half.clamp(min=0.25))
    without = by_key(dataset(with_train(settings, masked_loss=False), tiny, False))
    assert all(mask is None for mask in without.values())


def test_losses_with_a_cache_are_those_without(masked, tiny, tmp_path):
    settings = make_recipe(masked[1], tmp_path)
    assert cache.fill(settings, tiny, torch.float32).written == 8
    expected = losses(dataset(settings, tiny, False), tiny)
    assert torch.allclose(losses(dataset(settings, tiny, True), tiny), expected, rtol=1e-6)
    off = with_train(settings, masked_loss=False)
    plain = losses(dataset(off, tiny, False), tiny)
    assert not torch.allclose(plain, expected, rtol=1e-3)
    # what was computed for the samples without a mask is there already
    filled = cache.fill(off, tiny, torch.float32)
    assert (filled.written, filled.present) == (4, 4)
    assert torch.allclose(losses(dataset(off, tiny, True), tiny), plain, rtol=1e-6)


def test_another_mask_is_another_entry(tmp_path, tiny):
    files = {f"{i}.png": png(i, (64, 64)) for i in range(4)} | {f"{i}.txt": "x" for i in range(4)}
    source = write(tmp_path / "d", files | {"0.mask.png": mask_of((64, 64), (0, 0, 32, 64))})
    settings = make_recipe(index(source, tmp_path / "out")[0].folder, tmp_path / "cache")
    assert cache.fill(settings, tiny, torch.float32).written == 4
    (source / "0.mask.png").write_bytes(mask_of((64, 64), (32, 0, 64, 64)))
    index(source, tmp_path / "out")
    filled = cache.fill(settings, tiny, torch.float32)
    assert (filled.written, filled.present) == (1, 3)
    batches = dataset(settings, tiny, True)
    masks = [batch.mask[batch.keys.index("set/0.png")] for batch in map(batches.__getitem__, range(4))
             if "set/0.png" in batch.keys]  # fmt: skip
    side = tiny.vae.spatial_compression_ratio
    assert masks and not masks[0][:, : 32 // side].any() and masks[0][:, 32 // side :].all()


def test_a_mask_that_is_cut_off_is_a_bad_sample(tmp_path, tiny):
    files = {"0.png": png(0, (128, 64)), "0.txt": "a", "0.mask.png": mask_of((128, 64), (0, 0, 30, 64))}
    for i in range(1, 4):
        files |= {f"{i}.png": png(i, (64, 64)), f"{i}.txt": "b"}
    settings = make_recipe(index(write(tmp_path / "d", files), tmp_path / "out")[0].folder, None)
    for changes, bad in (({}, 1), ({"mask_floor": 0.1}, 0), ({"masked_loss": False}, 0)):
        batches = dataset(with_train(settings, **changes), tiny, False)
        first = [batches[0], batches[1]]
        assert sum(len(batch.bad) for batch in first) == bad
        assert sum(batch.weight.sum().item() for batch in first) == 4 - bad
        if bad:
            (line,) = [line for batch in first for line in batch.bad]
            assert line == "set/0.png: mask is black where the picture is cut (to 64x64)"


def test_the_sheet_shows_what_does_not_count(tmp_path, masked):
    options = argparse.Namespace(
        index=masked[1], out=tmp_path / "sheet.png", samples=8, recipe=None, tokenizer=None, seed=0
    )
    show_index(options)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    red = (sheet[..., 0] > 170) & (sheet[..., 1] < 90) & (sheet[..., 2] < 90)
    assert 0.9 * 4 * 32 * 64 < red.sum() < 1.3 * 4 * 32 * 64


@pytest.mark.slow
def test_white_masks_change_no_step_and_others_do(tmp_path):
    """The run says what it does with masks; losses are those of a run without, or are not."""
    lines = {}
    for name, white in (("none", None), ("white", (0, 0, 64, 64)), ("half", (0, 0, 32, 64))):
        files = {}
        for i in range(6):
            files |= {f"{i}.png": png(i, (64, 64)), f"{i}.txt": f"picture {i}"}
            if white:
                files[f"{i}.mask.png"] = mask_of((64, 64), white)
        data = index(write(tmp_path / name, files), tmp_path / f"index-{name}")[0].folder
        run = tmp_path / f"run-{name}"
        said = train(
            recipe(run, [data], train={"steps": 3, "warmup": 1, "batch": 2}, checkpoint={"every": 9})
        )
        assert ("set: 6 of 6 samples count where their mask is white" in said) == (white is not None)
        lines[name] = [line["loss"] for line in metrics(run)]
    assert lines["white"] == lines["none"]
    assert all(abs(a - b) > 1e-4 for a, b in zip(lines["half"], lines["none"], strict=True))
