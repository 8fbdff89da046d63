"""What a run of the study starts from: a generator that can draw, and has not read the MLLM yet.

As in the paper the transformer comes trained; what of it reads the condition, and the connector, begin anew.
The queries are the model's own: new ones need more samples to say anything than a run has. They went through
the model's ladder once, which may speak for the ladder.

python -m tbac_uniimage.training.nano.study.start MODEL OUT --seed N
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ....core.checkpoints import LadderParts, load_parts
from ....core.checkpoints.assemble import new_connector
from ....core.checkpoints.parts import place
from ....core.pipeline import LadderPipeline
from ....core.transformer import LadderTransformer2DModel

READS_CONDITION = ("caption_norm", "caption_projection", "attn2")  # parts of names in the transformer


def untrained(parts: LadderParts, seed: int) -> LadderParts:
    """The model with a connector, cross-attention and caption projection of the same sizes, values of a seed.

    Args:
        parts: the model.
        seed: same seed, same values.
    """
    old = parts.connector
    text = parts.mllm.get_input_embeddings().weight[: len(parts.tokenizer)]
    connector = new_connector(text.float(), len(old.queries), old.config.caption_dim, seed)
    connector.queries.data = old.queries.detach().float().clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = LadderTransformer2DModel.from_config(parts.transformer.config)
    trained = parts.transformer.state_dict().items()
    body = {name: tensor for name, tensor in trained if not any(part in name for part in READS_CONDITION)}
    transformer.load_state_dict(transformer.state_dict() | body)
    return replace(parts, connector=connector, transformer=place(transformer, "cpu", torch.float32).eval())


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a trained model")
    parser.add_argument("target", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the new parts")
    options = parser.parse_args()
    try:
        parts = untrained(load_parts(options.model), options.seed)
        LadderPipeline(**vars(parts)).save_pretrained(options.target)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
