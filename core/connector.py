"""What joins the two frozen worlds: the learnable queries and the connector (paper section 3.1)."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.normalization import RMSNorm
from torch import nn


class LadderConnector(ModelMixin, ConfigMixin):
    """Queries that read the MLLM, and the two-layer connector that all rungs share.

    Args:
        num_queries: learnable vectors appended to every prompt.
        mllm_dim: width of the MLLM.
        caption_dim: width that the diffusion transformer expects (its ``caption_channels``).
        num_reserved: rows that follow the queries in the embedding matrix of a released checkpoint. The
            model never reads them; they are kept so that a checkpoint is written back whole.
    """

    @register_to_config
    def __init__(self, num_queries: int, mllm_dim: int, caption_dim: int, num_reserved: int = 0) -> None:
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

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map MLLM states ``[..., mllm_dim]`` to caption states ``[..., caption_dim]``."""
        return self.layers(hidden_states)
