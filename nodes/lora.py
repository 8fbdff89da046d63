"""Load LoRA: files of any training script, under the names of our MODEL's layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
from comfy_api.latest import io

from .compat import Schema
from .ladders import ladder_of
from .limits import check, problem
from .models import WEIGHTS, stamp

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

FOLDER = "loras"


def lora_files() -> list[str]:
    """The safetensors files of ComfyUI's LoRA folders."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(WEIGHTS)]


class LadderLoadLora(io.ComfyNode):
    """A LoRA of diffusers, peft, kohya's scripts or this project, or an error."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageLoadLora",
            display_name="Load LoRA (TBAC-UniImage)",
            category="TBAC-UniImage",
            description="Adds a LoRA to the model, whatever script trained it: diffusers, peft, kohya and "
            "this project name their layers differently. One that fits no layer is an error.",
            search_aliases=["lora", "lora loader", "peft", "kohya", "adapter", "fine-tune"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Model (TBAC-UniImage), or another Load LoRA."),
                io.Combo.Input(
                    "lora",
                    options=lora_files(),
                    tooltip="A .safetensors file in models/loras. Of a peft folder take "
                    "adapter_model.safetensors and leave adapter_config.json beside it, which holds its "
                    "alpha.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of it is added; 0 adds nothing, negative is its opposite.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For any sampler or guider.")],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None, strength: float | None = None) -> bool | str:
        """ComfyUI 0.3 checks no choices of V3 nodes, and lets NaN pass."""
        if lora is not None and lora not in lora_files():
            return f"There is no LoRA {lora!r} in models/{FOLDER}; put it there, or choose one that is."
        return problem(cls, strength=strength) or True

    @classmethod
    def fingerprint_inputs(cls, lora: str, strength: float = 1.0) -> str:
        """A file that was replaced is loaded again."""
        path = folder_paths.get_full_path(FOLDER, lora)
        return f"{strength} {stamp(Path(path))}" if path else lora

    @classmethod
    def execute(cls, model: ModelPatcher, lora: str, strength: float) -> io.NodeOutput:
        """Name the layers, then let ComfyUI add what it knows: LoRA, and also DoRA, LoHa and LoKr."""
        import comfy.sd

        from ..core.lora import comfy_lora, layer_shapes, read_lora

        check(cls, strength=strength)
        ladder_of(model)  # refuses other models
        tensors, config = read_lora(folder_paths.get_full_path_or_raise(FOLDER, lora))
        own = {name: tensor.clone() for name, tensor in tensors.items()}  # the file may change or go
        named = comfy_lora(own, layer_shapes(model.model.diffusion_model), config)
        return io.NodeOutput(comfy.sd.load_lora_for_models(model, None, named, strength, 0)[0])
