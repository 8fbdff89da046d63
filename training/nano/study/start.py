"""What a run of the study starts from: frozen parts of a model; queries, connector and transformer anew.

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


def untrained(parts: LadderParts, seed: int, keep_queries: bool = False) -> LadderParts:
    """The model with a transformer and a connector of the same sizes and first values of a seed.

    Args:
        parts: the model.
        seed: same seed, same values.
        keep_queries: the model's own queries instead of new ones, which look like tokens at first. They know
            their task from the start, but they learned it through the ladder.
    """
    old = parts.connector
    text = parts.mllm.get_input_embeddings().weight[: len(parts.tokenizer)]
    connector = new_connector(text.float(), len(old.queries), old.config.caption_dim, seed)
    if keep_queries:
        connector.queries.data = old.queries.detach().float().clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = LadderTransformer2DModel.from_config(parts.transformer.config)
    return replace(parts, connector=connector, transformer=place(transformer, "cpu", torch.float32).eval())


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a trained model, which gives the frozen parts")
    parser.add_argument("target", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the new parts")
    parser.add_argument("--keep-queries", action="store_true", help="do not make new queries")
    options = parser.parse_args()
    try:
        parts = untrained(load_parts(options.model), options.seed, options.keep_queries)
        LadderPipeline(**vars(parts)).save_pretrained(options.target)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
