"""Load Model: what is listed, what is read, and what happens to files and memory."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from comfy_helpers import PROMPT, empty, encode, ladder_sample, largest, velocity
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]

PARITY = Path(__file__).parent / "data" / "parity"


@pytest.fixture
def models(comfy, tmp_path, monkeypatch) -> Path:
    """An empty folder, the only one of the key ``uniimage``."""
    import folder_paths
    from tbac_uniimage.nodes import loading  # noqa: F401  it adds the folders of its own

    folder = tmp_path / "uniimage"
    folder.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "uniimage", ([str(folder)], {".safetensors"}))
    return folder


@pytest.fixture
def own(models, checkpoint) -> Path:
    """The tiny model as a pipeline folder that a test may damage."""
    return Path(shutil.copytree(checkpoint, models / "tiny"))


def load(name: str, **options):
    from tbac_uniimage.nodes.loading import LadderLoadModel

    return LadderLoadModel.execute(name, options.pop("weight_dtype", "default"), **options).result


def predict(model, conditioning) -> torch.Tensor:
    channels = model.model.latent_format.latent_channels
    x = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return velocity(model, x, 0.5, conditioning[0][0])


def listed() -> list[str]:
    from tbac_uniimage.nodes.models import EMBEDDED, find_models

    [first, *others] = find_models()
    assert first == EMBEDDED
    return others


def test_only_models_of_ours_are_listed(models, checkpoint):
    (models / "pipeline").symlink_to(checkpoint)
    (models / "styles" / "deep").mkdir(parents=True)
    (models / "styles" / "deep" / "released").symlink_to(PARITY / "checkpoint")
    (models / "styles" / "file.safetensors").touch()
    (models / "Qwen2.5-VL-tiny").symlink_to(PARITY / "Qwen2.5-VL-tiny")
    (models / "Sana_tiny_diffusers").symlink_to(PARITY / "Sana_tiny_diffusers")
    (models / "part-00001-of-00002.safetensors").touch()
    (models / "notes.txt").touch()
    (models / "empty").mkdir()
    (models / "damaged").mkdir()
    (models / "damaged" / "config.json").write_text("{")
    (models / "small.gguf").write_bytes(b"GGUF" + bytes(20))
    assert listed() == [
        "damaged",
        "pipeline",
        "small.gguf",
        "styles/deep/released",
        "styles/file.safetensors",
    ]
    with pytest.raises(ValueError, match=r"small\.gguf is a GGUF file; take safetensors .*fp8_e4m3fn"):
        load("small.gguf")


def test_extra_model_paths_are_searched_first(comfy, comfy_tree, tmp_path, monkeypatch):
    import folder_paths
    from tbac_uniimage.nodes.models import add_folders, find_models

    # by its path: other libraries have a module named utils, too
    spec = importlib.util.spec_from_file_location("extra", comfy_tree / "utils" / "extra_config.py")
    extra = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extra)

    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    for place in ("elsewhere", "models/uniimage", "output/uniimage"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / f"{place[0]}.safetensors").touch()
        (tmp_path / place / "same.safetensors").touch()
    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"mine:\n  base_path: {tmp_path}\n  uniimage: elsewhere\n")
    extra.load_extra_path_config(str(config))
    add_folders()
    found = find_models()
    assert list(found)[1:] == ["e.safetensors", "same.safetensors", "m.safetensors", "o.safetensors"]
    assert found["same.safetensors"] == tmp_path / "elsewhere" / "same.safetensors"


def test_a_missing_model_says_where_it_was_looked_for_and_where_to_get_it(models, own):
    from tbac_uniimage.nodes.loading import LadderLoadModel

    for problem in (
        LadderLoadModel.validate_inputs("gone", "default"),
        LadderLoadModel.validate_inputs("tiny", "default", "gone"),
        str(pytest.raises(ValueError, load, "gone").value),
    ):
        assert "no model 'gone'" in problem and str(models) in problem and "tiny" in problem
        assert "https://huggingface.co/" in problem
    assert LadderLoadModel.validate_inputs("tiny", "default") is True
    assert "choose default, bf16, fp16, fp32, fp8_e4m3fn" in LadderLoadModel.validate_inputs("tiny", "int4")


def test_a_released_folder_beside_its_base_models(loaded, models):
    (models / "checkpoint").symlink_to(PARITY / "checkpoint")
    with pytest.raises(ValueError, match="do not fit the model.*beside it"):
        load("checkpoint")
    (models / "Qwen2.5-VL-3B-Instruct").symlink_to(PARITY / "Qwen2.5-VL-tiny")
    (models / "Sana_1600M_512px_diffusers").symlink_to(PARITY / "Sana_tiny_diffusers")
    assert listed() == ["checkpoint"]
    assert_same(load("checkpoint"), loaded)


def assert_same(found: tuple, loaded) -> None:
    """MODEL, MLLM and VAE that compute the same."""
    model, mllm, vae = found
    states = mllm.encode([PROMPT], [[]])[0]
    assert largest(states, encode(loaded, PROMPT)[0][0]) < 1e-5
    assert largest(predict(model, [[states, {}]]), predict(loaded.model, [[states, {}]])) < 1e-5
    latents = torch.ones(1, vae.latent_channels, 4, 4)
    assert largest(vae.decode(latents), loaded.vae.decode(latents)) < 1e-5


def test_a_released_file_alone(loaded, models, monkeypatch):
    """Of the published sizes, which stand here for those of the tiny model, with a tokenizer beside it."""
    from tbac_uniimage.core.checkpoints import released

    bases = released.base_configs({}, PARITY / "Qwen2.5-VL-tiny", PARITY / "Sana_tiny_diffusers")
    monkeypatch.setattr(released, "released_configs", lambda: bases)
    shutil.copy(PARITY / "checkpoint" / "model.safetensors", models / "alone.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(PARITY / "Qwen2.5-VL-tiny" / name, models)
    assert listed() == ["alone.safetensors"]
    assert_same(load("alone.safetensors"), loaded)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "transformer holds no safetensors weights"),
        ("mllm/config.json", "mllm/config.json is not there"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is not there"),
        ("vae/diffusion_pytorch_model.safetensors", "vae holds no safetensors weights"),
    ],
)
def test_a_missing_part_is_named(own, part, message):
    (own / part).unlink()
    with pytest.raises(ValueError, match=message):
        load("tiny")


def saved_by_comfyui(model, folder: Path, monkeypatch) -> Path:
    """What the stock node ModelSave writes."""
    import folder_paths
    from comfy_extras.nodes_model_merging import ModelSave

    monkeypatch.setattr(folder_paths, "output_directory", str(folder.parent))
    ModelSave().save(model, f"{folder.name}/merged")
    return folder / "merged_00001_.safetensors"


def test_what_model_save_writes_is_loaded_with_the_model_that_fits(loaded, models, own, monkeypatch):
    """Patched weights are baked in; the other parts come from the one model of the same sizes."""
    name = "diffusion_model.transformer_blocks.0.scale_shift_table"
    changed = loaded.model.clone()
    shape = loaded.model.model.get_parameter(name).shape
    changed.add_patches({name: ("diff", (torch.full(shape, 0.5),))}, 1.0)
    file = saved_by_comfyui(changed, models, monkeypatch)
    assert listed() == ["merged_00001_.safetensors", "tiny"]
    conditioning = encode(loaded, PROMPT)
    from comfy.model_management import load_models_gpu

    load_models_gpu([changed])
    expected = predict(changed, conditioning)
    load_models_gpu([loaded.model])
    model, mllm, _ = load(file.name)
    assert largest(predict(model, conditioning), expected) < 1e-5
    assert largest(expected, predict(loaded.model, conditioning)) > 1e-2
    assert largest(mllm.encode([PROMPT], [[]])[0], conditioning[0][0]) < 1e-5

    from tbac_uniimage.nodes.loading import LadderLoadModel

    stamps = [LadderLoadModel.fingerprint_inputs(file.name, "default")]
    os.utime(own / "vae" / "diffusion_pytorch_model.safetensors", ns=(1, 1))
    stamps.append(LadderLoadModel.fingerprint_inputs(file.name, "default"))
    shutil.rmtree(own / "transformer")
    stamps.append(LadderLoadModel.fingerprint_inputs(file.name, "default"))
    assert len(set(stamps)) == 3 and "no model here has one of its sizes" in stamps[2]
    with pytest.raises(ValueError, match="no model here has one of its sizes"):
        load(file.name)
    (own / "transformer").mkdir()  # its sizes are enough
    (own / "transformer" / "config.json").write_text(
        json.dumps(dict(loaded.model.model.diffusion_model.config), default=list)
    )
    assert largest(predict(load(file.name)[0], conditioning), expected) < 1e-5


def test_a_transformer_that_fits_two_models_asks_which(loaded, models, own, monkeypatch):
    file = saved_by_comfyui(loaded.model, models, monkeypatch)
    shutil.copytree(own, models / "twin")
    with pytest.raises(ValueError, match="fits tiny, twin; choose one as base"):
        load(file.name)
    conditioning = encode(loaded, PROMPT)
    model = load(file.name, base="twin")[0]
    assert largest(predict(model, conditioning), predict(loaded.model, conditioning)) < 1e-5
    with pytest.raises(ValueError, match="do not fit the model"):
        load(file.name, base="nano (embedded)")
    with pytest.raises(ValueError, match="no model 'gone'"):
        load(file.name, base="gone")


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "transformer.", "model.transformer."])
def test_a_transformer_alone_may_have_any_usual_prefix(loaded, models, own, prefix):
    weights = load_file(own / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({prefix + name: tensor for name, tensor in weights.items()}, models / "dit.safetensors")
    conditioning = encode(loaded, PROMPT)
    found = predict(load("dit.safetensors")[0], conditioning)
    assert largest(found, predict(loaded.model, conditioning)) < 1e-5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.lora_A.weight": torch.zeros(2, 2)}, "a LoRA"),
        ({"model.diffusion_model.input_blocks.0.weight": torch.zeros(2)}, "another diffusion model"),
        ({"foo": torch.zeros(2)}, "another model"),
        (b"", "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_files_of_other_kinds_are_one_sentence(models, content, message):
    path = models / "file.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path)
    with pytest.raises(ValueError, match=message) as error:
        load("file.safetensors")
    assert "file.safetensors" in str(error.value) and ". " not in str(error.value)


def test_a_loaded_model_needs_its_files_no_more(loaded, own):
    """Cut short, replaced, removed: what is loaded goes on, and the next load says what is wrong."""
    from tbac_uniimage.nodes.loading import LadderLoadModel

    model, mllm, vae = load("tiny")
    before = LadderLoadModel.fingerprint_inputs("tiny", "default")
    assert before == LadderLoadModel.fingerprint_inputs("tiny", "default")
    file = own / "transformer" / "diffusion_pytorch_model.safetensors"
    for weights in own.rglob("*.safetensors"):
        os.truncate(weights, weights.stat().st_size // 2)
    conditioning = [[mllm.encode([PROMPT], [[]])[0], {}]]
    found = ladder_sample(model, conditioning, conditioning, empty(loaded))
    expected = encode(loaded, PROMPT)
    assert largest(found, ladder_sample(loaded.model, expected, expected, empty(loaded))) < 1e-4
    assert vae.decode(found).isfinite().all()
    assert LadderLoadModel.fingerprint_inputs("tiny", "default") != before
    with pytest.raises(ValueError, match="is truncated"):
        load("tiny")
    file.unlink()
    assert largest(ladder_sample(model, conditioning, conditioning, empty(loaded)), found) == 0


@pytest.mark.parametrize("happens", ["truncated", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_loaded_is_one_sentence(own, monkeypatch, happens):
    from tbac_uniimage.core.checkpoints import placing

    file = own / "mllm" / "model.safetensors"
    if not file.exists():
        file = next((own / "mllm").glob("*.safetensors"))
    read = placing.read_tensors

    def interfering(*arguments):  # after all headers were read and found right
        if happens == "truncated":
            os.truncate(file, 100)
        elif happens == "replaced":
            shutil.copy(file, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
        else:
            file.unlink()
        return read(*arguments)

    monkeypatch.setattr(placing, "read_tensors", interfering)
    with pytest.raises(ValueError, match=f"{file.name} changed while the model was loaded; wait"):
        load("tiny")


def test_models_are_freed_when_nobody_holds_them(own):
    import comfy.model_management as management

    model, mllm, vae = load("tiny")
    management.load_models_gpu([model, mllm.patcher, vae.patcher])
    modules = model.model.diffusion_model, mllm.encoder.mllm, vae.first_stage_model
    watched = [weakref.ref(module) for module in modules]
    watched += [weakref.ref(next(module.parameters())) for module in modules]
    states = mllm.encode([PROMPT], [[]])[0]
    ladder_sample(
        model, [[states, {}]], [[states, {}]], {"samples": torch.zeros(1, vae.latent_channels, 8, 8)}
    )
    del model, mllm, vae, modules, states
    gc.collect()
    management.cleanup_models_gc()
    gc.collect()
    assert [reference() is None for reference in watched] == [True] * len(watched)


def test_unloading_takes_the_models_off_the_device_and_they_come_back(own):
    import comfy.model_management as management

    model, mllm, vae = load("tiny")
    patchers = [model, mllm.patcher, vae.patcher]
    management.load_models_gpu(patchers)
    assert {entry.model for entry in management.current_loaded_models} >= set(patchers)
    management.unload_all_models()
    assert not management.current_loaded_models
    states = mllm.encode([PROMPT], [[]])[0]
    latent = {"samples": torch.zeros(1, vae.latent_channels, 8, 8)}
    first = ladder_sample(model, [[states, {}]], [[states, {}]], latent)
    management.unload_all_models()
    assert largest(ladder_sample(model, [[states, {}]], [[states, {}]], latent), first) == 0


# Files in ComfyUI's formats of fewer bits

FP8, INT8 = {"format": "float8_e4m3fn"}, {"format": "int8_tensorwise"}


def marked(kind: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(kind).encode()), dtype=torch.uint8)


def scale_layers(state: dict, kind: dict | None) -> tuple[dict, dict]:
    """Tensors with layers of attention in a format, None for ``scaled_fp8``; and what they mean."""
    kept, meant = {}, dict(state)
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight" or not layer.endswith(("attn1.to_q", "attn2.to_k", "attn2.to_out.0")):
            kept[name] = tensor
            continue
        most, dtype = (127, torch.int8) if kind == INT8 else (448, torch.float8_e4m3fn)
        scale = tensor.abs().max() / most
        values = tensor / scale
        kept[name] = (values.round() if kind == INT8 else values).to(dtype)
        meant[name] = kept[name].float() * scale
        if kind is None:
            kept |= {f"{layer}.scale_weight": scale}
        else:
            kept |= {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": marked(kind)}
    return kept | ({"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if kind is None else {}), meant


@pytest.mark.parametrize("kind", [FP8, INT8, None], ids=["fp8", "int8", "scaled_fp8"])
def test_transformers_in_comfyuis_own_formats(loaded, models, own, kind):
    """By ComfyUI's own layers where it has them; each means what its scales say."""
    import comfy.utils

    state = {name: p.detach().clone() for name, p in loaded.model.model.diffusion_model.state_dict().items()}
    kept, meant = scale_layers(state, kind)
    assert sum(name.endswith(("comfy_quant", "scale_weight")) for name in kept) >= 6
    save_file(
        {f"model.diffusion_model.{name}": tensor for name, tensor in kept.items()},
        models / "small.safetensors",
    )
    save_file(meant, models / "meant.safetensors")
    if not hasattr(comfy.utils, "convert_old_quants"):
        with pytest.raises(
            ValueError, match=r"update it\. .*small.safetensors holds ComfyUI's .*take the same model"
        ):
            load("small.safetensors")
        return
    model, meaning = load("small.safetensors")[0], load("meant.safetensors")[0]
    conditioning = encode(loaded, PROMPT)
    found, expected, before = (predict(m, conditioning) for m in (model, meaning, loaded.model))
    error = ((found - expected).norm() / expected.norm()).item()
    print(f"\n{kind}: {error:.1e} from what the scales mean")
    assert error < (2e-2 if kind == INT8 else 1e-5)  # int8 rounds what it multiplies, too
    assert largest(expected, before) > 1e-3
    assert model.model_size() < loaded.model.model_size()
    factory, arguments = model.cached_patcher_init  # by which ComfyUI gets another one
    assert torch.equal(predict(factory(*arguments), conditioning), found)
    if kind is None:
        return
    layer = "transformer_blocks.0.attn1.to_q"
    rows = kept[f"{layer}.weight"][:-1].clone()
    for ending, tensor, said in (
        ("comfy_quant", marked({"format": "int3"}), f"the format int3 at {layer}"),
        ("comfy_quant", torch.tensor([1, 2], dtype=torch.uint8), f"no readable form what {layer} holds; get"),
        ("comfy_quant", marked([1]), f"no readable form what {layer} holds; get"),
        ("weight", rows, f"a weight of the shape .* at {layer}|no model here has one of its sizes"),
    ):
        save_file(kept | {f"{layer}.{ending}": tensor}, models / "small.safetensors")
        with pytest.raises(ValueError, match=said):
            load("small.safetensors")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=["nvfp4", "convrot_w4a4"])
