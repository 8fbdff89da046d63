"""mmdet's Mask2Former in transformers' class, layer by layer; GenEval from pictures to verdicts.

``data/evaluation_mask2former.safetensors`` is what mmdet 2.28.2 with mmcv 1.7.1 computed on random numbers: a
tiny Mask2Former of the published kind, its weights, an input, what every stage made of it, and pictures as
its test pipeline resizes and normalises them.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_sets import OBJECTS, fetched
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from tbac_uniimage.shell.main import main
from tbac_uniimage.training.evaluation import fetch, folders, sets
from tbac_uniimage.training.evaluation.detectors import convert, mask2former
from torch import Tensor
from torch.nn import functional
from training_runs import finish, start, wait_until

DATA = Path(__file__).parent / "data" / "evaluation_mask2former.safetensors"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(DATA)


@pytest.fixture(scope="module")
def state(recorded) -> dict[str, Tensor]:
    """The checkpoint as mmdet names it."""
    weights = {
        name.removeprefix("weights."): t for name, t in recorded.items() if name.startswith("weights.")
    }
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory) -> Path:
    """The model that the command makes of a .pth."""
    path = tmp_path_factory.mktemp("converted")
    content = {"meta": {"epoch": 50}, "state_dict": state}
    torch.save(content, path / "model.pth", _use_new_zipfile_serialization=False)  # as mmdet publishes it
    assert convert.main([path / "model.pth", path / "model"]) == 0
    return path / "model"


def differ(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def test_every_layer_computes_what_mmdet_computes(recorded, folder):
    expected = {
        name.removeprefix("outputs."): t.float() for name, t in recorded.items() if "outputs." in name
    }
    model = mask2former.load(folder, "cpu", 80)
    with torch.no_grad():
        level = model.model.pixel_level_module(expected["pixels"], output_hidden_states=True)
        output = model(pixel_values=expected["pixels"])
        steps = model.model(pixel_values=expected["pixels"]).masks_queries_logits
    for i, feature in enumerate(level.encoder_hidden_states):
        assert differ(feature, expected[f"backbone.{i}"]) < 5e-5
    assert differ(level.decoder_last_hidden_state, expected["mask_features"]) < 5e-5
    for i, feature in enumerate(level.decoder_hidden_states):
        assert differ(feature, expected[f"multi_scale.{i}"]) < 5e-5
    assert len(steps) == 4
    for i, logits in enumerate(steps):
        assert differ(logits, expected[f"mask_logits.{i}"]) < 1e-4
    assert differ(output.class_queries_logits, expected["class_logits"]) < 1e-4
    upsampled = functional.interpolate(
        output.masks_queries_logits, (64, 96), mode="bilinear", align_corners=False
    )
    assert differ(upsampled[:, :1], expected["upsampled"]) < 1e-4


@pytest.mark.parametrize("number", [0, 1, 2])
def test_pictures_are_resized_as_opencv_does(recorded, number):
    picture = Image.fromarray(recorded[f"picture.{number}"].numpy())
    resized = recorded[f"resized.{number}"].permute(2, 0, 1).float()
    pixels, valid = mask2former.prepare(picture, 133, 80)
    assert valid == tuple(resized.shape[1:]) and all(side % 32 == 0 for side in pixels.shape[-2:])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mask2former.MEAN, mask2former.STD))
    ours = (pixels[0] * std + mean)[:, : valid[0], : valid[1]]
    assert torch.equal(ours.round(), resized)
    if f"prepared.{number}" in recorded:
        prepared = recorded[f"prepared.{number}"].float()
        assert differ(pixels[0, :, valid[0] :], prepared[:, valid[0] :]) < 2e-3
        assert differ(pixels[0, :, :, valid[1] :], prepared[:, :, valid[1] :]) < 2e-3


def test_only_whole_checkpoints_of_tensors_are_converted(state, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'pwned'}",))

    def refused(content) -> str:
        (tmp_path / "model.pth").unlink(missing_ok=True)
        if isinstance(content, bytes):
            (tmp_path / "model.pth").write_bytes(content)
        elif content is not None:
            torch.save(content, tmp_path / "model.pth")
        assert convert.main([tmp_path / "model.pth", tmp_path / "made"]) == 2
        assert not (tmp_path / "made").exists() and not list(tmp_path.glob(".*"))
        return capsys.readouterr().err

    assert "There is no checkpoint" in refused(None)
    assert "is no checkpoint of tensors alone" in refused(b"half")
    assert "is no checkpoint of tensors alone" in refused(pickle.dumps(Evil()))
    assert not (tmp_path / "pwned").exists()
    assert "holds no weights" in refused({"state_dict": {}})
    assert "backbone.layer1.weight is no tensor of mmdet's Mask2Former" in refused(
        {"state_dict": state | {"backbone.layer1.weight": torch.zeros(1)}}
    )
    lacking = {name: tensor for name, tensor in state.items() if "mask_embed.2.bias" not in name}
    assert "does not fit transformers' Mask2Former" in refused({"state_dict": lacking})
    some = {name: tensor for name, tensor in state.items() if "backbone" in name}
    assert "lacks tensors of mmdet's Mask2Former" in refused({"state_dict": some})


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    return fetched(tmp_path_factory.mktemp("made-up"), "geneval", "dpg")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny random detector of the made-up set's classes, and a tiny random CLIP."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTokenizer,
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        SwinConfig,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(3)
    stages = [f"stage{i}" for i in range(1, 5)]
    swin = SwinConfig(embed_dim=4, depths=[1] * 4, num_heads=[1, 1, 2, 2], out_features=stages)
    sizes = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32)
    sizes |= dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 32)
    config = Mask2FormerConfig(
        backbone_config=swin,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=20,
        num_labels=len(OBJECTS),
        **sizes,
    )
    detector = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # sure of something
        detector.class_predictor.weight.normal_(std=3)
    detector.save_pretrained(folder / "detector")

    letters = [chr(n) for n in range(33, 127)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    words = folder / "words"
    words.mkdir()
    (words / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(vocabulary)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(words)
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(
        CLIPConfig(
            text_config=width | {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 1},
            vision_config=width | {"image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
    )
    for part in (clip, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)):
        part.save_pretrained(folder / "clip")
    return folder / "detector", folder / "clip"


@pytest.fixture
def out(made_up, tmp_path) -> Path:
    """Pictures of GenEval with things in them."""
    benchmark = sets.find("geneval")
    checkout = fetch.load(benchmark, made_up)
    for number, item in enumerate(benchmark.items(checkout)):
        for n, shot in enumerate(item.pictures):
            path = folders.pictures(tmp_path, "geneval") / shot.path
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (48, 40), (30 * n, 80, 60 * number))
            ImageDraw.Draw(picture).ellipse((5 * n, 4, 20 + 5 * n, 30), fill=(250, 10 * number, 0))
            picture.save(path)
    manifest = {"settings": {"files": checkout.digest, "seed": 0}}
    folders.write_json(tmp_path / "geneval" / folders.MANIFEST, manifest)
    return tmp_path


def command(made_up: Path, out: Path, models: tuple[Path, Path], *more: str) -> list[str]:
    options = ["--detector", str(models[0]), "--clip", str(models[1]), "--device", "cpu"]
    return ["evaluate", "judge", "geneval", "--out", str(out), "--sets", str(made_up), *options, *more]


@pytest.fixture
def small(monkeypatch):
    """Pictures are scaled into 64 pixels, not 800."""
    prepare = mask2former.prepare
    monkeypatch.setattr(mask2former, "prepare", lambda picture: prepare(picture, 96, 64))


def test_geneval_from_pictures_to_a_score_of_its_own_name(made_up, out, models, small, capsys):
    assert main(command(made_up, out, models)) == 0
    path = out / "geneval" / "transformers" / "answers.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["request"] for line in found][:5] == [
        *(f"00000/samples/{n:04}.png" for n in range(4)),
        "00001/samples/0000.png",
    ]
    assert len(found) == 12 and {type(line["verdict"]["correct"]) for line in found} == {bool}
    assert main(["evaluate", "score", "geneval", "--out", str(out), "--sets", str(made_up)]) == 0
    assert "geneval (transformers)" in capsys.readouterr().out

    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])  # a line is torn
    assert main(command(made_up, out, models)) == 0
    assert path.read_bytes() == whole


def test_verdicts_follow_from_what_is_seen(made_up, models, out, small):
    """The command's verdict is that of detector, colours and rules, applied one by one."""
    from tbac_uniimage.training.evaluation.detectors.clip import ColourClassifier
    from tbac_uniimage.training.evaluation.detectors.verdict import COLOURS, Seen, kept, verdict

    detector = mask2former.load(models[0], "cpu", len(OBJECTS))
    colours = ColourClassifier(models[1], "cpu")
    picture = Image.open(out / "geneval" / "pictures" / "00000" / "samples" / "0001.png")
    seen = mask2former.detect(detector, picture)
    assert (
        seen.masks.shape[1:] == (40, 48)
        and len(seen.labels) == 100
        and (seen.boxes[:-1, 4] >= seen.boxes[1:, 4]).all()
    )
    objects = {
        name: [
            Seen(b.numpy(), m.numpy())
            for label, b, m in zip(seen.labels, seen.boxes, seen.masks, strict=True)
            if OBJECTS[label] == name
        ]
        for name in OBJECTS
    }
    counted = kept(objects, "single_object")
    assert counted, "the random detector is sure of nothing; take another seed"
    name = next(iter(counted))
    said = colours(picture, counted[name], name)
    assert len(said) == len(counted[name]) and set(said) <= set(COLOURS)
    right, _ = verdict(
        counted,
        {"include": [{"class": name, "count": 1, "color": said[0]}]},
        lambda some, of: colours(picture, some, of),
    )
    assert right
    other = next(colour for colour in COLOURS if colour not in said)
    wrong, why = verdict(
        counted,
        {"include": [{"class": name, "count": 1, "color": other}]},
        lambda some, of: colours(picture, some, of),
    )
    assert not wrong and f"expected {other} {name}>=1" in why


