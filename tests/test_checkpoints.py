"""Reading and writing models: every layout, every value, and one sentence for whatever is wrong."""

from __future__ import annotations

import filecmp
import json
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tbac_uniimage.core import export, tokenizers, weights
from tbac_uniimage.core.checkpoints import (
    LadderParts,
    assemble,
    count_parameters,
    load_parts,
    released_parts_on_meta,
    save_released,
)
from tbac_uniimage.core.naming import MLLM_PREFIX, mllm_name, place_of, released_name
from tbac_uniimage.core.pipeline import LadderPipeline
from transformers import Qwen2_5_VLForConditionalGeneration

PARITY = Path(__file__).parent / "data" / "parity"
CHECKPOINT = PARITY / "checkpoint"
QWEN = PARITY / "Qwen2.5-VL-tiny"
SANA = PARITY / "Sana_tiny_diffusers"
BASES = {"mllm_dir": QWEN, "sana_dir": SANA}
MODULES = ("mllm", "connector", "transformer", "vae")
EMBEDDING = "model.mllm_backbone.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    """The tensors of the released layout, by name."""
    return load_file(CHECKPOINT / "model.safetensors")


@pytest.fixture(scope="module")
def parts() -> LadderParts:
    return load_parts(CHECKPOINT, **BASES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the checkpoint, to damage."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "model"))


@pytest.fixture(scope="module")
def qwen_tokenizer(tmp_path_factory) -> Path:
    """The tiny tokenizer with its <|image_pad|> where the real Qwen2.5-VL has it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    content = json.loads((QWEN / "tokenizer.json").read_text(encoding="utf-8"))
    shift = 151655 - 432  # <|image_pad|>
    for token in content["added_tokens"]:
        token["id"] += shift
        content["model"]["vocab"][token["content"]] = token["id"]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def assert_same(a: LadderParts, b: LadderParts) -> None:
    for part in MODULES:
        ours, theirs = getattr(a, part).state_dict(), getattr(b, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(ours[name].dtype == theirs[name].dtype for name in ours)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    assert (a.system_prompt, a.max_text_tokens) == (b.system_prompt, b.max_text_tokens)
    assert a.image_processor.to_dict() == b.image_processor.to_dict()
    assert a.tokenizer.get_vocab() == b.tokenizer.get_vocab()


# Reading


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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_full_size_checkpoint_is_held_once(tmp_path, qwen_tokenizer):
    """A sparse file of the released size: no weight may be copied, or 11 GB of memory would be touched."""
    parts = released_parts_on_meta()
    names = export.released_tensors(parts)
    offset, header = 0, {}
    for name, tensor in names.items():
        end = offset + tensor.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) // 1024

    before = anonymous()
    loaded = load_parts(path, tokenizer_dir=qwen_tokenizer)
    assert anonymous() - before < 300, "megabytes of weights were copied"
    assert sum(count_parameters(loaded).values()) == 5_681_505_091
    assert loaded.connector.config.num_queries == 64 and loaded.connector.config.num_reserved == 2
    assert loaded.tokenizer.convert_tokens_to_ids("<|image_pad|>") == 151655


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


# Wrong tensors


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_removed_tensors_are_listed(tmp_path_factory, stored, data):
    gone = data.draw(st.lists(st.sampled_from(sorted(stored)), min_size=1, max_size=14, unique=True))
    folder = tmp_path_factory.mktemp("removed")
    write(folder, {name: tensor for name, tensor in stored.items() if name not in gone})
    with pytest.raises(ValueError) as caught:
        load_parts(folder, **BASES)
    message = str(caught.value)
    assert f"{len(gone)} missing (" in message
    shown = sorted(gone)[:10]
    assert ", ".join(shown) in message
    assert ("and" in message and f"{len(gone) - 10} more" in message) == (len(gone) > 10)
    assert "unexpected" not in message and "misshapen" not in message


