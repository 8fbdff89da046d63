"""The script that proves the released size: its checkpoint, commands and measures, at tiny size."""

from __future__ import annotations

import json
import subprocess
import sys

import full_size
import full_size_work
import process_costs
import pytest
import torch
from random_checkpoint import write_random
from tbac_uniimage.core.checkpoints import load_parts, released_parts_on_meta
from tbac_uniimage.core.checkpoints.released import base_configs
from tbac_uniimage.core.checkpoints.tokenizers import read_tokenizer
from tiny_checkpoint import BASES, QWEN, SANA


@pytest.fixture
def trial(tmp_path) -> full_size.Trial:
    return full_size.Trial(tmp_path / "model", tmp_path / "scratch", steps=3, device="cpu")


@pytest.mark.parametrize("as_published", [True, False])
def test_a_random_checkpoint_is_read_like_any_other(tmp_path, as_published):
    parts = released_parts_on_meta(base_configs({}, QWEN, SANA))
    parts.tokenizer = read_tokenizer(QWEN, parts.mllm.config)
    folder = tmp_path / "model"
    write_random(parts, folder, as_published=as_published, max_shard_size="700KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 3
    assert ("base_configs" in json.loads((folder / "config.json").read_text())) != as_published
    found = load_parts(folder, **(BASES if as_published else {}))
    for name in ("mllm", "connector", "transformer", "vae"):
        values = {key: tensor for key, tensor in getattr(found, name).state_dict().items()}
        assert {tensor.dtype for tensor in values.values()} == {torch.bfloat16}
        assert values.keys() == getattr(parts, name).state_dict().keys()
    weight = found.transformer.transformer_blocks[0].attn1.to_q.weight
    assert 0.015 < weight.float().std() < 0.025 and abs(weight.float().mean()) < 0.005
    assert torch.equal(found.mllm.model.language_model.norm.weight, torch.ones_like(weight[0]))
    with pytest.raises(ValueError, match="is there already"):
        write_random(parts, folder)


def test_every_command_of_it_is_understood(trial):
    from tbac_uniimage.shell.main import make_parser
    from tbac_uniimage.training.recipe.recipe import load_recipe

    items = full_size.commands(trial)
    shell = [words[3:] for item in items.values() for words in item if words[1] == "-c"]
    assert {words[0] for words in shell} == {"info", "generate", "edit", "ask", "data", "train", "export"}
    for words in shell:
        options = make_parser().parse_args(words)
        if words[0] in ("generate", "edit"):
            assert (options.steps, options.device, options.model) == (3, "cpu", str(trial.model))
        if words[0] == "train":
            recipe = load_recipe(options.recipe, options.overrides)
            assert (recipe.train.parts, recipe.train.steps, recipe.train.batch) == ("lora", 1, 1)
            assert recipe.init == str(trial.model) and recipe.validation.every == 0
    work = {words[2] for item in items.values() for words in item if words[1] == str(full_size.WORK)}
    assert work | {"write"} == full_size_work.WORK.keys()


def test_graphs_are_the_demos_with_another_model():
    found = dict(full_size_work.graphs("big", "bf16", 2))
    assert list(found) == ["load", "text to image", "image edit"]
    for name, graph in found.items():
        [model] = [node for node in graph.values() if node["class_type"] == "TBACUniImageLoadModel"]
        assert model["inputs"] == {"checkpoint": "big", "weight_dtype": "bf16"}
        steps = [node["inputs"].get("steps") for node in graph.values() if "Sampler" in node["class_type"]]
        assert steps == ([] if name == "load" else [2])


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_what_a_process_took_is_its_own(tmp_path):
    path = tmp_path / "read.bin"
    path.write_bytes(bytes(5_000_000))
    process_costs.forget_pages(path)
    work = (
        "import sys; kept = bytearray(150_000_000); read = open(sys.argv[1], 'rb').read();"
        "s = sum(range(3_000_000)); print(len(kept) + len(read))"
    )
    # a child's peak begins at its parent's size, so the parent is as small as the script is
    small = (
        "import sys; sys.path.insert(0, sys.argv[1]); import process_costs, json;"
        "commands = [[sys.executable, '-c', code, sys.argv[2]] for code in sys.argv[3:]];"
        "print(json.dumps([process_costs.measure(command) for command in commands], default=vars))"
    )
    scripts = str(full_size.ROOT / "scripts")
    done = subprocess.run(
        [sys.executable, "-c", small, scripts, str(path), work, "pass"],
        capture_output=True,
        text=True,
        check=True,
    )
    (printed, cost), (_, nothing) = json.loads(done.stdout)
    assert printed == "155000000\n"
    assert 150e6 < cost["peak"] < 250e6 and nothing["peak"] < 100e6
    assert 0 < cost["cpu"] <= cost["wall"] + 0.2
    assert process_costs.Cost(12.4, 3.6, 2_500_000_000, 0).row("x") == "| x | 12 | 4 | 2.50 | 0.00 |"


def test_what_fails_ends_the_whole_with_its_words():
    with pytest.raises(SystemExit, match=r"ended with 3:\n(.|\n)*no such thing"):
        process_costs.measure(
            [sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"]
        )
