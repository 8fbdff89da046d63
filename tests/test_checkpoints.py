"""Reading and writing models: every layout, every value, and one sentence for whatever is wrong."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tbac_uniimage.core.checkpoints import (
    Dtypes,
    export,
    load_parts,
    save_released,
    weights,
)
from tbac_uniimage.core.checkpoints.naming import MLLM_PREFIX, mllm_name, place_of, released_name
from tbac_uniimage.core.pipeline import LadderPipeline
from tiny_checkpoint import BASES, CHECKPOINT, MODULES, QWEN, SANA, assert_same, write
from transformers import Qwen2_5_VLForConditionalGeneration

EMBEDDING = "model.mllm_backbone.model.embed_tokens.weight"


# Reading


def mapped_bytes(path: Path) -> int:
    """What of a file is in this process's memory."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = line.endswith(str(path))
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_what_was_cast_does_not_stay_in_memory_beside_it(tmp_path, monkeypatch):
    """Of a file of 16 MiB no more is held than a piece and the tensor at hand; the largest goes first."""
    monkeypatch.setattr(weights, "PIECE", 1 << 21)
    stored = {f"part.{i:02}": torch.full((1 << 18,), float(i)) for i in range(12)}
    stored["part.05"] = torch.full((1 << 22,), 5.0)
    file = tmp_path / "model.safetensors"
    save_file(stored, file)
    seen, order = [], []

    def convert(key: str, tensor: torch.Tensor) -> torch.Tensor:
        found = tensor.to(torch.bfloat16)
        seen.append(mapped_bytes(file) - tensor.nbytes)
        order.append(key)
        return found

    tensors = weights.read_tensors(weights.read_header(file), convert)
    assert order[0] == "part.05" and order[1:] == sorted(order[1:])
    assert max(seen) < (1 << 21) + (1 << 20), "pages of what was read before are still there"
    assert {name: float(tensor[-1]) for name, tensor in tensors.items()} == {
        name: float(name[-2:]) for name in stored
    }
    assert mapped_bytes(file) == 0
    views = weights.read_tensors(weights.read_header(file), lambda _, tensor: tensor.to(torch.float32))
    assert all(torch.equal(views[name], tensor) for name, tensor in stored.items())
    assert mapped_bytes(file) >= file.stat().st_size - (1 << 16), "what needs no cast was copied"


