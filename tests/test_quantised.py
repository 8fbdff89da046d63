"""Weights in fewer bits: the same from every layout, saved and loaded, and what cannot be says so."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from conftest import PARITY, QWEN, SANA
from diffusers import GGUFQuantizationConfig
from diffusers.hooks import apply_layerwise_casting
from diffusers.quantizers import PipelineQuantizationConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from tbac_uniimage.core import LadderPipeline, load_parts
from tbac_uniimage.core.few_steps import find_few_steps
from tbac_uniimage.core.quantised import PointwiseGLU, PointwiseTransformer2DModel, check_config
from tbac_uniimage.core.schedulers import recipe_scheduler
from tbac_uniimage.core.transformer import LadderTransformer2DModel

FOLDERS = {"mllm_dir": QWEN, "sana_dir": SANA}
NANO = Path(__file__).parent.parent / "assets" / "nano"
FORMATS = {"int8": "Int8WeightOnlyConfig", "float8": "Float8WeightOnlyConfig"}


def torchao(name: str) -> PipelineQuantizationConfig:
    """Both parts by torchao."""
    quantization = pytest.importorskip("torchao.quantization")
    kind = getattr(quantization, FORMATS[name])
    return PipelineQuantizationConfig(
        quant_mapping={
            "mllm": transformers.TorchAoConfig(kind()),
            "transformer": diffusers.TorchAoConfig(kind()),
        }
    )


def kept_bytes(module: torch.nn.Module) -> int:
    """Bytes of parameters, of those in 8 bits what they are made of."""
    total = 0
    for parameter in module.parameters():
        names = getattr(parameter, "tensor_data_names", ()) or ()
        more = getattr(parameter, "optional_tensor_data_names", ()) if names else ()
        tensors = [getattr(parameter, name) for name in (*names, *more)] or [parameter]
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
    return total


def configuration(transformer: LadderTransformer2DModel) -> dict:
    return {key: value for key, value in transformer.config.items() if not key.startswith("_")}


def drawn(pipe: LadderPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    image = Image.new("RGB", (64, 64), "teal")
    return pipe(
        "a cat", image=image, num_inference_steps=2, generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images  # fmt: skip


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(scope="module")
def plain() -> LadderPipeline:
    return LadderPipeline.from_pretrained(PARITY / "checkpoint", dtype=torch.float32, **FOLDERS)


@pytest.mark.parametrize("name", FORMATS)
def test_released_checkpoint_and_folder_alike(tmp_path, plain, name):
    config = torchao(name)
    expected = drawn(plain)
    released = LadderPipeline.from_pretrained(
        PARITY / "checkpoint", dtype=torch.float32, quantization_config=config, **FOLDERS
    )
    found = drawn(released)
    assert 0 < distance(found, expected) < 0.1
    # a conv of one pixel is in 8 bits too, so nothing large is left
    transformer = released.transformer
    assert isinstance(transformer, PointwiseTransformer2DModel)
    for layer in transformer.modules():
        if isinstance(layer, torch.nn.Linear):
            assert kept_bytes(layer) < 0.5 * 4 * layer.weight.numel() + 4 * layer.out_features
    plain.save_pretrained(tmp_path / "plain")
    folder = LadderPipeline.from_pretrained(
        tmp_path / "plain", torch_dtype=torch.float32, quantization_config=config
    )
    assert torch.equal(drawn(folder), found)
    folder.save_pretrained(tmp_path / "saved")
    again = LadderPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float32)
    assert torch.equal(drawn(again), found)
    assert kept_bytes(again.transformer) == kept_bytes(transformer)
    with pytest.raises(ValueError, match="holds quantised weights, which LadderPipeline"):
        load_parts(tmp_path / "saved")


def test_what_was_quantised_in_place_is_not_saved(tmp_path, plain):
    quantization = pytest.importorskip("torchao.quantization")
    changed = copy.deepcopy(plain.transformer)
    quantization.quantize_(changed, quantization.Int8WeightOnlyConfig())
    pipe = LadderPipeline(**{**plain.components, "transformer": changed})
    with pytest.raises(ValueError, match="weights of the transformer were quantised in place"):
        pipe.save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_convolutions_of_one_pixel_are_linear_layers(plain):
    """To rounding the same numbers, and under the same names."""
    pointwise = PointwiseTransformer2DModel(**configuration(plain.transformer))
    weights = plain.transformer.state_dict()
    shapes = {name: tensor.shape for name, tensor in pointwise.state_dict().items()}
    assert shapes.keys() == weights.keys()
    pointwise.load_state_dict({name: tensor.view(shapes[name]) for name, tensor in weights.items()})
    layers = [layer for layer in pointwise.modules() if isinstance(layer, PointwiseGLU)]
    assert len(layers) == plain.transformer.config.num_layers
    other = LadderPipeline(**{**plain.components, "transformer": pointwise.eval()})
    assert distance(drawn(other), drawn(plain)) < 1e-5


@pytest.mark.parametrize("bits", [None, "int8"])
def test_a_lora_goes_beside_them(bits):
    """Beside convolutions and beside linear layers the same, but for what 8 bits round."""
    pipe = LadderPipeline.from_pretrained(NANO, torch_dtype=torch.float32)
    transformer = PointwiseTransformer2DModel(**configuration(pipe.transformer))
    shapes = {name: tensor.shape for name, tensor in transformer.state_dict().items()}
    weights = pipe.transformer.state_dict()
    transformer.load_state_dict({name: tensor.view(shapes[name]) for name, tensor in weights.items()})
    if bits:
        quantise = pytest.importorskip("torchao.quantization")
        quantise.quantize_(transformer, getattr(quantise, FORMATS[bits])())
    other = LadderPipeline(**{**pipe.components, "transformer": transformer.eval()})
    before, rounded = drawn(pipe), distance(drawn(other), drawn(pipe))
    for each in (pipe, other):
        each.load_lora_weights(NANO / "few_steps", adapter_name="few")
        each.set_adapters("few", 0.5)  # with guidance, for which it is not made, the whole of it bends much
    assert distance(drawn(pipe), before) > 0.05
    assert distance(drawn(other), drawn(pipe)) < max(1.5 * rounded, 1e-5)


def test_four_bits_of_the_language_model(tmp_path):
    """Of the nano model, as 4 bits need widths that are multiples of 64."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    config = PipelineQuantizationConfig(quant_mapping={"mllm": four})
    pipe, plain = (
        LadderPipeline.from_pretrained(NANO, torch_dtype=torch.float32, quantization_config=how)
        for how in (config, None)
    )
    layer = pipe.mllm.model.language_model.layers[0].mlp.up_proj
    assert type(layer).__name__ == "Linear4bit" and layer.weight.element_size() == 1
    assert 2 * layer.weight.numel() == layer.in_features * layer.out_features
    assert type(pipe.transformer) is LadderTransformer2DModel
    states, expected = (p.encode_prompt("a red panda").states for p in (pipe, plain))
    assert 0 < distance(states, expected) < 0.3
    with pytest.raises(
        ValueError, match="mllm is in 4 bits on a CPU, from where bitsandbytes does not write"
    ):
        pipe.save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_gguf_through_from_single_file(tmp_path, plain):
    gguf = pytest.importorskip("gguf")
    path, transformer = tmp_path / "t.gguf", plain.transformer
    writer, kind = gguf.GGUFWriter(path, "sana"), gguf.GGMLQuantizationType.Q8_0
    for name, tensor in transformer.state_dict().items():
        values = tensor.float().numpy()
        if name.endswith("weight") and values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    transformer.save_config(tmp_path / "config")
    loaded = LadderTransformer2DModel.from_single_file(
        str(path),
        config=str(tmp_path / "config"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    pipe = LadderPipeline(**{**plain.components, "transformer": loaded})
    assert 0 < distance(drawn(pipe), drawn(plain)) < 0.1
    with pytest.raises(ValueError, match=r"t\.gguf is a GGUF file; take safetensors .*, or in Python"):
        load_parts(PARITY / "checkpoint", transformer_file=path, **FOLDERS)


def test_layerwise_casting_of_the_language_model(plain):
    """diffusers' hooks: weights in float8 between calls, with pictures too."""
    pipe = LadderPipeline.from_pretrained(PARITY / "checkpoint", dtype=torch.float32, **FOLDERS)
    apply_layerwise_casting(
        pipe.mllm, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=["norm", "patch_embed"]
    )
    weight = pipe.mllm.model.language_model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.float8_e4m3fn
    image = Image.new("RGB", (64, 64), "teal")
    states, expected = (p.encode_prompt("a cat", image=image).states for p in (pipe, plain))
    assert 0 < distance(states, expected) < 0.2


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"mllm": None}, "quantization_config is a dict; give diffusers' PipelineQuantizationConfig"),
        (
            PipelineQuantizationConfig(quant_mapping={"vae": GGUFQuantizationConfig()}),
            "quantization_config names vae; of this model mllm and transformer can be quantised",
        ),
        (
            PipelineQuantizationConfig(quant_mapping={"transformer": GGUFQuantizationConfig()}),
            "of transformer is for a file in GGUF; give it with the file to LadderTransformer2DModel",
        ),
        (
            PipelineQuantizationConfig(quant_mapping={"mllm": diffusers.QuantoConfig()}),
            "of mllm is the QuantoConfig of diffusers; take that of transformers, whose model the mllm is",
        ),
    ],
)
def test_what_cannot_be_quantised_is_said(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_config(config)


def test_other_libraries_need_a_folder():
    config = PipelineQuantizationConfig(quant_mapping={"transformer": diffusers.QuantoConfig()})
    with pytest.raises(ValueError, match="takes diffusers' TorchAoConfig alone"):
        LadderPipeline.from_pretrained(PARITY / "checkpoint", quantization_config=config, **FOLDERS)


def test_quantised_folders_are_told_by_their_configuration(tmp_path, plain):
    plain.save_pretrained(tmp_path / "p")
    path = tmp_path / "p" / "mllm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "x"}}))
    with pytest.raises(ValueError, match=r"mllm holds quantised weights"):
        load_parts(tmp_path / "p")


def test_lora_beside_eight_bits():
    config = torchao("int8")
    pipe = LadderPipeline.from_pretrained(NANO, torch_dtype=torch.float32, quantization_config=config)
    before = drawn(pipe)
    find_few_steps(NANO).apply(pipe)
    assert pipe.get_active_adapters() == ["few_steps"]  # eight bits would lose most of what is fused
    assert 0 < distance(drawn(pipe), before)
    pipe.unload_lora_weights()
    pipe.scheduler = recipe_scheduler()
    assert torch.equal(drawn(pipe), before)


def test_what_was_read_in_eight_bits_is_written_again(tmp_path, plain):
    config = torchao("int8")
    first = LadderPipeline.from_pretrained(
        PARITY / "checkpoint", dtype=torch.float32, quantization_config=config, **FOLDERS
    )
    expected = drawn(first)
    for name in ("once", "twice"):
        first.save_pretrained(tmp_path / name)
        first = LadderPipeline.from_pretrained(tmp_path / name, torch_dtype=torch.float32)
    assert torch.equal(drawn(first), expected)
    file = tmp_path / "twice" / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), file)  # without what the header says
    with pytest.raises(ValueError, match=r"transformer lacks .* \(what the header says of"):
        LadderPipeline.from_pretrained(tmp_path / "twice")
    file.unlink()
    with pytest.raises(ValueError, match="transformer holds no safetensors weights; complete the folder"):
        LadderPipeline.from_pretrained(tmp_path / "twice")


def test_options_beside_quantization_config():
    config = PipelineQuantizationConfig(quant_mapping={"mllm": transformers.QuantoConfig()})
    with pytest.raises(
        ValueError, match="knows no device_map and no variant for quantization_config; beside"
    ):
        LadderPipeline.from_pretrained(NANO, quantization_config=config, variant="fp16", device_map="cuda")
