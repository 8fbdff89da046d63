"""Load Model: a checkpoint becomes ComfyUI's MODEL and VAE, and our MLLM."""

from __future__ import annotations

from comfy_api.latest import io

from .compat import ADVANCED, Schema
from .models import EMBEDDED, EMBEDDED_FOLDER, add_folders, base_of, find_models, missing, model_path, stamp

__all__ = ["EMBEDDED", "EMBEDDED_FOLDER", "MLLM", "LadderLoadModel"]

MLLM = io.Custom("TBAC_UNIIMAGE_MLLM")
DTYPES = ["default", "bf16", "fp16", "fp32", "fp8_e4m3fn"]
AUTO = "auto"

add_folders()


class LadderLoadModel(io.ComfyNode):
    """Loads a checkpoint in the released layout, a pipeline folder, or a diffusion transformer alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        found = list(find_models())
        return Schema(
            node_id="TBACUniImageLoadModel",
            display_name="Load Model (TBAC-UniImage)",
            category="TBAC-UniImage",
            description="Loads a TBAC-UniImage model: the embedded nano model, or a checkpoint that lies in "
            "models/uniimage (a folder, or one .safetensors file).",
            search_aliases=["uniimage", "checkpoint loader", "load uniimage", "ladder", "qwen sana"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=found,
                    default=EMBEDDED,
                    tooltip="The embedded nano model draws 128-pixel icon scenes and needs no download. Put "
                    "the released checkpoint into models/uniimage to see it here.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=DTYPES,
                    default="default",
                    tooltip="How the weights are kept. default: what ComfyUI prefers for this device. bf16 "
                    "and fp32: all three parts. fp8_e4m3fn and fp16: diffusion model and language model, "
                    "which still compute in bf16 or fp32; fp8 halves their memory at some loss of quality.",
                ),
                io.Combo.Input(
                    "base",
                    options=[AUTO, *found],
                    default=AUTO,
                    optional=True,
                    tooltip="Only for a file that holds a diffusion transformer alone, as ModelSave writes "
                    "it: the model that the other parts come from. auto = the one whose sizes fit.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For Ladder Sampler, KSampler, guiders, LoRA."),
                MLLM.Output(
                    display_name="mllm",
                    tooltip="For Multi-Layer MLLM Encode, Image Edit, Edit Conditions and Ask.",
                ),
                io.Vae.Output(display_name="vae", tooltip="For VAE Encode and VAE Decode."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str, weight_dtype: str, base: str = AUTO) -> bool | str:
        """ComfyUI 0.3 does not check the choices of V3 nodes."""
        known = list(find_models())
        for name in (checkpoint, base):
            if name not in (None, AUTO, *known):
                return missing(name, known)
        if weight_dtype not in (None, *DTYPES):
            return f"weight_dtype is {weight_dtype!r}; choose {', '.join(DTYPES)}."
        return True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, weight_dtype: str, base: str = AUTO) -> str:
        """A file that was replaced is loaded again, also one of the base model that auto finds."""
        from ..core.checkpoints import is_transformer_alone

        found = find_models()
        paths = [found[name] for name in (checkpoint, base) if name in found and name != EMBEDDED]
        try:
            if base == AUTO and paths and paths[0].is_file() and is_transformer_alone(paths[0]):
                paths.append(base_of(checkpoint, base))
        except ValueError as error:
            return str(error)  # which execute raises, until the files are mended
        return stamp(*paths)

    @classmethod
    def execute(cls, checkpoint: str, weight_dtype: str, base: str = AUTO) -> io.NodeOutput:
        """Load the parts once and hand them to ComfyUI's memory management."""
        from ..core.checkpoints import is_transformer_alone
        from .bridge import load_for_comfy

        path = model_path(checkpoint)
        if path.is_file() and is_transformer_alone(path):
            return io.NodeOutput(*load_for_comfy(base_of(checkpoint, base), weight_dtype, path))
        return io.NodeOutput(*load_for_comfy(path, weight_dtype))
