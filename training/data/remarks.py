"""What is said of data sets before they are trained on: masks that count, texts that are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.prompts import encode_text
from .lengths import is_cut

if TYPE_CHECKING:
    from ...core.checkpoints import LadderParts
    from .samples import MicroBatches
    from .sets import TrainSet

LOOKED_AT = 2000  # texts of a bucket whose length the dry run counts


def masked_sets(dataset: MicroBatches) -> list[str]:
    """A line about the masks of every data set that has any; few-step distillation knows no targets."""
    lines = []
    if dataset.guided:
        return lines
    for data in dataset.sets:
        index, count = data.index, data.index.manifest["masks"]
        if count:
            how = "count where their mask is white" if index.masks else "have masks, which are left out"
            lines.append(f"{index.name}: {count:,} of {len(index):,} samples {how} (train.masked_loss).")
    return lines


def cut_texts(data: TrainSet, parts: LadderParts) -> str:
    """A line about the texts of a data set that the model cuts, or ""; some spread over it are looked at."""
    rows = [int(row) for part in data.rows for row in part[:: max(1, len(part) // LOOKED_AT)]]
    longest = (max(data.index[row].texts, key=len) for row in rows)
    limit, tokenizer = parts.max_text_tokens, parts.tokenizer
    if tokenizer is None:
        count, how = sum(is_cut(text, None, limit) for text in longest), ", by estimate"
    else:  # no token is shorter than a byte
        long = (text for text in longest if len(text.encode()) > limit)
        count, how = sum(len(encode_text(tokenizer, text)) > limit for text in long), ""
    if not count:
        return ""
    return f"{data.name}: {count:,} of {len(rows):,} texts looked at are cut at {limit} tokens{how}."
