"""Micro-batches: their contents, that nothing but their number decides on them, and what bad data do."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from children import LIMIT, Deadly
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tbac_uniimage.core.canvas import to_pixels
from tbac_uniimage.core.inputs import LadderProcessor
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.data.loading import as_stop, loader
from tbac_uniimage.training.data.order import generator, uniform
from tbac_uniimage.training.data.pictures import aligned
from tbac_uniimage.training.data.samples import MicroBatches, dropped
from tbac_uniimage.training.data.seen import cut
from tbac_uniimage.training.exits import BAD_DATA, Stop
from tbac_uniimage.training.recipe.recipe import Recipe
from tbac_uniimage.training.recipe.settings import DropSettings

SIDE, FACTOR, CHANNELS = 32, 8, 4
GREY = (128, 128, 128)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def colour(number: int) -> tuple[int, int, int]:
    return (number * 20 % 256, 255 - number, number)


def plain(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    return png(Image.new("RGB", size, colour(number)))


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_captions(folder: Path, count: int) -> Path:
    files: dict[str, bytes] = {}
    for i in range(count):
        files |= {f"s{i:03}.png": plain(i), f"s{i:03}.txt": f"picture {i}".encode()}
    folder.mkdir(exist_ok=True)
    write_tar(folder / "captions.tar", files)
    return folder


def write_edits(folder: Path, count: int, source: tuple[int, int], target: tuple[int, int]) -> Path:
    files: dict[str, bytes] = {}
    for i in range(count):
        files[f"e{i:03}.input.png"] = plain(i, source)
        files[f"e{i:03}.output.png"] = plain(100 + i, target)
        files[f"e{i:03}.txt"] = f"change {i}".encode()
    folder.mkdir(exist_ok=True)
    write_tar(folder / "edits.tar", files)
    return folder


def make_recipe(sources: list[Path], out: Path, batch: int = 8, micro_batch: int = 2, **data) -> Recipe:
    """A recipe on fresh indexes of ``sources``."""
    for source in sources:
        build(str(source), out)
    return Recipe.model_validate(
        {
            "stage": "test",
            "data": {"sets": [{"index": str(out / source.name)} for source in sources], "resolution": SIDE}
            | data,
            "train": {"steps": 10, "warmup": 1, "batch": batch, "micro_batch": micro_batch},
            "validation": {"held_out": 0},
        }
    )


NO_DROP = {"caption": 0.0, "text": 0.0, "image": 0.0, "both": 0.0}


@pytest.fixture(scope="module")
def processor(parts) -> LadderProcessor:
    image_processor = copy.deepcopy(parts.image_processor)
    image_processor.size = {"longest_edge": 56 * 56, "shortest_edge": 56 * 56}  # 16 patches
    first = parts.mllm.config.text_config.vocab_size
    return LadderProcessor(parts.tokenizer, image_processor, num_queries=4, first_query_id=first)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Recipe:
    """Captions and edits together."""
    folder = tmp_path_factory.mktemp("mixed")
    sources = [
        write_captions(folder / "captions", 20),
        write_edits(folder / "edits", 12, (64, 48), (48, 36)),
    ]
    return make_recipe(sources, folder / "index", drop=NO_DROP)


def make(recipe: Recipe, processor: LadderProcessor) -> MicroBatches:
    return MicroBatches(recipe, processor, CHANNELS, FACTOR)


def same(a, b) -> None:
    """Assert that two batches are equal in every bit."""
    assert (a.positions, a.keys, a.bad) == (b.positions, b.keys, b.bad)
    for x, y in ((vars(a), vars(b)), (vars(a.inputs), vars(b.inputs))):
        for name, value in x.items():
            if torch.is_tensor(value):
                assert value.dtype == y[name].dtype and torch.equal(value, y[name]), name


def test_contents_of_a_micro_batch(mixed, processor):
    batches = make(mixed, processor)
    for number in range(6):
        batch = batches[number]
        assert batch.positions == [2 * number, 2 * number + 1]
        assert batch.pixels.shape == (2, 3, SIDE, SIDE) and batch.pixels.dtype == torch.float32
        assert batch.latents is None and batch.bad == [] and batch.weight.tolist() == [1.0, 1.0]
        edits = 0
        for i, (position, key) in enumerate(zip(batch.positions, batch.keys, strict=True)):
            assert key == batches.key(position)
            base = 100 if key.startswith("edits/") else 0
            edits += base > 0
            expected = torch.tensor(colour(base + int(key[-3:]))) / 127.5 - 1
            torch.testing.assert_close(batch.pixels[i].mean((1, 2)), expected)
            assert batch.pixels[i].std((1, 2)).max() < 1e-6
            expected = torch.randn(CHANNELS, 4, 4, generator=generator(0, "test", position, "noise"))
            assert torch.equal(batch.noise[i], expected)
            assert batch.u[i] == np.float32(uniform(0, "test", position, "timestep"))
        assert len(batch.inputs.image_grid_thw if edits else []) == edits
        assert (batch.inputs.pixel_values is None) == (edits == 0)
    kinds = {key.split("/")[0] for number in range(6) for key in batches[number].keys}
    assert kinds == {"captions", "edits"}


def test_text_and_pictures_reach_the_processor(mixed, processor):
    batches = make(mixed, processor)
    number = next(n for n in range(20) if any("edits" in key for key in batches[n].keys))
    batch = batches[number]
    texts, images = [], []
    for key in batch.keys:
        edit, i = key.startswith("edits/"), int(key[-3:])
        texts.append(f"change {i}" if edit else f"picture {i}")
        # 64x48 and its target 48x36 have the same proportions: the square in the middle
        images.append([Image.new("RGB", (48, 48), colour(i))] if edit else [])
    expected = processor(texts, images)
    assert torch.equal(batch.inputs.input_ids, expected.input_ids)
    assert torch.equal(batch.inputs.attention_mask, expected.attention_mask)
    assert torch.equal(batch.inputs.pixel_values, expected.pixel_values)
    assert torch.equal(batch.inputs.image_grid_thw, expected.image_grid_thw)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_micro_batches_of_a_step(mixed, processor, world):
    batches = make(mixed, processor)
    taken = [list(loader(batches, rank, world, 1, 3, workers=0)) for rank in range(world)]
    for step in range(2):
        for k in range(4):  # micro-batches of a step
            batch = taken[k % world][step * (4 // world) + k // world]
            same(batch, batches[(1 + step) * 4 + k])


@pytest.mark.slow
def test_workers_change_nothing(mixed, processor):
    batches = make(mixed, processor)
    alone = list(loader(batches, 0, 1, 0, 2, workers=0))
    for ours, theirs in zip(alone, loader(batches, 0, 1, 0, 2, workers=2), strict=True):
        same(ours, theirs)


def test_uneven_shares_are_refused(mixed, processor):
    with pytest.raises(ValueError, match="4 micro-batches, which 3 processes cannot share"):
        loader(make(mixed, processor), 0, 3, 0, 1, workers=0)


def test_can_be_sent_after_use(mixed, processor):
    batches = make(mixed, processor)
    first = batches[3]
    copied = pickle.loads(pickle.dumps(batches))
    same(copied[3], first)


@given(st.floats(0, 1, exclude_max=True), st.booleans())
def test_dropped_is_one_draw(draw, edit):
    shares = DropSettings(caption=0.1, text=0.3, image=0.2, both=0.05)
    text, image = dropped(draw, edit, shares)
    if not edit:
        assert (text, image) == (draw < 0.1, False)
    else:
        text_only, image_only = 0.3 - 0.05, 0.2 - 0.05
        kind = np.searchsorted(np.cumsum([text_only, image_only, 0.05]), draw, side="right")
        assert (text, image) == [(True, False), (False, True), (True, True), (False, False)][kind]


def test_drop_shares_over_positions():
    shares = DropSettings()  # the published ones
    draws = [uniform(0, "edits", position, "drop") for position in range(20_000)]
    counts = Counter(dropped(draw, True, shares) for draw in draws)
    expected = {(True, False): 0.1, (False, True): 0.1, (True, True): 0.1, (False, False): 0.7}
    for kind, share in expected.items():
        assert counts[kind] / len(draws) == pytest.approx(share, abs=0.01)  # 3 deviations are 0.01
    captions = sum(dropped(draw, False, shares)[0] for draw in draws)
    assert captions / len(draws) == pytest.approx(0.1, abs=0.01)


def test_dropped_conditions_are_empty_text_and_black_pictures(tmp_path, processor):
    recipe = make_recipe(
        [write_edits(tmp_path / "edits", 4, (40, 60), (SIDE, SIDE))],
        tmp_path / "index",
        drop={"caption": 0.0, "text": 1.0, "image": 1.0, "both": 1.0},
    )
    batch = make(recipe, processor)[0]
    # its proportions are not the target's: whole
    expected = processor(["", ""], [[Image.new("RGB", (40, 60))]] * 2)
    assert torch.equal(batch.inputs.input_ids, expected.input_ids)
    assert torch.equal(batch.inputs.pixel_values, expected.pixel_values)
    assert batch.pixels.mean() != -1  # the target stays


def stripes(width: int, height: int) -> Image.Image:
    """A ramp of red from left to right and of green from top to bottom."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).round().astype(np.uint8))


