"""Dynamic VRAM: ComfyUI's own patcher class where it has one, a stand-in where not; no GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from comfy_helpers import PROMPT, empty, encode, ladder_sample

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]

META = torch.device("meta")


def stand_in() -> type:
    """What ModelPatcherDynamic of ComfyUI 0.33 does, but for the memory: large weights of layers that cast
    stay where they are, all others move; a clone without it comes from the loader's factory."""
    import comfy.utils
    from comfy.model_patcher import ModelPatcher
    from comfy.patcher_extension import CallbacksMP

    class Dynamic(ModelPatcher):
        cached_patcher_init = None

        def is_dynamic(self):
            return True

        def load(self, device_to, *arguments, **options):
            for module in self.model.modules():
                casts = hasattr(module, "comfy_cast_weights")
                if casts:
                    module.comfy_cast_weights = True
                for name, weight in [*module.named_parameters(recurse=False)]:
                    if not casts:
                        comfy.utils.set_attr_param(module, name, weight.to(device_to))
            for callback in self.get_all_callbacks(CallbacksMP.ON_LOAD):
                callback(self, device_to, 0, False, False)

        def clone(self, disable_dynamic=False):
            if not disable_dynamic:
                copy = super().clone()
                copy.cached_patcher_init = self.cached_patcher_init
                return copy
            factory, arguments = self.cached_patcher_init
            fresh = factory(*arguments, disable_dynamic=True)
            fresh.patches = dict(self.patches)
            return fresh

    return Dynamic


@pytest.fixture
def dynamic(comfy, monkeypatch) -> type:
    """The class as ComfyUI's main.py installs it, with no video memory behind it."""
    import comfy.model_patcher as patchers

    found = getattr(patchers, "ModelPatcherDynamic", None)
    if found is None:
        found = stand_in()
    else:
        buffers = patchers.comfy_aimdo.host_buffer
        monkeypatch.setattr(buffers, "HostBuffer", lambda *_: SimpleNamespace(size=0))
        monkeypatch.setattr(found, "_vbar_get", lambda *_, **__: None)
        # it moves parameters beside submodules through .data, which cannot become meta: here we do it alone
        listed = patchers.ModelPatcher._load_list
        monkeypatch.setattr(found, "_load_list", lambda self, **_: listed(self, for_dynamic=True))
    monkeypatch.setattr(patchers, "CoreModelPatcher", found, raising=False)
    return found


@pytest.fixture
def loaded_dynamically(dynamic, checkpoint, monkeypatch) -> SimpleNamespace:
    """MODEL and MLLM for a device without memory, where a weight left on the CPU uncast is an error."""
    import comfy.model_management
    from tbac_uniimage.nodes.bridge import load_for_comfy

    for name in ("get_torch_device", "text_encoder_device", "vae_device"):
        monkeypatch.setattr(comfy.model_management, name, lambda *_: META)
    return SimpleNamespace(**dict(zip(("model", "mllm", "vae"), load_for_comfy(checkpoint), strict=True)))


def test_every_part_is_managed_by_comfyuis_current_class(dynamic, loaded_dynamically):
    assert type(loaded_dynamically.model) is type(loaded_dynamically.mllm.patcher) is dynamic
    assert loaded_dynamically.model.is_dynamic() and type(loaded_dynamically.model.clone()) is dynamic


def test_no_weight_is_left_behind(loaded_dynamically):
    model, mllm = loaded_dynamically.model, loaded_dynamically.mllm
    for patcher in (model, mllm.patcher):
        patcher.load(META)
    transformer, size = model.model.diffusion_model, model.model.latent_format.size
    held = {parameter.device.type for parameter in transformer.parameters()}
    assert held == {"cpu", "meta"}, "large weights stay, to be fetched when they are used"
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    layers, width = transformer.config.num_layers, transformer.config.caption_channels
    latents = torch.zeros(1, size.channels, 8, 8, device=META, dtype=dtype)
    context = torch.zeros(1, 8, layers * width, device=META, dtype=dtype)
    assert transformer(latents, torch.zeros(1, device=META, dtype=dtype), context).shape == latents.shape
    blocks = mllm.patcher.model["mllm"].language_model.layers
    states = torch.zeros(1, 6, mllm.encoder.mllm.config.text_config.hidden_size, device=META)
    states = states.to(blocks[0].input_layernorm.weight.dtype)
    assert blocks[-1].mlp(blocks[0].input_layernorm(states)).device == META


def test_a_clone_without_it_draws_the_same(dynamic, loaded, loaded_dynamically, monkeypatch):
    """What TorchCompileModel and hooks ask for: a plain patcher with weights of its own, patches kept."""
    from comfy.model_patcher import ModelPatcher

    monkeypatch.undo()  # the clone is for the CPU again
    model = loaded_dynamically.model
    name = "diffusion_model.proj_out.bias"
    model.add_patches({name: (torch.ones_like(model.model.diffusion_model.proj_out.bias),)}, 0.25)
    clone = model.clone(disable_dynamic=True)
    assert type(clone) is ModelPatcher
    assert clone.model is not model.model and list(clone.patches) == [name]
    clone.load_device = torch.device("cpu")
    plain = loaded.model.clone()
    plain.add_patches({name: model.patches[name][0][1]}, 0.25)
    inputs = encode(loaded, PROMPT), encode(loaded, ""), empty(loaded)
    assert torch.equal(ladder_sample(clone, *inputs), ladder_sample(plain, *inputs))
    assert not torch.equal(ladder_sample(clone, *inputs), ladder_sample(loaded.model, *inputs))


def test_the_vae_has_a_factory_too(loaded_dynamically):
    factory, arguments = loaded_dynamically.vae.patcher.cached_patcher_init
    fresh = factory(*arguments, disable_dynamic=True)
    expected = loaded_dynamically.vae.first_stage_model.state_dict()
    assert {name: weight.data_ptr() for name, weight in fresh.model.state_dict().items()} != {
        name: weight.data_ptr() for name, weight in expected.items()
    }
    assert all(torch.equal(weight, expected[name]) for name, weight in fresh.model.state_dict().items())
