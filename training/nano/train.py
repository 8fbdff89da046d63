"""Train the nano model: `python -m tbac_uniimage.training.nano.train --stage all`, or one stage at a time.

Stages in order, each going on where it was interrupted: autoencoder; vision and mllm (`naming`); drawing;
connector and ladder; detector, which only the score needs. Autoencoder and drawing may run beside vision and
mllm, as they need nothing of each other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import sprites

RUNS = Path(__file__).resolve().parents[2] / "runs" / "nano"
MINUTES = {  # on one core, and on two for the ladder
    "autoencoder": 23.0,
    "vision": 4.5,
    "mllm": 40.0,
    "drawing": 40.0,
    "connector": 3.0,
    "ladder": 35.0,
    "detector": 5.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=["all", *MINUTES], default="all")
    parser.add_argument("--minutes", type=float, help="budget of each stage in place of its own")
    parser.add_argument("--folder", type=Path, default=RUNS, help="where the stages keep their state")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sprites.load()  # a missing atlas is said before the libraries load

    from . import autoencoder, detector, drawing, ladder, naming

    trainers = {
        "autoencoder": autoencoder.train,
        "vision": naming.train_vision,
        "mllm": naming.train,
        "drawing": drawing.train,
        "connector": ladder.train_connector,
        "ladder": ladder.train,
        "detector": detector.train,
    }
    for stage in MINUTES if options.stage == "all" else [options.stage]:
        trainers[stage](options.folder, options.minutes or MINUTES[stage], options.threads, options.seed)


if __name__ == "__main__":
    main()
