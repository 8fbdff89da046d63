"""New models made from base models, and the released model's size."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tbac_uniimage.core.checkpoints import (
    assemble,
    count_parameters,
    export,
    load_parts,
    released_parts_on_meta,
    save_released,
)
from tiny_checkpoint import CHECKPOINT, MODULES, QWEN, SANA, assert_same
from transformers import Qwen2_5_VLForConditionalGeneration


def test_assemble_joins_the_base_models(tmp_path):
    fresh = assemble(QWEN, SANA, num_queries=5, seed=3)
    qwen = Qwen2_5_VLForConditionalGeneration.from_pretrained(QWEN).state_dict()
    assert all(torch.equal(tensor, qwen[name]) for name, tensor in fresh.mllm.state_dict().items())
    for part in ("transformer", "vae"):
        stored = load_file(SANA / part / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(t, stored[n]) for n, t in getattr(fresh, part).state_dict().items())
    assert fresh.connector.queries.shape == (5, 64) and fresh.connector.layers[2].weight.shape == (48, 48)
    assert_same(assemble(QWEN, SANA, num_queries=5, seed=3), fresh)
    other = assemble(QWEN, SANA, num_queries=5, seed=4)
    assert not torch.equal(other.connector.queries, fresh.connector.queries)
    assert not torch.equal(other.connector.layers[0].weight, fresh.connector.layers[0].weight)
    assert_same(load_parts(save_released(fresh, tmp_path / "fresh")), fresh)


def test_new_queries_look_like_tokens():
    fresh = assemble(QWEN, SANA, num_queries=4000, dtype="bfloat16")
    assert fresh.connector.queries.dtype == torch.bfloat16
    rows = fresh.mllm.get_input_embeddings().weight[: len(fresh.tokenizer)].float()
    queries = fresh.connector.queries.detach().float()
    assert torch.allclose(queries.mean(0), rows.mean(0), atol=5 * rows.std().item() / 4000**0.5)
    assert torch.allclose(queries.std(0), rows.std(0), rtol=0.1)


def test_assemble_refuses_what_does_not_fit(tmp_path):
    def refused(match: str, qwen: Path = QWEN, sana: Path = SANA, **options) -> None:
        with pytest.raises(ValueError, match=match):
            assemble(qwen, sana, **options)

    refused("num_queries is 0", num_queries=0)
    refused("config.json is not there", qwen=tmp_path)
    refused("holds a tbacuniimage; as mllm a qwen2_5_vl is needed", qwen=CHECKPOINT)
    refused(r"transformer.config\.json is not there", sana=QWEN)
    shallow, wide = tmp_path / "shallow", tmp_path / "wide"
    shutil.copytree(QWEN, shallow)
    config = json.loads((QWEN / "config.json").read_text()) | {"num_hidden_layers": 3, "max_window_layers": 3}
    (shallow / "config.json").write_text(json.dumps(config))
    refused("The MLLM has 3 layers and SANA 4 blocks", qwen=shallow)
    shutil.copytree(SANA, wide)
    config = json.loads((SANA / "vae" / "config.json").read_text()) | {"latent_channels": 16}
    (wide / "vae" / "config.json").write_text(json.dumps(config))
    refused("latents of 16 channels and SANA takes 8", sana=wide)


def test_released_model_has_the_published_size():
    parts = released_parts_on_meta()
    assert all(p.is_meta for part in MODULES for p in getattr(parts, part).parameters())
    assert count_parameters(parts) == {
        "mllm": 3_754_622_976,
        "connector": 10_033_920,
        "queries": 64 * 2048,
        "reserved rows": 2 * 2048,
        "transformer": 1_604_462_752,
        "vae": 312_250_275,
    }
    assert sum(count_parameters(parts).values()) == 5_681_505_091


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_full_size_checkpoint_is_held_once(tmp_path, qwen_tokenizer):
    """A sparse file of the released size: no weight may be copied, or 11 GB of memory would be touched."""
    parts = released_parts_on_meta()
    names = export.released_tensors(parts)
    offset, header = 0, {}
    for name, tensor in names.items():
        end = offset + tensor.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) // 1024

    before = anonymous()
    loaded = load_parts(path, tokenizer_dir=qwen_tokenizer)
    assert anonymous() - before < 300, "megabytes of weights were copied"
    assert sum(count_parameters(loaded).values()) == 5_681_505_091
    assert loaded.connector.config.num_queries == 64 and loaded.connector.config.num_reserved == 2
    assert loaded.tokenizer.convert_tokens_to_ids("<|image_pad|>") == 151655
