"""What joins the two frozen worlds: the learnable queries and the connector (paper section 3.1)."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.normalization import RMSNorm
from torch import nn

from .rung_kinds import RUNGS, RungKind


class LadderConnector(ModelMixin, ConfigMixin):
    """Queries that read the MLLM, and the two-layer connector that all rungs share.

    Of an MLLM with L layers, block i of the N of the diffusion transformer (both counted from 0) is told, by
    ``rungs``:

    - ``ladder``, the paper's: the input of layer L-N+i;
    - ``last``: the input of layer L-1, as every other block;
    - ``final``: the state after the last layer and the final norm, as every other block;
    - ``reversed``: the input of layer L-1-i;
    - ``mixed``: the mean of the inputs of layers L-N … L-1 with weights of its own, the softmax of
      ``layer_logits[i]``, which are learned and start equal.

    Args:
        num_queries: learnable vectors appended to every prompt.
        mllm_dim: width of the MLLM.
        caption_dim: width that the diffusion transformer expects (its ``caption_channels``).
        num_reserved: rows that follow the queries in the embedding matrix of a released checkpoint. The
            model never reads them; they are kept so that a checkpoint is written back whole.
        rungs: one of :data:`.rung_kinds.RUNGS`.
        num_blocks: N, which ``mixed`` needs to know and the others forget.

    Raises:
        ValueError: unknown ``rungs``, or ``mixed`` without a number of blocks.
    """

    @register_to_config
    def __init__(
        self,
        num_queries: int,
        mllm_dim: int,
        caption_dim: int,
        num_reserved: int = 0,
        rungs: RungKind = "ladder",
        num_blocks: int | None = None,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, mllm_dim) * mllm_dim**-0.5)
        self.reserved_rows = nn.Parameter(torch.zeros(num_reserved, mllm_dim), requires_grad=False)
        self.layers = nn.Sequential(
            nn.Linear(mllm_dim, caption_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(caption_dim, caption_dim),
            RMSNorm(caption_dim, eps=1e-5, elementwise_affine=True),
        )
        nn.init.constant_(self.layers[3].weight, 5.5**0.5)
        self.choose_rungs(rungs, num_blocks)

    def choose_rungs(self, rungs: RungKind, num_blocks: int | None = None) -> None:
        """Tell the blocks other states from now on; see the class. Learned weights start anew."""
        if rungs not in RUNGS:
            raise ValueError(f"rungs is {rungs!r}; choose {', '.join(RUNGS)}.")
        if rungs == "mixed" and not num_blocks:
            raise ValueError("rungs is 'mixed', which learns weights for every block; give num_blocks.")
        num_blocks = num_blocks if rungs == "mixed" else None
        self.register_to_config(rungs=rungs, num_blocks=num_blocks)
        logits = nn.Parameter(self.queries.new_zeros(num_blocks, num_blocks)) if num_blocks else None
        self.register_parameter("layer_logits", logits)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What every block is told.

        Args:
            hidden_states: MLLM states ``[blocks, ..., mllm_dim]``, the inputs of its last layers in their
                order; for ``final`` the final state, once for every block.

        Returns:
            Caption states ``[blocks, ..., caption_dim]``.
        """
        match self.config.rungs:
            case "last" | "final":
                told = self.layers(hidden_states[-1])
                return told.expand(len(hidden_states), *told.shape)
            case "reversed":
                hidden_states = hidden_states.flip(0)
            case "mixed":
                weights = self.layer_logits.softmax(-1).to(hidden_states)
                hidden_states = torch.einsum("il,l...->i...", weights, hidden_states)
        return self.layers(hidden_states)
