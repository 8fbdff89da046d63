"""Caches of latents and vision tokens: same losses, safe against each other, named when damaged."""

from __future__ import annotations

import argparse
import copy
import io
import multiprocessing
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from children import exit_codes, write_entries
from PIL import Image
from safetensors.torch import load
from tbac_uniimage.core.inputs import LadderProcessor
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.data.cache import command as cache
from tbac_uniimage.training.data.cache.entries import (
    Cache,
    black_canvas_name,
    black_name,
    latent_cache,
    model_hash,
    vision_cache,
)
from tbac_uniimage.training.data.samples import MicroBatches
from tbac_uniimage.training.data.shards import STORED, Shards
from tbac_uniimage.training.exits import DISK, Stop
from tbac_uniimage.training.recipe.recipe import Recipe
from tbac_uniimage.training.step.trainee import LadderTrainee, encode_latents

SIDE = 64


def png(seed: int, size: tuple[int, int]) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize(size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """An index of six edits and four captions; the inputs have several sizes."""
    folder = tmp_path_factory.mktemp("data")
    source = folder / "mixed"
    source.mkdir()
    with tarfile.open(source / "a.tar", "w") as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        for i in range(6):
            add(f"e{i}.input.png", png(i, [(80, 80), (120, 80)][i % 2]))
            add(f"e{i}.output.png", png(50 + i, (72, 72)))
            add(f"e{i}.txt", f"edit {i}".encode())
        for i in range(4):
            add(f"s{i}.png", png(100 + i, (96, 64)))
            add(f"s{i}.txt", f"picture {i}".encode())
    build(str(source), folder / "index")
    return folder / "index" / "mixed"


@pytest.fixture(scope="module")
def model(tiny):
    """The tiny model; its pictures have 64 patches."""
    parts = copy.copy(tiny)
    parts.image_processor = copy.deepcopy(tiny.image_processor)
    parts.image_processor.size = {"longest_edge": 112 * 112, "shortest_edge": 112 * 112}
    return parts


def make_recipe(index: Path, folder: Path | None, **changes) -> Recipe:
    caches = {name: str(folder / name) if folder else None for name in ("latents", "vision")}
    values = {"sets": [{"index": str(index)}], "resolution": SIDE, "workers": 0, "cache": caches}
    values["drop"] = {"caption": 0.2, "text": 0.4, "image": 0.6, "both": 0.2}
    return Recipe.model_validate(
        {
            "stage": "test",
            "data": values | changes,
            "train": {"steps": 10, "warmup": 1, "batch": 4, "micro_batch": 2, "precision": "fp32"},
            "validation": {"held_out": 0},
        }
    )


def in_bf16(recipe: Recipe) -> Recipe:
    """The same, computed in bfloat16."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "bf16"})})


def dataset(recipe: Recipe, parts, cached: bool) -> MicroBatches:
    processor = LadderProcessor(
        parts.tokenizer,
        parts.image_processor,
        num_queries=parts.connector.config.num_queries,
        first_query_id=parts.mllm.config.text_config.vocab_size,
    )
    vae, folders = parts.vae, recipe.data.cache
    return MicroBatches(
        recipe,
        processor,
        vae.config.latent_channels,
        vae.spatial_compression_ratio,
        latents=latent_cache(folders.latents, vae) if cached else None,
        vision=vision_cache(folders.vision, parts.mllm.model.visual, parts.image_processor)
        if cached
        else None,
    )


def losses(batches: MicroBatches, parts) -> torch.Tensor:
    """Losses of an epoch and more, ``[samples]``."""
    trainee, found = LadderTrainee(parts), []
    for number in range(8):
        batch = batches[number]
        latents = batch.latents if batch.latents is not None else encode_latents(parts.vae, batch.pixels)
        with torch.no_grad():
            found.append(trainee(batch.inputs, latents, batch.noise, batch.u, batch.mask))
    return torch.cat(found)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-3)])
def test_losses_are_those_without_a_cache(data, model, tmp_path, dtype, error):
    recipe = make_recipe(data, tmp_path)
    filled = cache.fill(recipe, model, dtype)
    assert (filled.written, filled.present, filled.bad) == (10, 0, [])
    cached, computed = dataset(recipe, model, True), dataset(recipe, model, False)
    batch = cached[0]
    assert batch.pixels is None and batch.latents.dtype == torch.float32
    assert batch.latents.shape == batch.noise.shape
    pairs = [(cached[number].inputs, computed[number].inputs) for number in range(8)]
    assert any(with_.features is not None for with_, _ in pairs)
    for with_, without in pairs:
        assert with_.pixel_values is None
        assert torch.equal(with_.input_ids, without.input_ids)
        assert (with_.image_grid_thw is None) == (without.image_grid_thw is None)
        if without.image_grid_thw is not None:
            assert torch.equal(with_.image_grid_thw, without.image_grid_thw)
    expected = losses(computed, model)
    difference = (losses(cached, model) - expected).abs() / expected
    assert difference.max() <= error
    if dtype != torch.float32:
        assert difference.max() > 0


def test_values_are_those_of_a_step_in_bfloat16(data, model, tmp_path):
    """A step runs autoencoder and vision tower in bfloat16 under autocast, and so does what fills a cache."""
    parts = copy.copy(model)
    parts.vae = copy.deepcopy(model.vae).bfloat16()
    parts.mllm = copy.deepcopy(model.mllm).bfloat16()
    recipe = in_bf16(make_recipe(data, tmp_path))
    cache.fill(recipe, parts, torch.float32, batch=2)
    cached, computed = dataset(recipe, parts, True)[0], dataset(recipe, parts, False)[0]
    with torch.autocast("cpu", torch.bfloat16):
        latents = encode_latents(parts.vae, computed.pixels)
    assert torch.equal(cached.latents, latents.float())
    assert not torch.equal(encode_latents(parts.vae, computed.pixels), latents)  # autocast matters


@pytest.fixture(scope="module")
def filled(data, model, tmp_path_factory) -> Recipe:
    """A recipe whose caches are full, bfloat16."""
    recipe = make_recipe(data, tmp_path_factory.mktemp("filled"))
    cache.fill(recipe, model, torch.bfloat16)
    return recipe


def entries(*folders: str | Path) -> dict[bytes, bytes]:
    """All entries by name."""
    found = {}
    for folder in folders:
        shards = Shards(Path(folder))
        for place in range(len(shards)):
            name = shards._high[place].tobytes() + shards._rows[place]["low"].tobytes()
            found[name] = shards.get(name)
    return found


def test_layout_of_the_folders(filled):
    latents, vision = entries(filled.data.cache.latents), entries(filled.data.cache.vision)
    assert len(latents) == 10
    assert len(vision) == 6 + 2  # edits, and black pictures of two grids
    for folder in (filled.data.cache.latents, filled.data.cache.vision):
        assert sorted(path.suffix for path in Path(folder).iterdir()) == [".data", ".rows", ".table"]
    stored = load(next(iter(latents.values())))
    assert stored["latents"].shape == (8, 8, 8) and stored["latents"].dtype == torch.bfloat16


def torn(recipe: Recipe, kept: int) -> None:
    """Leave what a writer of latents would leave that was killed at the entry after ``kept``."""
    (rows,) = Path(recipe.data.cache.latents).glob("*.rows")
    data = rows.with_suffix(".data")
    stored = np.fromfile(rows, STORED)
    with open(rows, "r+b") as file:
        file.truncate(kept * STORED.itemsize + 7)
    with open(data, "r+b") as file:
        file.truncate(int(stored[kept]["offset"]) + 100)


@pytest.mark.parametrize("kept", [0, 4, 7])
def test_filling_goes_on_where_it_was_stopped(data, model, tmp_path, kept):
    """And the values are those without an interruption, bit for bit."""
    recipe = make_recipe(data, tmp_path)
    assert cache.fill(recipe, model, torch.float32, batch=3).written == 10
    before = entries(*dict(recipe.data.cache).values())
    torn(recipe, kept)
    again = cache.fill(recipe, model, torch.float32, batch=3)
    assert (again.written, again.present) == (10 - kept, kept)
    assert entries(*dict(recipe.data.cache).values()) == before


def test_another_batch_computes_what_is_missing(data, model, tmp_path):
    """Equal to rounding, as it is computed beside others."""
    recipe = make_recipe(data, tmp_path)
    cache.fill(recipe, model, torch.float32, batch=3)
    before = entries(recipe.data.cache.latents)
    torn(recipe, 4)
    assert cache.fill(recipe, model, torch.float32, batch=8).written == 6
    after = entries(recipe.data.cache.latents)
    assert after.keys() == before.keys()
    for name, content in before.items():
        torch.testing.assert_close(load(after[name]), load(content), rtol=1e-4, atol=1e-5)


def test_ranks_share_the_work(data, model, tmp_path):
    recipe = make_recipe(data, tmp_path)
    counts = [cache.fill(recipe, model, torch.float32, batch=2, rank=rank, world=3) for rank in range(3)]
    assert [count.written for count in counts] == [4, 4, 2]
    assert sum(count.present for count in counts) == 0
    assert len(entries(recipe.data.cache.latents)) == 10


@pytest.mark.slow
def test_workers_read_ahead(data, model, tmp_path):
    recipe = make_recipe(data, tmp_path, workers=1)
    assert cache.fill(recipe, model, torch.float32, batch=4).written == 10


def test_several_processes_write_the_same_entries(tmp_path):
    context = multiprocessing.get_context("fork")  # nothing but files is shared
    start = context.Barrier(4)
    writers = [context.Process(target=write_entries, args=(tmp_path, start)) for _ in range(4)]
    for writer in writers:
        writer.start()
    assert exit_codes(writers) == [0] * 4
    assert len(entries(tmp_path)) == 40
    assert len(list(tmp_path.glob("*.table"))) == 1 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_entry_is_named(data, model, tmp_path, damage):
    recipe = make_recipe(data, tmp_path)
    cache.fill(recipe, model, torch.float32)
    batches = dataset(recipe, model, True)
    for number in range(8):
        batches[number]
    (path,) = Path(recipe.data.cache.latents).glob("*.data")
    path.write_bytes(damage(path.read_bytes()))
    batches = dataset(recipe, model, True)
    with pytest.raises(
        ValueError, match=rf"{path.name}, which holds the cache entry of mixed/a/.*, is damaged"
    ):
        for number in range(8):
            batches[number]
    path.unlink()  # as the sentence says
    assert cache.fill(recipe, model, torch.float32).written == 10
    assert dataset(recipe, model, True)[0].bad == []


def test_a_cache_of_an_earlier_version_is_refused(data, model, tmp_path):
    recipe = make_recipe(data, tmp_path)
    old = Path(recipe.data.cache.latents) / "0a" / "f3"
    old.mkdir(parents=True)
    (old / "0123.safetensors").write_bytes(b"x")
    for attempt in (lambda: dataset(recipe, model, True), lambda: cache.fill(recipe, model, torch.float32)):
        with pytest.raises(
            ValueError, match="latents is a cache of an earlier version, .*train cache RECIPE"
        ):
            attempt()


def test_a_missing_entry_is_named(filled, model, tmp_path):
    empty = make_recipe(Path(filled.data.sets[0].index), tmp_path)
    batches = dataset(empty, model, True)
    with pytest.raises(ValueError, match="has nothing of mixed/.* fill it with `tbac-uniimage train cache`"):
        batches[0]


def test_a_cache_of_another_model_or_size_is_not_taken(filled, model):
    other = copy.deepcopy(model.vae)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    folder = filled.data.cache.latents
    mine, theirs = latent_cache(folder, model.vae), latent_cache(folder, other)
    names = {
        entry.name("f", "k", transform)
        for entry in (mine, theirs)
        for transform in ("64x64 centre", "64x72 centre")
    }
    assert len(names) == 4
    assert mine.name("g", "k", "64x64 centre") not in names
    assert model_hash(model.vae) == model_hash(copy.deepcopy(model.vae))
    assert model_hash(model.vae) != model_hash(copy.deepcopy(model.vae).bfloat16())


def test_a_pixel_budget_of_its_own_has_entries_of_its_own(filled, model, tiny):
    folder, visual = filled.data.cache.vision, model.mllm.model.visual
    mine = vision_cache(folder, visual, model.image_processor)
    theirs = vision_cache(folder, visual, tiny.image_processor)
    assert mine.name("f", "k", "t") != theirs.name("f", "k", "t")


def test_black_pictures_of_any_size_have_the_entry_of_their_grid(filled, model):
    visions = vision_cache(filled.data.cache.vision, model.mllm.model.visual, model.image_processor)
    patches = model.image_processor(images=[Image.new("RGB", (120, 80))], return_tensors="pt")
    grid = patches["image_grid_thw"]
    expected = model.mllm.model.get_image_features(patches["pixel_values"], grid).pooler_output[0]
    stored = visions.read(black_name(visions, tuple(grid[0].tolist())), "x")["features"]
    assert torch.equal(stored, expected.detach().bfloat16())


def test_bad_pictures_get_no_entry_and_weight_0(data, model, tmp_path):
    source = tmp_path / "mixed"
    source.mkdir()
    content = (data.parents[1] / "mixed" / "a.tar").read_bytes()
    (source / "a.tar").write_bytes(content)
    build(str(source), tmp_path / "index")
    at = content.index(png(2, (80, 80)))
    (source / "a.tar").write_bytes(content[:at] + b"not a PNG" + content[at + 9 :])
    recipe = make_recipe(tmp_path / "index" / "mixed", tmp_path / "cache")
    filled = cache.fill(recipe, model, torch.float32)
    (line,) = filled.bad
    assert filled.written == 9 and line.startswith("mixed/a/e2: ")
    assert line.endswith("a.tar holds another picture than was indexed; index the data set again.")
    batches = dataset(recipe, model, True)
    read = [batches[number] for number in range(10)]
    weights = dict(pair for batch in read for pair in zip(batch.keys, batch.weight.tolist(), strict=True))
    assert [key for key, weight in weights.items() if weight == 0] == ["mixed/a/e2"]


def options(recipe: Recipe, folder: Path, *overrides: str) -> argparse.Namespace:
    from tbac_uniimage.training.recipe.recipe import save_recipe

    save_recipe(recipe, folder / "recipe.yaml")
    parser = argparse.ArgumentParser()
    cache.add_arguments(parser)
    return parser.parse_args([str(folder / "recipe.yaml"), *overrides])


def test_refused_before_anything_is_loaded(data, model, tmp_path):
    recipe = make_recipe(data, tmp_path)
    with pytest.raises(ValueError, match="needs the same crop every time, which data.crop = random"):
        cache.run(options(recipe, tmp_path, "data.crop=random"))
    with pytest.raises(ValueError, match="both null; give a folder"):
        cache.run(options(make_recipe(data, None), tmp_path))
    with pytest.raises(ValueError, match="--batch is 0"):
        cache.run(options(recipe, tmp_path, "--batch", "0"))


def test_the_command_fills_what_training_reads(data, checkpoint, tmp_path, capsys):
    from tbac_uniimage.training.models import load_base
    from tbac_uniimage.training.train import open_data

    recipe = in_bf16(make_recipe(data, tmp_path, resolution=32))
    recipe = recipe.model_copy(update={"init": str(checkpoint)})
    cache.run(options(recipe, tmp_path))
    assert "10 samples computed, 0 were there, 0 are bad." in capsys.readouterr().out
    batches = open_data(recipe, load_base(recipe, torch.bfloat16))
    batch = batches[0]
    assert batch.latents.shape == (2, 8, 4, 4) and batch.bad == []


def test_distillation_keeps_no_targets(data, model, tmp_path, checkpoint):
    """Only what a model edits, if it reads that, and a black picture in its place."""
    given = make_recipe(data, tmp_path).model_dump()
    recipe = Recipe.model_validate(given | {"distillation": {"steps": 4}, "init": str(checkpoint)})
    folder = recipe.data.cache.latents
    assert cache.fill(recipe, model, torch.float32).written == 6  # vision tokens of the edits
    assert entries(folder) == {}
    reads = copy.copy(model)
    reads.transformer = copy.deepcopy(model.transformer)
    reads.transformer.read_source(True)
    assert cache.fill(recipe, reads, torch.float32).written == 6
    assert len(entries(folder)) == 6 + 1
    assert black_canvas_name(latent_cache(folder, model.vae), SIDE, SIDE) in latent_cache(folder, model.vae)
    with pytest.raises(ValueError, match="reads no targets, and this model no latents of what it edits"):
        cache.run(options(recipe, tmp_path, "data.cache.vision=null"))


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data.cache.latents is .*x, which is no folder .*give another"):
        cache.make_folder(tmp_path / "file" / "x", "latents")


def test_a_disk_that_fills(tmp_path):
    (tmp_path / "file").touch()
    entries = Cache(tmp_path / "file" / "x", "model")
    with pytest.raises(Stop, match="cannot be written to: Not a directory; free some space") as caught:
        entries.write(entries.name("data", "key", "64x64 centre"), {"latents": torch.zeros(1)})
    assert caught.value.code == DISK
