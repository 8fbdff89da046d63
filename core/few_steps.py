"""A LoRA that draws in a few steps without guidance: where a model keeps it, how a pipeline draws with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoints.weights import read_header, read_metadata
from .paths import user_path
from .schedulers import euler_scheduler, step_levels

if TYPE_CHECKING:
    from .pipeline import LadderPipeline

FOLDER = "few_steps"  # of a model
HEADER = "few_steps"  # key of the file's header
MAX_STEPS = 8  # that stage 4 distils to


@dataclass(frozen=True)
class FewSteps:
    """A LoRA that was distilled to a few steps.

    Attributes:
        file: the safetensors file.
        steps: that it was distilled to, see :func:`.schedulers.step_levels`; guidance is 1.
    """

    file: Path
    steps: int

    def apply(self, pipeline: LadderPipeline) -> None:
        """Put it into a pipeline, with the solver that it was made for.

        Float32 weights take it in, so that a step costs what it did; others, and those in fewer bits, would
        lose most of it.
        """
        import torch
        from torch import nn

        pipeline.load_lora_weights(self.file, adapter_name=FOLDER)
        if all(
            type(p) is nn.Parameter and p.dtype == torch.float32 for p in pipeline.transformer.parameters()
        ):
            pipeline.fuse_lora(components=["transformer"])
            pipeline.unload_lora_weights()
        pipeline.register_modules(scheduler=euler_scheduler())


def header_of(steps: int) -> dict[str, str]:
    """What the file's header says, for whoever draws with it."""
    about = {"steps": steps, "guidance": 1.0, "sampler": "euler", "sigmas": step_levels(steps)}
    return {HEADER: json.dumps(about)}


def find_few_steps(model: Path, given: Path | None = None) -> FewSteps:
    """The few-step LoRA of a model.

    Args:
        model: its folder or file.
        given: another file, or the folder of one.

    Raises:
        ValueError: there is none, or it is a LoRA of another kind.
    """
    place = model / FOLDER if given is None else user_path(given)
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    if len(files) != 1:
        what = "more than one LoRA" if files else "no LoRA"
        raise ValueError(
            f"There is {what} for few steps at {place}; distil one with training/recipes/4_few_steps.yaml, "
            "or draw without."
        )
    read_header(files[0])  # damaged files say so
    noted = read_metadata(files[0]).get(HEADER)
    try:
        steps = json.loads(noted)["steps"]
        if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            f"{files[0]} does not say of itself that it was distilled to few steps; give one that "
            "`tbac-uniimage export RUN --to lora` wrote of a run of stage 4."
        ) from None
    return FewSteps(files[0], steps)
