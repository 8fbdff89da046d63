"""A prompt of the released size: control tokens looked up one by one, against a copy of the vocabulary each.

    python benchmarks/prompt.py [--repeats N]

Every sample of training and every picture needs one. Prints medians of the CPU time of one thread, both ways
in turns in one process and their results compared, on a made-up vocabulary of Qwen2.5-VL's 151,665 entries.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest.mock import patch

from tbac_uniimage.core import prompts
from tbac_uniimage.core.checkpoints.tokenizers import CONTROL_TOKENS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

ENTRIES = 151_665
TEXT = "a red fox in the snow beside a frozen lake, early light, shallow depth of field, " * 4


def make_tokenizer() -> PreTrainedTokenizerBase:
    """One of the right size that spells every word."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    rest = (f"<{number}>" for number in range(ENTRIES - len(CONTROL_TOKENS) - len(letters)))
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*letters, *rest])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(list(CONTROL_TOKENS))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def copied(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The naive way."""
    return tokenizer.get_vocab()[token]


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    tokenizer = make_tokenizer()
    ways = {"a copy of the vocabulary": copied, "one by one": prompts.control_token}
    times: dict[str, list[float]] = {name: [] for name in ways}
    built: list[list[int]] = []
    for _ in range(parser.parse_args().repeats):
        for name, look_up in ways.items():
            with patch.object(prompts, "control_token", look_up):
                started = time.process_time()
                built.append(prompts.build_prompt(tokenizer, TEXT, [256], 64, len(tokenizer)))
                times[name].append(time.process_time() - started)
    assert all(ids == built[0] for ids in built)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, seconds in medians.items():
        print(f"{name}: {1000 * seconds:.2f} ms a prompt of {len(built[0])} tokens")
    slow, fast = medians.values()
    print(f"{slow / fast:.0f} times faster")


if __name__ == "__main__":
    main()
