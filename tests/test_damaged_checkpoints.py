"""Whatever is wrong with a checkpoint is said in one sentence that names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tbac_uniimage.core.checkpoints import (
    load_parts,
    weights,
)
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.core.transformer import LadderTransformer2DModel
from tbac_uniimage.core.versions import IS_4
from tiny_checkpoint import BASES, CHECKPOINT, QWEN, SANA, write

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


LAYER = "model.transformer.transformer_blocks.0.attn2.to_k"
MARK = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("weight", "beside", "said"),
    [
        (torch.float8_e4m3fn, {f"{LAYER}.weight_scale": torch.ones(())}, "weights with scales (fp8)"),
        (
            torch.int8,
            {f"{LAYER}.weight_scale": torch.ones(()), f"{LAYER}.comfy_quant": MARK},
            "weights with scales (int8)",
        ),
        (
            torch.float8_e4m3fn,
            {f"{LAYER}.scale_weight": torch.ones(()), "scaled_fp8": torch.ones(2)},
            "scaled fp8",
        ),
        (torch.uint8, {f"{LAYER}.weight.absmax": torch.ones(4)}, "bitsandbytes' 4 bits"),
        (torch.int8, {f"{LAYER}.qzeros": torch.ones(4)}, "GPTQ or AWQ"),
    ],
)
def test_weights_with_scales_are_named_with_what_to_take(folder, stored, weight, beside, said):
    """Read as plain numbers they would load and draw noise."""
    stored = dict(stored) | beside
    stored[f"{LAYER}.weight"] = stored[f"{LAYER}.weight"].to(weight)
    write(folder, stored)
    with pytest.raises(ValueError) as caught:
        load_parts(folder, **BASES)
    message = str(caught.value)
    assert said in message and str(folder) in message and message.count(". ") == 0
    assert "take the same model in bf16 or fp16" in message and "fp8_e4m3fn" in message


def test_a_transformer_alone_with_scales_is_refused_as_well(tmp_path, stored):
    alone = {
        name.removeprefix("model.transformer."): tensor
        for name, tensor in stored.items()
        if name.startswith("model.transformer.")
    }
    alone["transformer_blocks.0.attn2.to_k.scale_weight"] = torch.ones(())
    save_file(alone, tmp_path / "alone.safetensors")
    with pytest.raises(
        ValueError, match=r"alone\.safetensors holds ComfyUI's scaled fp8, which is not read here"
    ):
        load_parts(CHECKPOINT, transformer_file=tmp_path / "alone.safetensors", **BASES)


def test_another_size_says_what_to_give():
    with pytest.raises(ValueError) as caught:
        load_parts(CHECKPOINT)
    assert "should be [2048]" in str(caught.value) or "should be [2304]" in str(caught.value)
    assert "or give them as mllm_dir and sana_dir" in str(caught.value)


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


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}', "[]"])
def test_index_that_is_none(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json (is not JSON|holds no|has no)"):
        load_parts(folder, **BASES)


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


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A pipeline folder."""
    path = tmp_path_factory.mktemp("saved") / "pipeline"
    LadderPipeline(**vars(load_parts(CHECKPOINT, **BASES))).save_pretrained(path)
    return path


@pytest.mark.parametrize("part", ["mllm", "connector", "transformer", "vae"])
def test_pipelines_are_not_filled_up_with_random_numbers(tmp_path, saved, part):
    """By diffusers or transformers, which only warn of tensors that are missing."""
    shutil.copytree(saved, tmp_path / "p")
    (file,) = (tmp_path / "p" / part).glob("*.safetensors")
    tensors = load_file(file)
    gone = max(name for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != gone}, file, metadata={"format": "pt"}
    )
    with pytest.raises(
        ValueError, match=rf"p/{part} do not fit the model: 1 missing \([\w.]+\); download or save"
    ):
        LadderPipeline.from_pretrained(tmp_path / "p")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{part}/{file.name} is truncated"):
        LadderPipeline.from_pretrained(tmp_path / "p")
    file.unlink()
    with pytest.raises(ValueError, match=rf"{part} holds no safetensors weights"):
        LadderPipeline.from_pretrained(tmp_path / "p")
    whole = load_parts(saved)
    given = LadderPipeline.from_pretrained(tmp_path / "p", **{part: getattr(whole, part)})
    assert getattr(given, part) is getattr(whole, part)
    shutil.rmtree(file.parent)
    given = LadderPipeline.from_pretrained(tmp_path / "p", **{part: getattr(whole, part)})
    assert getattr(given, part) is getattr(whole, part)