@pytest.mark.parametrize("layout", ["released", "pipeline"])
def test_a_rule_decides_the_types_of_every_part(checkpoint, layout):
    """By part, by what the file has, and apart for the large weights."""
    told = {}

    def rule(part: str, module: torch.nn.Module, stored: torch.dtype) -> Dtypes:
        told[part] = (next(module.parameters()).device.type, stored)
        return Dtypes(torch.bfloat16, torch.float16) if part == "transformer" else Dtypes(None, None)

    path, bases = (CHECKPOINT, BASES) if layout == "released" else (checkpoint, {})
    parts = load_parts(path, dtype=rule, **bases)
    assert told == {part: ("meta", torch.float32) for part in MODULES}
    layers = {
        f"{name}.weight"
        for name, module in parts.transformer.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    found = {(name in layers, parameter.dtype) for name, parameter in parts.transformer.named_parameters()}
    assert found == {(True, torch.float16), (False, torch.bfloat16)}
    assert {p.dtype for part in ("mllm", "vae", "connector") for p in getattr(parts, part).parameters()} == {
        torch.float32
    }


def test_every_tensor_lands_where_it_belongs(parts, stored):
    mllm, connector = parts.mllm.state_dict(), parts.connector.state_dict()
    rows = torch.cat(
        [mllm["model.language_model.embed_tokens.weight"], connector["queries"], connector["reserved_rows"]]
    )
    assert torch.equal(rows, stored[EMBEDDING])
    assert [len(connector["queries"]), len(connector["reserved_rows"])] == [8, 2]
    prefixes = {
        "model.mllm_backbone.visual.": (mllm, "model.visual."),
        "model.mllm_backbone.model.": (mllm, "model.language_model."),
        "model.connector.": (connector, "layers."),
        "model.transformer.": (parts.transformer.state_dict(), ""),
        "vae.": (parts.vae.state_dict(), ""),
    }
    compared = 0
    for name, tensor in stored.items():
        if name != EMBEDDING:
            old, (state, new) = next((p, v) for p, v in prefixes.items() if name.startswith(p))
            assert torch.equal(state[new + name.removeprefix(old)], tensor), name
            compared += 1
    assert compared == len(stored) - 1
    # the rest of the modules' tensors: the tied head, the embedding matrix in its three pieces
    assert sum(len(getattr(parts, part).state_dict()) for part in MODULES) == compared + 4


def test_loaded_model_is_ready(parts):
    assert not any(getattr(parts, part).training for part in MODULES)
    frozen = [p.requires_grad for part in ("mllm", "vae") for p in getattr(parts, part).parameters()]
    assert not any(frozen)
    assert parts.connector.queries.requires_grad and not parts.connector.reserved_rows.requires_grad
    assert all(p.requires_grad for p in parts.transformer.parameters())
    assert parts.mllm.lm_head.weight is parts.mllm.model.language_model.embed_tokens.weight
    assert parts.system_prompt.startswith("You will be given an image or its caption.")
    assert parts.max_text_tokens == 256
    size = parts.image_processor.size
    assert size["shortest_edge"] == size["longest_edge"] == 256 * 28 * 28
    assert type(parts.image_processor).__name__ == "Qwen2VLImageProcessorPil"
    assert parts.scheduler.config.flow_shift == 3.0


def test_rotary_frequencies_are_those_of_transformers_own_loading(parts):
    reference = dict(Qwen2_5_VLForConditionalGeneration.from_pretrained(QWEN).named_buffers())
    buffers = dict(load_parts(CHECKPOINT, dtype="bfloat16", **BASES).mllm.named_buffers())
    assert reference and buffers.keys() == reference.keys()
    for name, buffer in buffers.items():
        assert buffer.dtype == torch.float32 and torch.equal(buffer, reference[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bf16", "float16"])
def test_dtype_is_that_asked_for(parts, dtype):
    cast = load_parts(CHECKPOINT, dtype=dtype, **BASES)
    wanted = torch.float16 if dtype == "float16" else torch.bfloat16
    for part in MODULES:
        for name, parameter in getattr(cast, part).named_parameters():
            assert parameter.dtype == wanted
            assert torch.equal(parameter, getattr(parts, part).get_parameter(name).to(wanted))


def test_types_of_the_file_are_kept(folder, stored):
    mixed = {n: t if n.startswith("vae.") else t.bfloat16() for n, t in stored.items()}
    write(folder, mixed)
    loaded = load_parts(folder, **BASES)
    dtypes = [next(getattr(loaded, part).parameters()).dtype for part in MODULES]
    assert dtypes == [torch.bfloat16] * 3 + [torch.float32]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_views_onto_the_file(parts):
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(CHECKPOINT / "model.safetensors")):
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            mapped.append((start, end))
    for part in MODULES:
        for name, p in getattr(parts, part).named_parameters():
            inside = any(start <= p.data_ptr() < end for start, end in mapped)
            assert inside == (name not in ("queries", "reserved_rows")), name


def test_a_file_alone_is_enough(folder, parts):
    (folder / "config.json").unlink()
    path = (folder / "model.safetensors").rename(folder / "tiny.safetensors")
    assert_same(load_parts(path, **BASES), parts)
    assert_same(load_parts(folder, **BASES), parts)


def test_base_folders_are_found_beside_the_checkpoint(folder, parts):
    config = json.loads((folder / "config.json").read_text())
    shutil.copytree(QWEN, folder.parent / "Qwen2.5-VL-3B-Instruct")
    shutil.copytree(SANA, folder.parent / Path(config["diffusion_model_id"]).name)
    assert_same(load_parts(folder), parts)


def test_settings_come_from_the_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "metaquery", "system_prompt": "Look.", "max_input_text_tokens": 17}
    config["num_metaqueries"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_parts(folder, **BASES)
    assert (loaded.system_prompt, loaded.max_text_tokens) == ("Look.", 17)
    assert loaded.connector.queries.shape[0] == 7 and loaded.connector.reserved_rows.shape[0] == 3


@pytest.mark.parametrize(
    "renames",
    [
        {"visual.": "model.visual.", "model.": "model.language_model."},
        {"visual.": "visual.", "model.": "language_model.model."},
        {"visual.": "model.visual.", "model.": "language_model."},
    ],
)
def test_names_of_other_versions_of_transformers(folder, stored, parts, renames):
    renamed = {}
    for name, tensor in stored.items():
        if name.startswith(MLLM_PREFIX):
            rest = name.removeprefix(MLLM_PREFIX)
            old = next(old for old in renames if rest.startswith(old))
            name = MLLM_PREFIX + renames[old] + rest.removeprefix(old)
        renamed[name] = tensor
    renamed[MLLM_PREFIX + "lm_head.weight"] = stored[EMBEDDING].clone()  # tied, some versions write it
    write(folder, renamed)
    assert_same(load_parts(folder, **BASES), parts)


def test_names_go_both_ways(stored):
    for name in stored:
        assert released_name(place_of(name)) == name
    assert mllm_name("lm_head.weight") == "lm_head.weight"
    assert place_of("something.else") is None


def test_pipeline_folder_round_trip(tmp_path, parts):
    LadderPipeline(**vars(parts)).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["transformer"][0] = "custom_nodes.tbac-uniimage.core.transformer"  # a name of ComfyUI's
    index |= {"system_prompt": "Look.", "max_text_tokens": 17}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = load_parts(tmp_path)
    assert (loaded.system_prompt, loaded.max_text_tokens) == ("Look.", 17)
    loaded.system_prompt, loaded.max_text_tokens = parts.system_prompt, parts.max_text_tokens
    assert_same(loaded, parts)
    assert loaded.scheduler.config.flow_shift == 3.0


# Writing


def test_released_round_trip_is_byte_for_byte(tmp_path, parts):
    saved = save_released(parts, tmp_path / "copy")
    assert filecmp.cmp(saved / "model.safetensors", CHECKPOINT / "model.safetensors", shallow=False)
    config = json.loads((saved / "config.json").read_text())
    original = json.loads((CHECKPOINT / "config.json").read_text())
    same = ["model_type", "architectures", "mllm_id", "diffusion_model_id", "vae_id", "noise_scheduler_id"]
    same += ["scheduler_id", "in_channels", "input_size", "num_metaqueries", "max_input_text_tokens"]
    same += ["connector_num_hidden_layers", "system_prompt", "vae_downsample_f", "loss_type", "torch_dtype"]
    same += ["modules_to_freeze", "modules_to_unfreeze", "tie_word_embeddings"]
    assert {key: config[key] for key in same} == {key: original[key] for key in same}
    assert_same(load_parts(saved), parts)  # its own sizes and tokenizer: no base folders are needed


def test_shards_are_written_and_read(tmp_path, parts, stored):
    saved = save_released(parts, tmp_path / "shards", max_shard_size="500KB")
    files = sorted(saved.glob("model-*.safetensors"))
    assert len(files) > 3
    together = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert together.keys() == stored.keys()
    assert all(torch.equal(together[name], stored[name]) for name in stored)
    assert_same(load_parts(saved), parts)
    with pytest.raises(ValueError, match="one of several files of a model; give its folder"):
        load_parts(files[0])
    files[1].unlink()
    with pytest.raises(ValueError, match=rf"lacks 1 of its {len(files)} weight files \({files[1].name}\)"):
        load_parts(saved)


def test_bfloat16_round_trip(tmp_path):
    half = load_parts(CHECKPOINT, dtype="bfloat16", **BASES)
    saved = save_released(half, tmp_path / "half")
    assert json.loads((saved / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_same(load_parts(saved), half)


def test_nothing_is_overwritten(tmp_path, parts):
    (tmp_path / "note.txt").write_text("keep me")
    with pytest.raises(ValueError, match="is there already and not empty"):
        save_released(parts, tmp_path)
    with pytest.raises(ValueError, match="is there already"):
        save_released(parts, tmp_path / "note.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_torn_write_leaves_nothing(tmp_path, parts, monkeypatch, error):
    (tmp_path / "model").mkdir()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise error("the disk is full")

    monkeypatch.setattr(export, "save_file", fail)
    with pytest.raises(error, match="the disk is full"):
        save_released(parts, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not any((tmp_path / "model").iterdir())
