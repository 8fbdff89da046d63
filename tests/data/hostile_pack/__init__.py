"""Nodes for tests alone: pictures and masks that no camera makes, and memory that runs out when asked."""

import math

import comfy.model_management
import torch
from comfy_api.latest import ComfyExtension, io

SHAPES = {
    "no height": (1, 0, 8, 3),
    "no pictures": (0, 8, 8, 3),
    "one pixel": (1, 1, 1, 3),
    "grey": (1, 24, 40, 1),
    "alpha": (1, 24, 40, 4),
    "two channels": (1, 24, 40, 2),
    "no batch": (24, 40, 3),
    "long": (1, 96, 16384, 3),
    "too long": (1, 16, 16384, 3),
    "odd": (1, 37, 53, 3),
    "batch": (3, 24, 40, 3),
}
Node = io.ComfyNode  # by its own name, ComfyUI-Manager's scanner would list these as nodes of the pack
VALUES = {"plain": None, "nan": math.nan, "infinite": math.inf, "beyond": 7.0, "negative": -3.0}


class HostilePicture(Node):
    """A picture of a strange shape or with strange values."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HostilePicture",
            inputs=[
                io.Combo.Input("shape", options=list(SHAPES)),
                io.Combo.Input("values", options=list(VALUES)),
            ],
            outputs=[io.Image.Output(), io.Mask.Output()],
        )

    @classmethod
    def execute(cls, shape, values):
        picture = torch.rand(SHAPES[shape], generator=torch.Generator().manual_seed(1))
        if VALUES[values] is not None and picture.numel():
            picture.view(-1)[::5] = VALUES[values]
        return io.NodeOutput(picture, picture[..., 0])


class HostileMemory(Node):
    """Passes a model on; the next time it comes to a stage, memory runs out there once."""

    @classmethod
    def define_schema(cls):
        parts = [io.Model, io.Custom("TBAC_UNIIMAGE_MLLM"), io.Vae]
        names = ("model", "mllm", "vae")
        return io.Schema(
            node_id="HostileMemory",
            inputs=[
                *(part.Input(name) for part, name in zip(parts, names, strict=True)),
                io.Combo.Input("stage", options=["load", "read", "encode", "sample", "decode"]),
                io.Int.Input("round"),
            ],
            outputs=[part.Output() for part in parts],
        )

    @classmethod
    def execute(cls, model, mllm, vae, stage, round):
        owner, name = {
            "load": (comfy.model_management, "load_models_gpu"),
            "read": (mllm.encoder, "encode"),
            "encode": (vae.first_stage_model, "encode"),
            "sample": (model.model.diffusion_model, "predict"),
            "decode": (vae.first_stage_model, "decode"),
        }[stage]
        own = vars(owner).get(name)

        def fail(*_, **__):
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
            raise comfy.model_management.OOM_EXCEPTION("Allocation on device")

        setattr(owner, name, fail)
        return io.NodeOutput(model, mllm, vae)


class HostileExtension(ComfyExtension):
    async def get_node_list(self):
        return [HostilePicture, HostileMemory]


async def comfy_entrypoint():
    return HostileExtension()