@pytest.mark.slow
def test_killed_while_detecting_and_resumed_to_the_same_bytes(made_up, out, models, small):
    path, log = out / "geneval" / "transformers" / "answers.jsonl", out / "log"
    argv = command(made_up, out, models)
    [process] = processes = start(argv, log, module="shell.main", prepare="small_detection")
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= 3, processes, log)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    part = path.read_bytes()
    assert finish(start(argv, log, module="shell.main", prepare="small_detection")) == [0], log.read_text()
    whole = path.read_bytes()
    assert whole.startswith(part[: part.rfind(b"\n") + 1]) and whole.count(b"\n") == 12
    path.unlink()
    assert main(argv) == 0
    assert path.read_bytes() == whole


def test_wrong_models_and_sets_are_sentences(made_up, out, models, capsys, small):
    def sentence(argv: list[str]) -> str:
        capsys.readouterr()
        assert main(argv) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1, said
        return said.err

    detector, clip = models
    argv = command(made_up, out, models)
    assert "give --clip too" in sentence(argv[:-4])
    assert "nowhere is no folder" in sentence(command(made_up, out, (Path("nowhere"), clip)))
    assert "is a clip of" in sentence(command(made_up, out, (clip, clip)))
    assert "sets is a folder without a model; give that of CLIP" in sentence(
        command(made_up, out, (detector, made_up))
    )
    assert "dpg is not judged by a detector" in sentence([*argv[:2], "dpg", *argv[3:]])
    assert not (out / "geneval" / "transformers").exists()
    assert main(argv) == 0
    config = detector / "config.json"
    content = config.read_text()
    config.write_text(content + "\n")
    assert "holds answers with detector " in sentence(argv)
    config.write_text(content)


def test_masks_of_numpy_and_boxes_are_float32(models):
    detector = mask2former.load(models[0], "cpu", len(OBJECTS))
    seen = mask2former.detect(detector, Image.new("RGB", (30, 20)))
    assert seen.boxes.numpy().dtype == np.float32 and seen.masks.numpy().dtype == bool
