"""The base models and an untrained ladder as a pipeline folder, which stage 1 starts from.

python -m tbac_uniimage.training.nano.base.assemble OUT --autoencoder RUN --language RUN --tokenizer DIR
python -m tbac_uniimage.training.nano.base.assemble OUT --autoencoder RUN --model DIR

The second gives a trained model another autoencoder: what of its transformer fits the new latents stays.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderDC

from ....core.checkpoints import load_parts
from ....core.pipeline import LadderPipeline
from ....core.schedulers import recipe_scheduler
from ....core.transformer import LadderTransformer2DModel
from . import autoencoder, mllm, stage
from .language import Tasks
from .tokenizer import MAX_TEXT_TOKENS, SYSTEM_PROMPT

NORMALISED_ON = 512  # pictures


def build_transformer(channels: int) -> LadderTransformer2DModel:
    """The untrained diffusion transformer: six blocks of width 192 on 8 x 8 latents of so many channels."""
    return LadderTransformer2DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=6,
        attention_head_dim=32,
        num_layers=mllm.RUNGS,
        num_cross_attention_heads=3,
        cross_attention_head_dim=64,
        cross_attention_dim=mllm.WIDTH,
        caption_channels=mllm.WIDTH,
        mlp_ratio=2.5,
        sample_size=autoencoder.SIDE,
        patch_size=1,
    )


def load_vae(run: str | Path) -> AutoencoderDC:
    """The trained autoencoder, of whatever size its pictures are, with its latents normalised."""
    size = autoencoder.trained_size(run)
    vae = autoencoder.build(size)
    stage.load_stage(run, {"vae": vae})
    autoencoder.normalise_latents(vae, autoencoder.draw_batch("normalise", NORMALISED_ON, size))
    return vae.eval()


def assemble(
    vae_run: str | Path, language_run: str | Path, tokenizer: str | Path, seed: int
) -> LadderPipeline:
    """Pipeline of the trained base models, an untrained connector and an untrained transformer, float32.

    Raises:
        ValueError: one of them was not trained yet.
    """
    torch.manual_seed(seed)
    vae = load_vae(vae_run)
    tasks = Tasks(mllm.Prompter(mllm.load_tokenizer(tokenizer)))
    stage.load_stage(language_run, tasks.modules)
    transformer = build_transformer(vae.config.latent_channels)
    for part in (vae, tasks.model, tasks.connector, transformer):
        part.to(memory_format=torch.contiguous_format).eval()
    return LadderPipeline(
        mllm=tasks.model,
        tokenizer=tasks.prompter.tokenizer,
        image_processor=tasks.prompter.processor,
        connector=tasks.connector,
        transformer=transformer,
        vae=vae,
        scheduler=recipe_scheduler(),
        system_prompt=SYSTEM_PROMPT,
        max_text_tokens=MAX_TEXT_TOKENS,
    )


def with_autoencoder(vae_run: str | Path, model: str | Path, seed: int) -> LadderPipeline:
    """A trained model for the latents of another trained autoencoder, float32.

    MLLM, queries and connector stay, and so does all of the transformer but its first and last layer where
    the number of channels is another one.

    Raises:
        ValueError: no such model, or the autoencoder was not trained yet.
    """
    parts = load_parts(model, dtype=torch.float32)
    parts.vae = load_vae(vae_run).to(memory_format=torch.contiguous_format)
    torch.manual_seed(seed)
    trained, transformer = parts.transformer, build_transformer(parts.vae.config.latent_channels)
    transformer.read_source(trained.config.source_latents)
    transformer.read_text(trained.config.text_states)
    shapes = {name: tensor.shape for name, tensor in transformer.state_dict().items()}
    fits = {name: t for name, t in trained.state_dict().items() if t.shape == shapes[name]}
    transformer.load_state_dict(fits, strict=False)
    parts.transformer = transformer.eval()
    return LadderPipeline(**vars(parts))


def main() -> None:
    """Write the folder; one that is there is replaced as a whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("--autoencoder", required=True, help="run of the autoencoder")
    parser.add_argument("--language", help="run of the language model")
    parser.add_argument("--tokenizer", help="folder of the tokenizer")
    parser.add_argument("--model", help="folder of a trained model, in place of these two")
    parser.add_argument("--seed", type=int, default=0, help="of the untrained parts")
    options = parser.parse_args()
    apart = (options.language, options.tokenizer)
    if not (all(apart) and not options.model or options.model and not any(apart)):
        parser.error("give --model, or --language and --tokenizer")
    try:
        if options.model:
            pipeline = with_autoencoder(options.autoencoder, options.model, options.seed)
        else:
            pipeline = assemble(options.autoencoder, options.language, options.tokenizer, options.seed)
    except ValueError as error:
        sys.exit(str(error))
    partial = options.target.with_name(options.target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    if options.target.exists():
        shutil.rmtree(options.target)
    partial.rename(options.target)


if __name__ == "__main__":
    main()