def test_unexpected_and_misshapen_tensors_are_listed(folder, stored):
    stored = dict(stored) | {"model.extra.weight": torch.zeros(2), "vae.more": torch.zeros(1)}
    stored["model.connector.0.bias"] = torch.zeros(47)
    write(folder, stored)
    with pytest.raises(ValueError) as caught:
        load_parts(folder, **BASES)
    assert "2 unexpected (model.extra.weight, vae.more)" in str(caught.value)
    assert "1 misshapen (model.connector.0.bias is [47] and should be [48])" in str(caught.value)


def test_another_size_says_what_to_give():
    with pytest.raises(ValueError) as caught:
        load_parts(CHECKPOINT)
    assert "should be [2048]" in str(caught.value) or "should be [2304]" in str(caught.value)
    assert "give mllm_dir and sana_dir" in str(caught.value)


def test_too_many_queries_in_the_configuration(folder):
    config = json.loads((folder / "config.json").read_text()) | {"num_metaqueries": 64}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"embed_tokens.weight is \[458, 64\] and should be \[512, 64\]"):
        load_parts(folder, **BASES)


@pytest.mark.parametrize("number", [0, -3, "eight", 2.5])
def test_number_of_queries_that_is_none(folder, number):
    config = json.loads((folder / "config.json").read_text()) | {"num_metaqueries": number}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="num_metaqueries"):
        load_parts(folder, **BASES)


# Wrong files and folders


@pytest.mark.parametrize("kept", [0, 5, 9, 5000, 100_000, 2_895_491])
def test_truncated_file(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="is truncated" if kept >= 9 else "is not a safetensors file"):
        load_parts(folder, **BASES)


def test_trailing_bytes(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="is damaged"):
        load_parts(folder, **BASES)


@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=200))
def test_random_bytes_are_never_read_as_weights(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        weights.read_header(path)


def test_git_lfs_pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        load_parts(folder, **BASES)


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("transformer_blocks.0.attn1.to_k.lora_A.weight", "a LoRA"),
        ("model.diffusion_model.input_blocks.0.weight", "a checkpoint of another diffusion model"),
        ("model.embed_tokens.weight", "a language model alone"),
        ("caption_projection.linear_1.weight", "a diffusion transformer alone"),
        ("conv.weight", r"another model \(conv.weight\)"),
    ],
)
def test_foreign_file(tmp_path, name, looks):
    save_file({name: torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"holds no tensor of a TBAC-UniImage model; it looks like {looks}"):
        load_parts(tmp_path / "other.safetensors")


def test_wrong_kinds_of_folders(tmp_path):
    def refused(path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            load_parts(path)

    refused(tmp_path / "nowhere", "There is no model at")
    refused(tmp_path, "holds no safetensors weights")
    refused(QWEN, "is a qwen2_5_vl folder and not a TBAC-UniImage model")
    refused(SANA / "vae", "is a AutoencoderDC folder")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    refused(tmp_path, "holds weights as pickles only")
    refused(tmp_path / "pytorch_model.bin", "is a pickle, which can run code")
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"x")
    refused(tmp_path, "is a LoRA")
    (tmp_path / "model_index.json").write_text('{"_class_name": "SanaPipeline"}')
    refused(tmp_path, "is a SanaPipeline folder")
    (tmp_path / "model_index.json").write_text("[]")
    refused(tmp_path, "holds no JSON object")
    (tmp_path / "model_index.json").write_text("{")
    refused(tmp_path, "is not JSON")


def test_damaged_pipeline_folder(tmp_path, parts):
    LadderPipeline(**vars(parts)).save_pretrained(tmp_path)
    weights_file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights_file)
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, weights_file)
    with pytest.raises(ValueError, match=r"vae do not fit the model: 1 missing \(encoder.conv_in.bias\)"):
        load_parts(tmp_path)
    shutil.rmtree(tmp_path / "connector")
    with pytest.raises(ValueError, match=r"connector.config\.json is not there"):
        load_parts(tmp_path)
    shutil.copytree(tmp_path / "vae", tmp_path / "connector")
    with pytest.raises(ValueError, match="connector holds a AutoencoderDC; as connector a LadderConnector"):
        load_parts(tmp_path)


