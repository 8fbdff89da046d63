"""mmdet's Mask2Former checkpoint becomes a folder for transformers' class:
``python -m tbac_uniimage.training.evaluation.detectors.convert FILE.pth DIR``.

Names of mmdet 2.x on the left, those that the hub's checkpoints have on the right, which every version of
transformers reads. Swin's queries, keys and values are one matrix in mmdet, and so are those of the decoder's
self-attention; mmdet merges patches channel by channel, transformers patch by patch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...exits import Parser, parse, run_command

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig

Parts = Callable[[Tensor], Sequence[Tensor]]
ENCODER, PIXELS = "model.pixel_level_module.encoder", "model.pixel_level_module.decoder"
BLOCK = ENCODER + r".encoder.layers.\1.blocks.\2"
DECODER = "model.transformer_module.decoder"
QKV = ("query", "key", "value")
TABLE = "relative_position_bias_table"
BUFFERS = ("relative_position_index",)  # mmdet saves what transformers computes


def whole(tensor: Tensor) -> list[Tensor]:
    """The tensor as it is."""
    return [tensor]


def thirds(tensor: Tensor) -> list[Tensor]:
    """Queries, keys and values."""
    return list(tensor.chunk(3))


def patches(tensor: Tensor) -> list[Tensor]:
    """Inputs ``[…, channels * 4]`` that go (channel, row, column) in the order (column, row, channel)."""
    split = tensor.unflatten(-1, (-1, 2, 2))
    return [split.movedim(-3, -1).transpose(-3, -2).flatten(-3)]


# What mmdet calls it, what transformers calls it, a name for each part, and how it is taken apart.
STAGE, HEAD = r"backbone\.stages\.(\d+)\.", r"panoptic_head\."
OF_BLOCK, OF_PIXELS = STAGE + r"blocks\.(\d+)\.", HEAD + r"pixel_decoder\."
OF_ENCODER, OF_DECODER = (
    OF_PIXELS + r"encoder\.layers\.(\d+)\.",
    HEAD + r"transformer_decoder\.layers\.(\d+)\.",
)
LAYER, STEP = PIXELS + r".encoder.layers.\1", DECODER + r".layers.\1"
HIDDEN, OUT = r"ffns\.0\.layers\.0\.0", r"ffns\.0\.layers\.1"
MASKS = f"{DECODER}.mask_predictor.mask_embedder"
NAMES: tuple[tuple[str, tuple[str, ...], Parts], ...] = (
    (r"backbone\.patch_embed\.projection", (f"{ENCODER}.embeddings.patch_embeddings.projection",), whole),
    (r"backbone\.patch_embed\.norm", (f"{ENCODER}.embeddings.norm",), whole),
    (OF_BLOCK + "norm1", (f"{BLOCK}.layernorm_before",), whole),
    (OF_BLOCK + "norm2", (f"{BLOCK}.layernorm_after",), whole),
    (OF_BLOCK + r"attn\.w_msa\.qkv", tuple(f"{BLOCK}.attention.self.{part}" for part in QKV), thirds),
    (OF_BLOCK + r"attn\.w_msa\.proj", (f"{BLOCK}.attention.output.dense",), whole),
    (OF_BLOCK + rf"attn\.w_msa\.{TABLE}", (f"{BLOCK}.attention.self.{TABLE}",), whole),
    (OF_BLOCK + r"ffn\.layers\.0\.0", (f"{BLOCK}.intermediate.dense",), whole),
    (OF_BLOCK + r"ffn\.layers\.1", (f"{BLOCK}.output.dense",), whole),
    (STAGE + r"downsample\.(norm|reduction)", (ENCODER + r".encoder.layers.\1.downsample.\2",), patches),
    (r"backbone\.norm(\d)", (ENCODER + r".hidden_states_norms.stage\1",), whole),
    (OF_PIXELS + r"input_convs\.(\d+)\.conv", (PIXELS + r".input_projections.\1.0",), whole),
    (OF_PIXELS + r"input_convs\.(\d+)\.gn", (PIXELS + r".input_projections.\1.1",), whole),
    (OF_ENCODER + r"attentions\.0\.(\w+)", (LAYER + r".self_attn.\2",), whole),
    (OF_ENCODER + r"norms\.0", (f"{LAYER}.self_attn_layer_norm",), whole),
    (OF_ENCODER + r"norms\.1", (f"{LAYER}.final_layer_norm",), whole),
    (OF_ENCODER + HIDDEN, (f"{LAYER}.fc1",), whole),
    (OF_ENCODER + OUT, (f"{LAYER}.fc2",), whole),
    (OF_PIXELS + r"level_encoding\.weight", (f"{PIXELS}.level_embed",), whole),
    (OF_PIXELS + r"lateral_convs\.0\.conv", (f"{PIXELS}.adapter_1.0",), whole),
    (OF_PIXELS + r"lateral_convs\.0\.gn", (f"{PIXELS}.adapter_1.1",), whole),
    (OF_PIXELS + r"output_convs\.0\.conv", (f"{PIXELS}.layer_1.0",), whole),
    (OF_PIXELS + r"output_convs\.0\.gn", (f"{PIXELS}.layer_1.1",), whole),
    (OF_PIXELS + "mask_feature", (f"{PIXELS}.mask_projection",), whole),
    (OF_DECODER + r"attentions\.0\.attn\.(in_proj_\w+|out_proj)", (STEP + r".cross_attn.\2",), whole),
    (
        OF_DECODER + r"attentions\.1\.attn\.in_proj_(weight|bias)",
        tuple(STEP + rf".self_attn.{part}_proj.\2" for part in "qkv"),
        thirds,
    ),
    (OF_DECODER + r"attentions\.1\.attn\.out_proj", (f"{STEP}.self_attn.out_proj",), whole),
    (OF_DECODER + r"norms\.0", (f"{STEP}.cross_attn_layer_norm",), whole),
    (OF_DECODER + r"norms\.1", (f"{STEP}.self_attn_layer_norm",), whole),
    (OF_DECODER + r"norms\.2", (f"{STEP}.final_layer_norm",), whole),
    (OF_DECODER + HIDDEN, (f"{STEP}.fc1",), whole),
    (OF_DECODER + OUT, (f"{STEP}.fc2",), whole),
    (HEAD + r"transformer_decoder\.post_norm", (f"{DECODER}.layernorm",), whole),
    (HEAD + "query_embed", ("model.transformer_module.queries_embedder",), whole),
    (HEAD + "query_feat", ("model.transformer_module.queries_features",), whole),
    (HEAD + "level_embed", ("model.transformer_module.level_embed",), whole),
    (HEAD + "cls_embed", ("class_predictor",), whole),
    (HEAD + r"mask_embed\.0", (f"{MASKS}.0.0",), whole),
    (HEAD + r"mask_embed\.2", (f"{MASKS}.1.0",), whole),
    (HEAD + r"mask_embed\.4", (f"{MASKS}.2.0",), whole),
)
PATTERNS = [(re.compile(pattern + r"(\.weight|\.bias)?"), names, parts) for pattern, names, parts in NAMES]


def converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under transformers' names.

    Raises:
        ValueError: a tensor has no place; the checkpoint is of another model.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(BUFFERS):
            continue
        found = [(pattern.fullmatch(name), names, parts) for pattern, names, parts in PATTERNS]
        found = [entry for entry in found if entry[0]]
        if not found:
            raise ValueError(f"{name} is no tensor of mmdet's Mask2Former with a Swin backbone.")
        match, names, parts = found[0]
        ending = match[match.re.groups] or ""
        for target, part in zip(names, parts(tensor), strict=True):
            target = re.sub(r"stage(\d)", lambda m: f"stage{int(m[1]) + 1}", match.expand(target))
            result[target + ending] = part.contiguous()
    return result


def config_of(state: Mapping[str, Tensor]) -> Mask2FormerConfig:
    """The configuration that fits the tensors of a checkpoint. Heads are 32 wide in it, as published."""
    from transformers import Mask2FormerConfig, SwinConfig

    def count(pattern: str) -> int:
        return 1 + max(int(m[1]) for name in state if (m := re.match(pattern, name)))

    tables = "backbone.stages.{}.blocks.0.attn.w_msa." + TABLE
    window = (round(len(state[tables.format(0)]) ** 0.5) + 1) // 2
    stages = count(r"backbone\.stages\.(\d+)\.")
    head = "panoptic_head."
    features, masks = (state[f"{head}pixel_decoder.mask_feature.weight"].shape[i] for i in (1, 0))
    encoder = f"{head}pixel_decoder.encoder.layers.0"
    offsets = len(state[f"{encoder}.attentions.0.sampling_offsets.bias"])
    hidden = state[f"{head}query_feat.weight"].shape[1]
    swin = SwinConfig(
        embed_dim=len(state["backbone.patch_embed.projection.bias"]),
        depths=[count(rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in range(stages)],
        num_heads=[state[tables.format(i)].shape[1] for i in range(stages)],
        window_size=window,
        drop_path_rate=0.0,
        out_features=[f"stage{i + 1}" for i in range(stages)],
    )
    return Mask2FormerConfig(
        backbone_config=swin,
        feature_size=features,
        mask_feature_size=masks,
        hidden_dim=hidden,
        encoder_feedforward_dim=len(state[f"{encoder}.ffns.0.layers.0.0.bias"]),
        encoder_layers=count(r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\."),
        num_attention_heads=offsets // (3 * 4 * 2),  # levels, points, coordinates
        dim_feedforward=len(state[f"{head}transformer_decoder.layers.0.ffns.0.layers.0.0.bias"]),
        decoder_layers=count(r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.") + 1,
        num_queries=len(state[f"{head}query_feat.weight"]),
        num_labels=len(state[f"{head}cls_embed.bias"]) - 1,
        dropout=0.0,
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file; nothing in it is run. Raises ValueError."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"There is no checkpoint at {path}; check the path.") from error
    except Exception as error:  # its reader stumbles over other bytes in any way
        raise ValueError(f"{path} is no checkpoint of tensors alone; nothing else is read.") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} holds no weights under state_dict.")
    return state


def convert(path: Path, target: Path) -> None:
    """Write a model folder, safetensors alone, that transformers finds whole.

    Raises:
        ValueError: the checkpoint is of another model, or ``target`` is there already.
    """
    from safetensors.torch import save_file
    from transformers import Mask2FormerForUniversalSegmentation

    from ....core.checkpoints.export import complete_folder

    state = read_checkpoint(path)
    tensors = converted(state)
    try:
        config = config_of(state)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} lacks tensors of mmdet's Mask2Former ({error}).") from error
    with complete_folder(target) as unfinished:
        unfinished.mkdir(parents=True, exist_ok=True)
        save_file(tensors, unfinished / "model.safetensors", metadata={"format": "pt"})
        config.architectures = [Mask2FormerForUniversalSegmentation.__name__]
        config.save_pretrained(unfinished)
        complete(unfinished)


def complete(folder: Path) -> None:
    """Write a folder's model anew, with what mmdet does not have because nothing uses it.

    Raises:
        ValueError: another tensor of the model is missing, or there is one too many.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    model, found = Mask2FormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True)
    # Swin's last norm is not used by the backbone; the other is a weight of the loss
    unused = ("swin.layernorm", "encoder.layernorm", "criterion.empty_weight")
    lacks = [name for name in found["missing_keys"] if not any(part in name for part in unused)]
    wrong = [*lacks, *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise ValueError(f"The checkpoint does not fit transformers' Mask2Former: {wrong[0]} is wrong.")
    model.save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a checkpoint. Returns the exit code."""

    def command() -> None:
        parser = Parser(prog="python -m tbac_uniimage.training.evaluation.detectors.convert")
        add_arguments(parser)
        options = parse(parser, sys.argv[1:] if argv is None else list(map(str, argv)))
        convert(options.checkpoint, options.target)
        print(options.target)

    return run_command(command)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two paths."""
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="the .pth of mmdet 2.x")
    parser.add_argument("target", type=Path, metavar="DIR", help="a new folder")


if __name__ == "__main__":
    sys.exit(main())
