"""Where the tokenizer of a checkpoint is looked for, and which are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tbac_uniimage.core.checkpoints import (
    load_parts,
    released_parts_on_meta,
    tokenizers,
)
from tiny_checkpoint import BASES, CHECKPOINT, QWEN, SANA


@pytest.fixture
def alone(monkeypatch) -> None:
    """No ComfyUI and no hub."""
    monkeypatch.setattr(tokenizers, "comfyui_tokenizer_dir", lambda: None)
    monkeypatch.setattr(
        tokenizers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: (_ for _ in ()).throw(OSError())
    )


def copy_tokenizer(target: Path, names=("vocab.json", "merges.txt", "tokenizer_config.json")) -> Path:
    target.mkdir(parents=True)
    for name in names:
        shutil.copy(QWEN / name, target / name)
    return target


def tiny_without_tokenizer(tmp_path: Path) -> Path:
    """The tiny Qwen2.5-VL folder with nothing but its configuration."""
    (tmp_path / "base").mkdir()
    shutil.copy(QWEN / "config.json", tmp_path / "base" / "config.json")
    return tmp_path / "base"


def test_no_tokenizer_anywhere(tmp_path, alone):
    with pytest.raises(ValueError, match="give tokenizer_dir, or set COMFYUI_PATH"):
        load_parts(CHECKPOINT, mllm_dir=tiny_without_tokenizer(tmp_path), sana_dir=SANA)


@pytest.mark.parametrize("place", ["folder", "tokenizer_dir", "comfyui"])
def test_tokenizer_is_found(tmp_path, folder, parts, monkeypatch, place):
    base = tiny_without_tokenizer(tmp_path)
    options = {}
    if place == "folder":
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            shutil.copy(QWEN / name, folder / name)
    elif place == "tokenizer_dir":
        options["tokenizer_dir"] = copy_tokenizer(tmp_path / "tokens")
    else:
        copy_tokenizer(tmp_path / "ComfyUI" / "comfy" / "text_encoders" / "qwen25_tokenizer")
        monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "ComfyUI"))
    found = load_parts(folder, mllm_dir=base, sana_dir=SANA, **options).tokenizer
    text = "a red cat\n<|im_end|> 42"
    assert found.get_vocab() == parts.tokenizer.get_vocab()
    assert found(text)["input_ids"] == parts.tokenizer(text)["input_ids"]


def test_tokenizer_from_the_hub_cache(tmp_path, parts, alone, monkeypatch):
    asked = []

    def from_pretrained(name, local_files_only=False):
        asked.append((name, local_files_only))
        if local_files_only:
            raise OSError("not in the cache")
        return parts.tokenizer

    monkeypatch.setattr(tokenizers.AutoTokenizer, "from_pretrained", from_pretrained)
    loaded = load_parts(CHECKPOINT, mllm_dir=tiny_without_tokenizer(tmp_path), sana_dir=SANA)
    assert loaded.tokenizer is parts.tokenizer
    assert asked == [("Qwen/Qwen2.5-VL-3B-Instruct", True), ("Qwen/Qwen2.5-VL-3B-Instruct", False)]


def test_tokenizer_of_another_model(tmp_path, qwen_tokenizer):
    base = tiny_without_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"<\|image_pad\|> is token 151655, the MLLM's is 432 of 448"):
        load_parts(CHECKPOINT, mllm_dir=base, sana_dir=SANA, tokenizer_dir=qwen_tokenizer)
    content = json.loads((QWEN / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = [t for t in content["added_tokens"] if "vision" not in t["content"]]
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"has no <\|vision_start\|>, <\|vision_end\|>; a tokenizer of Qwen2.5"
    ):
        load_parts(CHECKPOINT, mllm_dir=base, sana_dir=SANA, tokenizer_dir=tmp_path / "tokens")
    with pytest.raises(ValueError, match="holds no tokenizer.json"):
        load_parts(CHECKPOINT, tokenizer_dir=SANA, **BASES)


@pytest.mark.comfy
def test_comfyui_has_the_tokenizer_of_the_released_model(comfy_tree, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfy_tree))
    config = released_parts_on_meta().mllm.config
    tokenizer = tokenizers.find_tokenizer(config, [])
    names = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|>".split()
    ids = [151643, 151644, 151645, 151652, 151653, 151655]
    assert tokenizer.convert_tokens_to_ids(names) == ids
    assert tokenizer.pad_token_id == 151643
    assert tokenizer("A cat, 3 dogs.")["input_ids"] == [32, 8251, 11, 220, 18, 12590, 13]