@pytest.mark.skipif(IS_4, reason="variants are read by diffusers, with transformers 5")
@pytest.mark.parametrize("shards", [None, "20KB"])
def test_variants_are_not_filled_up_either(tmp_path, saved, shards):
    whole = LadderPipeline.from_pretrained(saved)
    whole.save_pretrained(tmp_path / "p", variant="fp16", **({"max_shard_size": shards} if shards else {}))
    again = LadderPipeline.from_pretrained(tmp_path / "p", variant="fp16")
    for name, tensor in whole.transformer.state_dict().items():
        assert torch.equal(tensor, again.transformer.state_dict()[name])
    file = sorted((tmp_path / "p" / "transformer").glob("*.fp16*.safetensors"))[-1]
    tensors = load_file(file)
    tensors.popitem()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"p/transformer (lacks 1 tensors|do not fit the model: 1 missing)"):
        LadderPipeline.from_pretrained(tmp_path / "p", variant="fp16")


@pytest.mark.parametrize(
    "lie",
    [
        {"dtype": "F9"},
        {"dtype": "F64"},
        {"shape": ["a"]},
        {"shape": [-1]},
        {"data_offsets": [-5, 10]},
        {"data_offsets": [0, 4]},
    ],
)
def test_headers_that_lie(tmp_path, saved, lie):
    content = (saved / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__" and header[key]["data_offsets"][0])
    header[name] |= lie
    changed = json.dumps(header).encode()
    file = tmp_path / "t.safetensors"
    file.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    with pytest.raises(
        ValueError, match=r"t\.safetensors (is damaged, its header does not hold|has no readable)"
    ):
        load_parts(saved, transformer_file=file)


@pytest.mark.parametrize(
    ("kind", "name"), [(torch.int8, "I8"), (torch.bool, "BOOL"), (torch.complex64, "C64")]
)
def test_weights_that_are_no_floating_point_numbers(tmp_path, saved, kind, name):
    tensors = load_file(saved / "transformer" / "diffusion_pytorch_model.safetensors")
    tensors["proj_out.weight"] = tensors["proj_out.weight"].to(kind)
    save_file(tensors, tmp_path / "t.safetensors")
    said = rf"t\.safetensors holds 1 weights that are no floating-point .*proj_out\.weight as {name}"
    with pytest.raises(ValueError, match=said):
        load_parts(saved, transformer_file=tmp_path / "t.safetensors")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.bfloat16])
def test_types_that_are_mixed_in_a_file(tmp_path, stored, kind):
    """A part computes in one type: that of most of its values, or bfloat16 where nothing computes in that."""
    mixed = {
        name: tensor.to(kind) if name.startswith("model.transformer.") and tensor.ndim > 1 else tensor
        for name, tensor in stored.items()
    }
    write(tmp_path, mixed)
    pipeline = LadderPipeline.from_pretrained(tmp_path, **BASES)
    assert {weight.dtype for weight in pipeline.transformer.parameters()} == {torch.bfloat16}
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline("a cat", num_inference_steps=1, output_type="latent").images
    assert latents.isfinite().all()


def test_a_picture_that_is_not_finite_is_no_picture(saved):
    pipeline = LadderPipeline.from_pretrained(saved)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.proj_out.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="What was drawn is not finite and would be black"):
        pipeline("a cat", num_inference_steps=1)


def test_a_single_file_is_no_pickle(tmp_path, saved):
    torch.save({"a": torch.ones(1)}, tmp_path / "t.ckpt")
    with pytest.raises(
        ValueError, match=r"t\.ckpt is neither safetensors nor GGUF, and nothing else is opened"
    ):
        LadderTransformer2DModel.from_single_file(str(tmp_path / "t.ckpt"))