@pytest.mark.parametrize("crop", ["center", "random"])
def test_source_and_target_are_cut_alike(tmp_path, processor, crop):
    folder = tmp_path / "edits"
    folder.mkdir()
    files = {}
    for i in range(4):
        files[f"e{i}.input.png"] = png(stripes(256, 128))
        files[f"e{i}.output.png"] = png(stripes(128, 64))
        files[f"e{i}.txt"] = b"nothing"
    write_tar(folder / "edits.tar", files)
    batches = make(make_recipe([folder], tmp_path / "index", drop=NO_DROP, crop=crop), processor)
    lefts = set()
    for position in range(4):
        place = batches.order.place(position)
        sample = batches.sample(place, None, batches.crop(position))
        source = to_pixels(sample.images[0].resize((SIDE, SIDE), Image.Resampling.BOX))
        assert sample.images[0].size == (128, 128)
        assert (source - sample.target)[:2, 2:-2, 2:-2].abs().max() < 3 / 127.5
        lefts.add(round(float(sample.target[0].min()), 3))
    assert len(lefts) == (1 if crop == "center" else 4)
    if crop == "center":
        assert lefts.pop() == pytest.approx(-0.5, abs=0.02)  # a quarter is cut off on the left


@given(
    st.integers(16, 400), st.integers(16, 400), st.sampled_from([(32, 32), (24, 40), (64, 16)]),
    st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_cut_keeps_proportions_and_all_of_one_side(width, height, size, x, y):
    kept = cut(Image.new("L", (width, height)), size, (x, y))
    assert kept.width == width or kept.height == height
    assert kept.width <= width and kept.height <= height
    wanted = size[0] / size[1]
    assert (kept.width - 0.5) / (kept.height + 0.5) <= wanted <= (kept.width + 0.5) / (kept.height - 0.5)


def test_aligned_is_within_a_hundredth():
    assert aligned((100, 100), (512, 512)) and aligned((101, 100), (512, 512))
    assert not aligned((102, 100), (512, 512)) and not aligned((100, 102), (512, 512))


def test_buckets_have_one_shape_per_step(tmp_path, processor):
    folder = tmp_path / "wide"
    folder.mkdir()
    files = {}
    for i in range(12):
        size = [(40, 40), (100, 40), (40, 100)][i % 3]
        files |= {f"s{i:02}.png": plain(i, size), f"s{i:02}.txt": b"x"}
    write_tar(folder / "wide.tar", files)
    recipe = make_recipe([folder], tmp_path / "index", batch=4, aspect="buckets")
    batches = make(recipe, processor)
    shapes = Counter()
    for number in range(batches.order.steps_per_epoch * 2):
        batch = batches[number]
        width, height = batches.sizes[batches.order.bucket(number // 2)]
        assert batch.pixels.shape == (2, 3, height, width)
        assert batch.noise.shape == (2, CHANNELS, height // FACTOR, width // FACTOR)
        shapes[(width, height)] += 1
    assert len(shapes) == 3


def test_held_out_samples_are_never_trained_on(mixed, processor):
    recipe = mixed.model_copy(update={"validation": mixed.validation.model_copy(update={"held_out": 5})})
    batches = make(recipe, processor)
    held = batches.held_out()
    keys = [key for batch in held for key in batch.keys]
    assert len(set(keys)) == 5
    trained = {key for number in range(4 * batches.order.steps_per_epoch) for key in batches[number].keys}
    assert not trained & set(keys) and len(trained) == 32 - 5
    assert torch.cat([batch.u for batch in held]).tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    for first, second in zip(held, batches.held_out(), strict=True):
        same(first, second)


def test_a_bad_picture_stays_in_its_place_with_weight_0(tmp_path, processor):
    source = write_captions(tmp_path / "captions", 8)
    recipe = make_recipe([source], tmp_path / "index", drop=NO_DROP)
    whole = [make(recipe, processor)[number] for number in range(4)]
    tar = source / "captions.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(plain(5))
    data[at : at + 8] = b"not PNG!"
    tar.write_bytes(data)
    for number, before in enumerate(whole):
        batch = make(recipe, processor)[number]
        assert batch.positions == before.positions and batch.keys == before.keys
        assert torch.equal(batch.noise, before.noise) and torch.equal(batch.u, before.u)
        for i, key in enumerate(batch.keys):
            good = not key.endswith("s005")
            assert batch.weight[i] == good
            assert torch.equal(batch.pixels[i], before.pixels[i] if good else torch.zeros(3, SIDE, SIDE))
        bad = [key for key in batch.keys if key.endswith("s005")]
        told = f"{tar} holds another picture than was indexed; index the data set again."
        assert batch.bad == [f"{key}: {told}" for key in bad]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_truncated_tar_costs_its_last_samples(tmp_path, processor, workers):
    source = write_captions(tmp_path / "captions", 8)
    batches = make(make_recipe([source], tmp_path / "index", drop=NO_DROP), processor)
    tar = source / "captions.tar"
    whole = tar.read_bytes()
    os.truncate(tar, whole.index(plain(6)) + 20)
    read = list(loader(batches, 0, 1, 0, 1, workers=workers))
    bad = sorted(line for batch in read for line in batch.bad)
    assert [line.split(":")[0][-4:] for line in bad] == ["s006", "s007"]
    assert "captions.tar ends" in bad[0] and "too early" in bad[0]
    assert sum(batch.weight.sum().item() for batch in read) == 6


class Fails:
    """A storage with a bug."""

    def read(self, ref):
        raise KeyError("bug")


def test_nothing_else_is_swallowed(mixed, processor):
    batches = make(mixed, processor)
    batches.storage = Fails()
    with pytest.raises(KeyError, match="bug"):
        batches[0]


def test_refused_settings(mixed, processor):
    data = mixed.data.model_copy(update={"resolution": 36})
    with pytest.raises(ValueError, match="data.resolution is 36, no multiple of the 8 pixels"):
        make(mixed.model_copy(update={"data": data}), processor)


@pytest.mark.slow
def test_a_dead_worker_ends_in_one_sentence(mixed, processor):
    batches = Deadly(mixed, processor, CHANNELS, FACTOR)
    with pytest.raises(Stop, match="A data worker.* was ended.*lower data.workers") as caught:
        list(loader(batches, 0, 1, 0, 2, workers=1))
    assert caught.value.code == BAD_DATA


def in_python(code: str) -> subprocess.CompletedProcess:
    """Run code that may import what lies beside this file."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_a_process_ends_with_its_workers():
    """Workers do not listen to SIGTERM, and a process that ends waits for its children."""
    result = in_python("import children; print(children.read_one())")
    assert (result.returncode, result.stdout) == (0, "0\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_end_with_a_process_that_is_killed():
    result = in_python("import children; children.read_one_and_die()")
    assert result.returncode == -signal.SIGKILL
    workers, until = [int(number) for number in result.stdout.split()], time.monotonic() + LIMIT
    assert len(workers) == 2
    while any(map(exists, workers)):
        assert time.monotonic() < until, "workers live on"
        time.sleep(0.05)


def exists(process: int) -> bool:
    """Whether a process runs; one that nobody has asked about its end does not."""
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "(process 7) was ended by signal: Killed from outside, most often for lack of memory; give",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"),
            "(process 7) was ended by signal: Bus error from outside, most often for lack of shared memory",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
            "(process 7, 8) was ended",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), "A data worker was ended"),
        (EOFError(), "A data worker was ended"),
    ],
)
def test_signs_of_a_dead_worker(error, words):
    assert words in str(as_stop(error))


def test_other_errors_are_not_taken_for_a_dead_worker():
    assert as_stop(RuntimeError("CUDA out of memory")) is None
    assert (
        as_stop(ConnectionResetError("Caught ConnectionResetError in DataLoader worker process 0.")) is None
    )
