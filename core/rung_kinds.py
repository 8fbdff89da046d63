"""Which states of the MLLM the blocks of the transformer are told; `connector` says what each kind means."""

from __future__ import annotations

from typing import Literal, get_args

RungKind = Literal["ladder", "last", "final", "reversed", "mixed"]
RUNGS: tuple[RungKind, ...] = get_args(RungKind)
