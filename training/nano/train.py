"""Train the nano model: `python -m tbac_uniimage.training.nano.train --stage all`, or one stage at a time."""

from __future__ import annotations

import argparse
from pathlib import Path

RUNS = Path(__file__).resolve().parents[2] / "runs" / "nano"
MINUTES = {
    "autoencoder": 22.0,
    "vision": 4.0,
    "mllm": 20.0,
    "drawing": 20.0,
    "connector": 3.0,
    "ladder": 60.0,
    "detector": 6.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=["all", *MINUTES], default="all")
    parser.add_argument("--minutes", type=float, help="budget of the stage instead of its own default")
    parser.add_argument(
        "--folder", type=Path, default=RUNS, help="where states are kept; a stage goes on from there"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for stage in MINUTES if options.stage == "all" else [options.stage]:
        minutes = options.minutes or MINUTES[stage]
        if stage == "autoencoder":
            from .autoencoder import train
        elif stage == "vision":
            from .naming import train_vision as train
        elif stage == "mllm":
            from .naming import train
        elif stage == "drawing":
            from .drawing import train
        elif stage == "connector":
            from .ladder import train_connector as train
        elif stage == "ladder":
            from .ladder import train
        elif stage == "detector":
            from .detector import train
        train(options.folder, minutes, options.threads, options.seed)


if __name__ == "__main__":
    main()
