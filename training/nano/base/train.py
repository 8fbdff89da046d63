"""Train one of the base models: `python -m tbac_uniimage.training.nano.base.train RECIPE [key=value …]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .stage import load_stage_recipe


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    try:
        recipe = load_stage_recipe(options.recipe, options.overrides)
    except ValueError as error:
        sys.exit(str(error))
    if recipe.stage == "autoencoder":
        from .autoencoder import train
    elif recipe.stage == "vision":
        from .vision import train
    else:
        from .language import train
    train(recipe)


if __name__ == "__main__":
    main()