def test_the_base_of_packed_weights_is_found(loaded, models, own, dtype):
    """Two values a byte: the shapes of all other tensors tell which model it is."""
    from tbac_uniimage.nodes.models import base_of

    state = {name: p.detach().clone() for name, p in loaded.model.model.diffusion_model.state_dict().items()}
    layer = "transformer_blocks.0.attn1.to_q"
    rows, columns = state[f"{layer}.weight"].shape
    state[f"{layer}.weight"] = torch.zeros(rows, columns // 2, dtype=dtype)
    state |= {f"{layer}.weight_scale": torch.ones(rows), f"{layer}.comfy_quant": marked({"format": "nvfp4"})}
    save_file(state, models / "small.safetensors")
    assert base_of("small.safetensors", "auto") == own
    state["transformer_blocks.0.scale_shift_table"] = torch.zeros(6, 2)
    save_file(state, models / "small.safetensors")
    with pytest.raises(ValueError, match="no model here has one of its sizes"):
        base_of("small.safetensors", "auto")


@pytest.mark.parametrize(
    ("ending", "named"), [("weight.absmax", "bitsandbytes' 4 bits"), ("qweight", "GPTQ or AWQ")]
)
def test_formats_that_nothing_here_reads_are_named_before_a_base_is_looked_for(
    loaded, models, own, ending, named
):
    state = {name: p.detach().clone() for name, p in loaded.model.model.diffusion_model.state_dict().items()}
    state[f"transformer_blocks.0.attn1.to_q.{ending}"] = torch.zeros(4)
    save_file(state, models / "small.safetensors")
    with pytest.raises(ValueError, match=f"holds {named}, which is not read here; take the same model in bf"):
        load("small.safetensors")