def test_devices_and_types_that_are_not_there():
    for device in ("cuda:7", "gpu", "xpu:3"):
        with pytest.raises(ValueError, match=f"The device {device} is not there"):
            load_parts(CHECKPOINT, device=device, **BASES)
    for dtype in ("float12", torch.int8):
        with pytest.raises(ValueError, match="is not known; choose float32, bfloat16 or float16"):
            load_parts(CHECKPOINT, dtype=dtype, **BASES)


# Tokenizers


@pytest.fixture
def alone(monkeypatch) -> None:
    """No ComfyUI and no hub."""
    monkeypatch.setattr(tokenizers, "comfyui_tokenizer_dir", lambda: None)
    monkeypatch.setattr(
        tokenizers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: (_ for _ in ()).throw(OSError())
    )


def copy_tokenizer(target: Path, names=("vocab.json", "merges.txt", "tokenizer_config.json")) -> Path:
    target.mkdir(parents=True)
    for name in names:
        shutil.copy(QWEN / name, target / name)
    return target


def tiny_without_tokenizer(tmp_path: Path) -> Path:
    """The tiny Qwen2.5-VL folder with nothing but its configuration."""
    (tmp_path / "base").mkdir()
    shutil.copy(QWEN / "config.json", tmp_path / "base" / "config.json")
    return tmp_path / "base"


def test_no_tokenizer_anywhere(tmp_path, alone):
    with pytest.raises(ValueError, match="give tokenizer_dir, or set COMFYUI_PATH"):
        load_parts(CHECKPOINT, mllm_dir=tiny_without_tokenizer(tmp_path), sana_dir=SANA)


@pytest.mark.parametrize("place", ["folder", "tokenizer_dir", "comfyui"])
def test_tokenizer_is_found(tmp_path, folder, parts, monkeypatch, place):
    base = tiny_without_tokenizer(tmp_path)
    options = {}
    if place == "folder":
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            shutil.copy(QWEN / name, folder / name)
    elif place == "tokenizer_dir":
        options["tokenizer_dir"] = copy_tokenizer(tmp_path / "tokens")
    else:
        copy_tokenizer(tmp_path / "ComfyUI" / "comfy" / "text_encoders" / "qwen25_tokenizer")
        monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "ComfyUI"))
    found = load_parts(folder, mllm_dir=base, sana_dir=SANA, **options).tokenizer
    text = "a red cat\n<|im_end|> 42"
    assert found.get_vocab() == parts.tokenizer.get_vocab()
    assert found(text)["input_ids"] == parts.tokenizer(text)["input_ids"]


def test_tokenizer_from_the_hub_cache(tmp_path, parts, alone, monkeypatch):
    asked = []

    def from_pretrained(name, local_files_only=False):
        asked.append((name, local_files_only))
        if local_files_only:
            raise OSError("not in the cache")
        return parts.tokenizer

    monkeypatch.setattr(tokenizers.AutoTokenizer, "from_pretrained", from_pretrained)
    loaded = load_parts(CHECKPOINT, mllm_dir=tiny_without_tokenizer(tmp_path), sana_dir=SANA)
    assert loaded.tokenizer is parts.tokenizer
    assert asked == [("Qwen/Qwen2.5-VL-3B-Instruct", True), ("Qwen/Qwen2.5-VL-3B-Instruct", False)]


def test_tokenizer_of_another_model(tmp_path, qwen_tokenizer):
    base = tiny_without_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"<\|image_pad\|> is token 151655, the MLLM's is 432 of 448"):
        load_parts(CHECKPOINT, mllm_dir=base, sana_dir=SANA, tokenizer_dir=qwen_tokenizer)
    content = json.loads((QWEN / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = [t for t in content["added_tokens"] if "vision" not in t["content"]]
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"has no <\|vision_start\|>, <\|vision_end\|>; a tokenizer of Qwen2.5"
    ):
        load_parts(CHECKPOINT, mllm_dir=base, sana_dir=SANA, tokenizer_dir=tmp_path / "tokens")
    with pytest.raises(ValueError, match="holds no tokenizer.json"):
        load_parts(CHECKPOINT, tokenizer_dir=SANA, **BASES)


@pytest.mark.comfy
def test_comfyui_has_the_tokenizer_of_the_released_model(comfy_tree, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfy_tree))
    config = released_parts_on_meta().mllm.config
    tokenizer = tokenizers.find_tokenizer(config, [])
    names = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|>".split()
    ids = [151643, 151644, 151645, 151652, 151653, 151655]
    assert tokenizer.convert_tokens_to_ids(names) == ids
    assert tokenizer.pad_token_id == 151643
    assert tokenizer("A cat, 3 dogs.")["input_ids"] == [32, 8251, 11, 220, 18, 12590, 13]


