"""Compare this code with what the authors' code computed on a tiny model.

    python tests/parity.py tests/data/parity

runs every case of a folder of that layout, prints the worst error of each quantity and exits with 1 if one is
beyond its tolerance. All in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from tbac_uniimage.core.checkpoints import LadderParts, load_parts
from tbac_uniimage.core.denoising import velocities
from tbac_uniimage.core.guidance import Guidance, branch_inputs
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.core.requests import check_request
from tbac_uniimage.training.step.trainee import LadderTrainee, encode_latents

# the largest error allowed, and whether the error is absolute or relative to the recorded norm
TOLERANCES = {
    "token ids": 0.0,
    "masks": 0.0,
    "pixel values": 0.0,
    "image grids": 0.0,
    "timesteps": 0.0,
    "conditions": 1e-4,
    "first predictions": 1e-4,
    "final latents": 1e-3,
    "images": 1e-3,
    "training loss (relative)": 1e-5,
    "gradients (relative)": 1e-3,
}


def find_base_folders(folder: Path) -> tuple[Path, Path]:
    """The MLLM's and the diffusion model's folder among the subfolders of a parity folder."""
    mllm = [path.parent for path in sorted(folder.glob("*/preprocessor_config.json"))]
    sana = [path.parent.parent for path in sorted(folder.glob("*/transformer/config.json"))]
    if len(mllm) != 1 or len(sana) != 1:
        raise SystemExit(f"{folder} is no parity folder: it needs one MLLM folder and one SANA folder.")
    return mllm[0], sana[0]


class Parity:
    """A tiny model, its recordings, and the worst error of every quantity so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mllm_dir, sana_dir = find_base_folders(folder)
        parts = load_parts(
            folder / "checkpoint", mllm_dir=mllm_dir, sana_dir=sana_dir, dtype=torch.float32, device="cpu"
        )
        self.pipe = LadderPipeline(**vars(parts))
        self.pipe.set_progress_bar_config(disable=True)
        self.recorded = load_file(folder / "recordings.safetensors")
        content = json.loads((folder / "cases.json").read_text())
        self.cases: dict[str, dict] = content["cases"]
        self.pipe.image_processor.size = {
            "shortest_edge": content["min_pixels"],
            "longest_edge": content["max_pixels"],
        }
        self.errors: dict[str, float] = {}

    def compare(self, quantity: str, ours: torch.Tensor, key: str) -> None:
        """Note the largest difference between ``ours`` and the recording ``key``, if there is one."""
        if key not in self.recorded:
            return
        theirs = self.recorded[key]
        if ours.shape != theirs.shape:
            error = float("inf")
        elif "relative" in quantity:
            error = ((ours - theirs).norm() / theirs.norm()).item()
        else:
            error = (ours.double() - theirs.double()).abs().max().item()
        # a NaN must not pass as the smaller of two numbers
        error = float("inf") if error != error else error
        self.errors[quantity] = max(self.errors.get(quantity, 0.0), error)

    def images_of(self, case: dict) -> list[list[Image.Image]] | None:
        if case["images"] is None:
            return None
        return [
            [Image.open(self.folder / "images" / f"{name}.png") for name in group] for group in case["images"]
        ]

    def inputs(self, name: str, prompts: list[str], images: list[list[Image.Image]] | None) -> torch.Tensor:
        """Compare tokenised inputs and return the conditions they give."""
        inputs = self.pipe.encoder.tokenize(prompts, images)
        self.compare("token ids", inputs.input_ids, f"{name}.input_ids")
        self.compare("masks", inputs.attention_mask, f"{name}.attention_mask")
        if inputs.pixel_values is not None:
            self.compare("pixel values", inputs.pixel_values[::16, :64], f"{name}.pixel_values")
            self.compare("image grids", inputs.image_grid_thw, f"{name}.image_grid_thw")
        return self.pipe.encoder.encode(inputs)

    @torch.no_grad()
    def run_generate(self, name: str, case: dict) -> None:
        pipe, noise = self.pipe, self.recorded[f"{name}.noise"]
        images = self.images_of(case)
        guidance = Guidance(case["guidance_scale"], case.get("image_guidance_scale", 1.0))
        branches = guidance.num_branches(images is not None)
        request = check_request(case["captions"], images, case["negative_prompt"])
        condition = self.inputs(
            name, *branch_inputs(request.prompts, request.negatives, request.images, branches)
        )
        self.compare("conditions", condition.states, f"{name}.prompt_embeds")

        steps: list[int] = []
        arguments = {
            "negative_prompt": case["negative_prompt"],
            "guidance_scale": guidance.text,
            "image_guidance_scale": guidance.image,
            "num_inference_steps": case["steps"],
            "height": noise.shape[2] * pipe.vae_scale_factor,
            "width": noise.shape[3] * pipe.vae_scale_factor,
            "latents": noise,
            "callback_on_step_end": lambda _pipe, _i, t, _tensors: steps.append(int(t)) or {},
        }
        first = self.recorded[f"{name}.timesteps"][:1]
        rungs = pipe.prepare_rungs(condition, 1, noise.device)
        prediction = velocities(pipe.transformer, noise, first[0], rungs, branches)
        self.compare("first predictions", prediction, f"{name}.first_prediction")
        latents = pipe(case["captions"], images, output_type="latent", **arguments).images
        self.compare("timesteps", torch.tensor(steps, dtype=torch.float32), f"{name}.timesteps")
        self.compare("final latents", latents, f"{name}.latents")
        self.compare("images", pipe.decode(latents, "pt"), f"{name}.image")

    def run_train(self, name: str, case: dict) -> None:
        pipe = self.pipe
        trained = {"connector": pipe.connector, "transformer": pipe.transformer}
        for module in trained.values():
            module.requires_grad_(True)
            module.zero_grad()
        images = self.images_of(case)
        self.inputs(name, case["captions"], images)
        # the module that training runs, from what its data workers make
        trainee = LadderTrainee(LadderParts(**pipe.components))
        losses = trainee(
            trainee.encoder.tokenize(case["captions"], images),
            encode_latents(pipe.vae, self.recorded[f"{name}.target"]),
            noise=self.recorded[f"{name}.noise"],
            u=self.recorded[f"{name}.u"],
        )
        loss = losses.mean()
        loss.backward()
        self.compare("training loss (relative)", loss.detach(), f"{name}.loss")
        gradients = {"queries": pipe.connector.queries.grad}
        gradients |= {f"connector.{k}": p.grad for k, p in pipe.connector.layers.named_parameters()}
        gradients |= {f"transformer.{k}": p.grad for k, p in pipe.transformer.named_parameters()}
        for key in self.recorded:
            if key.startswith(f"{name}.grad."):
                self.compare("gradients (relative)", gradients[key.removeprefix(f"{name}.grad.")], key)
        norm = torch.stack([p.grad.norm() for p in pipe.transformer.parameters()]).norm()
        self.compare("gradients (relative)", norm, f"{name}.grad_norm.transformer")

    def run(self, name: str) -> None:
        case = self.cases[name]
        {"generate": self.run_generate, "train": self.run_train}[case["kind"]](name, case)


def failures(errors: dict[str, float]) -> list[str]:
    """Quantities whose error is beyond the tolerance."""
    return [quantity for quantity, error in errors.items() if not error <= TOLERANCES[quantity]]


def main(folder: str) -> int:
    parity = Parity(Path(folder))
    for name in parity.cases:
        parity.run(name)
        print(f"ran {name}", file=sys.stderr)
    print(f"{'quantity':28}{'worst error':>14}{'tolerance':>12}")
    bad = failures(parity.errors)
    for quantity, tolerance in TOLERANCES.items():
        if quantity in parity.errors:
            mark = "  FAILED" if quantity in bad else ""
            print(f"{quantity:28}{parity.errors[quantity]:14.2e}{tolerance:12.0e}{mark}")
    print(f"{len(parity.cases)} cases, {'FAILED: ' + ', '.join(bad) if bad else 'all within tolerance'}")
    return 1 if bad else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tests/parity.py DIR")
    sys.exit(main(sys.argv[1]))
