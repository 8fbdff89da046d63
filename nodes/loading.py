"""Load Model: a checkpoint becomes ComfyUI's MODEL and VAE, and our MLLM."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

MLLM = io.Custom("TBAC_UNIIMAGE_MLLM")
EMBEDDED = "nano (embedded)"
EMBEDDED_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "nano"
MODEL_FOLDER = "uniimage"
DTYPES = ["default", "bf16", "fp32", "fp8_e4m3fn"]

folder_paths.add_model_folder_path(MODEL_FOLDER, str(Path(folder_paths.models_dir) / MODEL_FOLDER))
# a folder added this way lists every file until it is told its extensions
folder_paths.folder_names_and_paths[MODEL_FOLDER][1].add(".safetensors")


def find_checkpoints() -> dict[str, Path]:
    """Name -> path of the embedded model and of everything loadable under ``models/uniimage``."""
    found = {EMBEDDED: EMBEDDED_FOLDER}
    for folder in map(Path, folder_paths.get_folder_paths(MODEL_FOLDER)):
        for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
            is_model = entry.suffix == ".safetensors" or any(
                (entry / name).is_file() for name in ("model_index.json", "config.json")
            )
            if is_model:
                found.setdefault(entry.name, entry)
    return found


class LadderLoadModel(io.ComfyNode):
    """Loads a checkpoint in the released layout or a pipeline folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return io.Schema(
            node_id="TBACUniImageLoadModel",
            display_name="Load Model (TBAC-UniImage)",
            category="TBAC-UniImage",
            description="Loads a TBAC-UniImage model: the embedded nano model, or a checkpoint that lies in "
            "models/uniimage (a folder, or one .safetensors file).",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(find_checkpoints()),
                    default=EMBEDDED,
                    tooltip="The embedded nano model draws 64-pixel icon scenes and needs no download. Put "
                    "the released checkpoint into models/uniimage to see it here.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=DTYPES,
                    default="default",
                    tooltip="How the diffusion model's weights are kept. default: what ComfyUI prefers for "
                    "this device. fp8_e4m3fn halves its memory at some loss of quality.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For Ladder Sampler, KSampler, guiders, LoRA."),
                MLLM.Output(display_name="mllm", tooltip="For Multi-Layer MLLM Encode and Image Edit."),
                io.Vae.Output(display_name="vae", tooltip="For VAE Encode and VAE Decode."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str, weight_dtype: str) -> bool | str:
        """ComfyUI 0.3 does not check the choices of V3 nodes."""
        known = list(find_checkpoints())
        if checkpoint not in known:
            return f"There is no model {checkpoint!r} in models/{MODEL_FOLDER}; known: {', '.join(known)}."
        if weight_dtype not in DTYPES:
            return f"weight_dtype is {weight_dtype!r}; choose {', '.join(DTYPES)}."
        return True

    @classmethod
    def execute(cls, checkpoint: str, weight_dtype: str) -> io.NodeOutput:
        """Load the parts once and hand them to ComfyUI's memory management."""
        from .bridge import load_for_comfy

        return io.NodeOutput(*load_for_comfy(find_checkpoints()[checkpoint], weight_dtype))