# New models, and sizes


def test_assemble_joins_the_base_models(tmp_path):
    fresh = assemble(QWEN, SANA, num_queries=5, seed=3)
    qwen = Qwen2_5_VLForConditionalGeneration.from_pretrained(QWEN).state_dict()
    assert all(torch.equal(tensor, qwen[name]) for name, tensor in fresh.mllm.state_dict().items())
    for part in ("transformer", "vae"):
        stored = load_file(SANA / part / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(t, stored[n]) for n, t in getattr(fresh, part).state_dict().items())
    assert fresh.connector.queries.shape == (5, 64) and fresh.connector.layers[2].weight.shape == (48, 48)
    assert_same(assemble(QWEN, SANA, num_queries=5, seed=3), fresh)
    other = assemble(QWEN, SANA, num_queries=5, seed=4)
    assert not torch.equal(other.connector.queries, fresh.connector.queries)
    assert not torch.equal(other.connector.layers[0].weight, fresh.connector.layers[0].weight)
    assert_same(load_parts(save_released(fresh, tmp_path / "fresh")), fresh)


def test_new_queries_look_like_tokens():
    fresh = assemble(QWEN, SANA, num_queries=4000, dtype="bfloat16")
    assert fresh.connector.queries.dtype == torch.bfloat16
    rows = fresh.mllm.get_input_embeddings().weight[: len(fresh.tokenizer)].float()
    queries = fresh.connector.queries.detach().float()
    assert torch.allclose(queries.mean(0), rows.mean(0), atol=5 * rows.std().item() / 4000**0.5)
    assert torch.allclose(queries.std(0), rows.std(0), rtol=0.1)


def test_assemble_refuses_what_does_not_fit(tmp_path):
    def refused(match: str, qwen: Path = QWEN, sana: Path = SANA, **options) -> None:
        with pytest.raises(ValueError, match=match):
            assemble(qwen, sana, **options)

    refused("num_queries is 0", num_queries=0)
    refused("config.json is not there", qwen=tmp_path)
    refused("holds a tbacuniimage; as mllm a qwen2_5_vl is needed", qwen=CHECKPOINT)
    refused(r"transformer.config\.json is not there", sana=QWEN)
    shallow, wide = tmp_path / "shallow", tmp_path / "wide"
    shutil.copytree(QWEN, shallow)
    config = json.loads((QWEN / "config.json").read_text()) | {"num_hidden_layers": 3, "max_window_layers": 3}
    (shallow / "config.json").write_text(json.dumps(config))
    refused("The MLLM has 3 layers and SANA 4 blocks", qwen=shallow)
    shutil.copytree(SANA, wide)
    config = json.loads((SANA / "vae" / "config.json").read_text()) | {"latent_channels": 16}
    (wide / "vae" / "config.json").write_text(json.dumps(config))
    refused("latents of 16 channels and SANA takes 8", sana=wide)


def test_released_model_has_the_published_size():
    parts = released_parts_on_meta()
    assert all(p.is_meta for part in MODULES for p in getattr(parts, part).parameters())
    assert count_parameters(parts) == {
        "mllm": 3_754_622_976,
        "connector": 10_033_920,
        "queries": 64 * 2048,
        "reserved rows": 2 * 2048,
        "transformer": 1_604_462_752,
        "vae": 312_250_275,
    }
    assert sum(count_parameters(parts).values()) == 5_681_505_091
