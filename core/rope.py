"""Multimodal rotary positions of a prompt (Qwen2-VL, arXiv 2409.12191, section 2.1).

transformers computes them too, but some versions (5.3, 5.4) wrongly for still images, and a wrong position
shows nowhere except in the picture.
"""

from __future__ import annotations

import torch


def rope_positions(
    ids: torch.Tensor,
    mask: torch.Tensor,
    image_token: int,
    image_grid_thw: torch.Tensor | None,
    merge_size: int,
) -> torch.Tensor:
    """Positions along time, height and width.

    Text counts on along all three axes. An image stands still in time, its merged patches count along height
    and width, and the text after it goes on behind its longer side.

    Args:
        ids: token ids ``[batch, length]``.
        mask: ``[batch, length]``, 1 = token, 0 = padding, whose positions are 0.
        image_token: id of the placeholder of merged vision tokens.
        image_grid_thw: ``[images, 3]``, patches of every image along time (1), height and width.
        merge_size: patches that become one token, along each side.

    Returns:
        int64 ``[3, batch, length]`` on the device of ``ids``.
    """
    grids = iter([] if image_grid_thw is None else (image_grid_thw // merge_size).tolist())
    positions = torch.zeros(3, *ids.shape, dtype=torch.long)
    for row, (row_ids, row_mask) in enumerate(zip(ids.cpu(), mask.cpu().bool(), strict=True)):
        tokens = (row_ids[row_mask] == image_token).tolist()
        parts: list[torch.Tensor] = []
        start = at = 0
        while at < len(tokens):
            if tokens[at]:
                _, height, width = next(grids)
                grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
                still = torch.zeros(1, height, width, dtype=torch.long)
                parts.append(start + torch.cat([still, grid]).flatten(1))
                start, at = start + max(height, width), at + height * width
            else:
                end = tokens.index(True, at) if True in tokens[at:] else len(tokens)
                parts.append(torch.arange(start, start + end - at).expand(3, -1))
                start, at = start + end - at, end
        positions[:, row, row_mask] = torch.cat(parts, dim=1)
    return positions.to(ids.device)
