"""The shell command: what it writes and prints, and one sentence for every kind of bad input."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import profiles
import pytest
import torch
from conftest import PARITY, load_tiny
from diffusers.hooks import FirstBlockCacheConfig
from nano_models import SIDE
from PIL import Image, ImageChops
from tbac_uniimage.core import pictures
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.shell import commands
from tbac_uniimage.shell.main import main, make_parser

SAMPLES = Path(__file__).resolve().parent.parent / "assets" / "samples"
FAST = ["--steps", "2", "--seed", "7", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """The tiny reference model as a pipeline folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    LadderPipeline(**vars(load_tiny())).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def picture(tmp_path) -> str:
    path = tmp_path / "scene.png"
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(path)
    return str(path)


def difference(path, image: Image.Image) -> int:
    """Largest difference of two pictures in 0 … 255; 1 is rounding, which changes with batch and threads."""
    drawn = Image.open(path)
    assert drawn.size == image.size
    return max(high for _, high in ImageChops.difference(drawn, image).getextrema())


def sentence(capsys, *argv: str) -> str:
    """What the command says about bad input: one line on stderr, nothing on stdout, exit code 2."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_generate_draws_what_the_pipeline_draws(model, pipe, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["generate", "a red square", "a dog", "--num", "2", "--model", model, "--out", str(out), *FAST]
    assert main(argv) == 0
    paths = [out / f"{number:04d}.png" for number in (1, 2, 3, 4)]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    generators = [torch.Generator().manual_seed(9), torch.Generator().manual_seed(10)]
    expected = pipe("a dog", num_inference_steps=2, num_images_per_prompt=2, generator=generators).images
    for path, image in zip(paths[2:], expected, strict=True):
        assert difference(path, image) <= 1
    assert json.loads(Image.open(paths[2]).text[pictures.CHUNK]) == {
        "prompt": "a dog",
        "seed": 9,
        "width": 64,
        "height": 64,
        "negative": "",
        "steps": 2,
        "guidance": 4.5,
        "scheduler": "recipe",
        "model": "tiny",
        "images": [],
    }

    assert main(["generate", "a dog", "--model", model, "--out", str(out), *FAST[:2], "--seed", "9"]) == 0
    assert difference(out / "0005.png", expected[0]) <= 1  # numbered on, and alone the same
    assert difference(out / "0005.png", expected[1]) > 1
    assert sorted(entry.name for entry in out.iterdir()) == [f"{n:04d}.png" for n in range(1, 6)]


def test_a_step_cache_and_compiled_blocks_are_options(model, pipe, tmp_path, monkeypatch, capsys):
    """``--cache`` is diffusers' FirstBlockCache and stands in the settings; blocks are compiled once."""
    compiled = []
    kind = type(pipe.transformer)
    monkeypatch.setattr(kind, "compile_repeated_blocks", lambda self: compiled.append(self))
    argv = ["generate", "a dog", "--model", model, "--out", str(tmp_path), "--device", "cpu"]
    argv += ["--steps", "3", "--seed", "9"]
    for more in (["--cache", "1000000"], ["--compile"]):
        assert main([*argv, *more]) == 0
    options = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(9)}
    plain = pipe("a dog", **options).images[0]
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e6))
    try:
        options["generator"] = torch.Generator().manual_seed(9)
        cached = pipe("a dog", **options).images[0]
    finally:
        pipe.transformer.disable_cache()
    assert difference(tmp_path / "0001.png", cached) <= 1 < difference(tmp_path / "0001.png", plain)
    assert json.loads(Image.open(tmp_path / "0001.png").text[pictures.CHUNK])["cache"] == 1e6
    assert difference(tmp_path / "0002.png", plain) <= 1 and len(compiled) == 1
    assert "cache" not in json.loads(Image.open(tmp_path / "0002.png").text[pictures.CHUNK])
    capsys.readouterr()
    assert "--cache: 0 is not possible; give a finite number above 0" in sentence(
        capsys, *argv, "--cache", "0"
    )
    assert "--offload keeps the parts in main memory" in sentence(capsys, *argv, "--offload")


def test_offloading_leaves_the_parts_in_main_memory(model, monkeypatch, capsys):
    argv = ["generate", "a dog", "--model", model, "--offload", "--device"]
    assert "The device fpga is not there on this machine" in sentence(capsys, *argv, "fpga")
    asked = []
    monkeypatch.setattr(LadderPipeline, "enable_model_cpu_offload", lambda self, device: asked.append(device))
    monkeypatch.setattr(commands, "check_offload", lambda device: None)  # no such device here
    loaded = commands.load_pipeline(make_parser().parse_args([*argv, "cuda"]))
    assert asked == ["cuda"]
    assert {part.device.type for part in (loaded.mllm, loaded.transformer, loaded.vae)} == {"cpu"}
    assert loaded.transformer.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("stored", "capabilities", "expected"),
    [
        (torch.bfloat16, {"avx512_bf16": True}, torch.bfloat16),
        (torch.bfloat16, {"avx512_bf16": False, "avx512_f": True}, torch.float32),
        (torch.float16, {"amx_bf16": True}, torch.float32),
        (torch.float32, {"amx_bf16": True}, torch.float32),
    ],
)
def test_bfloat16_stays_where_the_cpu_multiplies_it(tmp_path, monkeypatch, stored, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    folder = tmp_path / "model"
    pipeline = LadderPipeline(**vars(load_tiny()))
    for part in ("mllm", "connector", "transformer", "vae"):
        getattr(pipeline, part).to(stored)
    pipeline.save_pretrained(folder)
    options = make_parser().parse_args(["generate", "a dog", "--model", str(folder), "--device", "cpu"])
    loaded = commands.load_pipeline(options)
    assert {part.dtype for part in (loaded.mllm, loaded.connector, loaded.transformer, loaded.vae)} == {
        expected
    }


def test_embedded_model_draws_without_being_named(tmp_path):
    assert main(["generate", "a star on a blue background", "--out", str(tmp_path), *FAST]) == 0
    drawn = Image.open(tmp_path / "0001.png")
    assert drawn.size == (SIDE, SIDE) and json.loads(drawn.text[pictures.CHUNK])["model"] == "nano"


def test_edit_draws_what_the_pipeline_draws(model, pipe, picture, tmp_path):
    argv = ["edit", picture, "make it blue", "--model", model, "--out", str(tmp_path / "out"), *FAST]
    assert main([*argv, "--scheduler", "recipe", "--negative", "grey"]) == 0
    expected = pipe(
        "make it blue",
        image=Image.open(picture),
        negative_prompt="grey",
        image_guidance_scale=1.5,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    drawn = Image.open(tmp_path / "out" / "0001.png")
    assert difference(drawn.filename, expected) <= 1 and drawn.size == (80, 56)
    settings = json.loads(drawn.text[pictures.CHUNK])
    assert settings["images"] == ["scene.png"] and settings["image_guidance"] == 1.5

    assert main([*argv, "--scheduler", "euler"]) == 0
    assert difference(tmp_path / "out" / "0002.png", expected) > 1


def test_ask_answers_as_the_pipeline_does(model, pipe, picture, capsys):
    argv = ["ask", picture, "what is this?", "--max-tokens", "4", "--model", model, "--device", "cpu"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    expected = pipe.ask(Image.open(picture), "what is this?", max_new_tokens=4)
    assert captured.out == expected.text + "\n"
    assert captured.err.endswith("(vocabulary rows of the model itself)\n")

    qwen = str(PARITY / "Qwen2.5-VL-tiny")
    assert main([*argv, "--qwen", qwen]) == 0
    assert capsys.readouterr().err.endswith(f"(vocabulary rows of {qwen})\n")


def test_info_of_the_released_model(capsys):
    assert main(["info", "--released"]) == 0
    text = capsys.readouterr().out
    for part, count in (
        ("mllm", "3,754,622,976"),
        ("connector", "10,033,920"),
        ("transformer", "1,604,462,752"),
        ("vae", "312,250,275"),
        ("total", "5,681,505,091"),
    ):
        assert f"{part:14}{count:>15}" in text
    assert "Queries: 64" in text and "512 x 512" in text and "32 x 16 x 16 (factor 32)" in text
    assert " 16 -> 0 " in text and " 35 -> 19" in text


def test_info_of_a_folder_and_of_a_checkpoint_of_the_same_model(model, capsys):
    assert main(["info", "--model", model]) == 0
    text = capsys.readouterr().out
    assert model in text and "Queries: 8;" in text and "4 blocks" in text
    checkpoint = str(PARITY / "checkpoint")
    bases = ["--mllm", str(PARITY / "Qwen2.5-VL-tiny"), "--sana", str(PARITY / "Sana_tiny_diffusers")]
    assert main(["info", "--model", checkpoint, *bases]) == 0
    assert capsys.readouterr().out == text.replace(model, checkpoint)


@pytest.mark.parametrize(
    "rungs, first, last",
    [
        ("ladder", "  2 -> 0 ", "  7 -> 5"),
        ("reversed", "  7 -> 0 ", "  2 -> 5"),
        ("last", "  7 -> 0 ", "  7 -> 5"),
        ("final", "final norm -> 0 ", "final norm -> 5"),
        ("mixed", "2 to 7, weighted -> 0 ", "2 to 7, weighted -> 5"),
    ],
)
def test_info_says_where_the_rungs_come_from(rungs, first, last):
    from tbac_uniimage.core.checkpoints import load_parts

    parts = load_parts(Path(__file__).resolve().parent.parent / "assets" / "nano")
    parts.connector.choose_rungs(rungs, 6)
    text = commands.describe(parts)
    assert f"{rungs.capitalize()} (input of MLLM layer -> block):" in text
    assert first in text and text.endswith(last)


def test_info_says_what_else_a_model_reads():
    from conftest import load_tiny
    from source_models import attending, reading

    assert "Reads besides" not in commands.describe(load_tiny())
    line = "\nReads besides queries and noise: the latents of what it edits (source_latents)"
    assert f"{line}\n" in commands.describe(reading(load_tiny()))
    both = f"{line}, the text's own tokens (text_states)\n"
    assert both in commands.describe(attending(reading(load_tiny())))


def test_score_hands_over_to_the_scorer(monkeypatch):
    from tbac_uniimage.training.nano import score

    seen = []
    monkeypatch.setattr(score, "run", seen.append)
    assert main(["score", "--samples", "3", "--seeds", "5", "6"]) == 0
    assert (seen[0].samples, seen[0].seeds) == (3, [5, 6])


NUMBERS = "a whole number of at least 1"


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], "required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["generate"], "required: PROMPT"),
        (["generate", "x", "--steps", "0"], f"--steps: 0 is not possible; give {NUMBERS}"),
        (["generate", "x", "--steps", "2.5"], f"--steps: 2.5 is not possible; give {NUMBERS}"),
        (["generate", "x", "--num", "0"], f"--num: 0 is not possible; give {NUMBERS}"),
        (["generate", "x", "--width", "-8"], f"--width: -8 is not possible; give {NUMBERS}"),
        (["generate", "x", "--seed", "-1"], "--seed: -1 is not possible; give a whole number from 0"),
        (["generate", "x", "--guidance", "nan"], "--guidance: nan is not possible; give a finite number"),
        (["generate", "x", "--guidance", "-1"], "--guidance: -1 is not possible; give a finite number"),
        (["generate", "x", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["generate", " "], "The prompt is empty and there is no image"),
        (["generate", "x", "--model", "nowhere"], "There is no model at nowhere"),
        (["generate", "x", "--model", "./no/where"], "There is no model at no/where"),
        (["info", "--steps", "3"], "unrecognized arguments: --steps 3"),
        (["info", "--model", "nowhere"], "There is no model at nowhere"),
        (["edit", "scene.png"], "required: INSTRUCTION"),
        (["edit", "nothing.png", "make it blue"], "There is no picture at nothing.png"),
        (["edit", "bad.png", "make it blue"], "bad.png is not a readable picture"),
        (["edit", "scene.png", "scene.png"], "scene.png is a file; end the command with a sentence"),
        (["edit", *["scene.png"] * 5, "make it blue"], "5 pictures were given; at most 4 are possible"),
        (["edit", "scene.png", "x", "--image-guidance", "inf"], "--image-guidance: inf is not possible"),
        (["edit", "scene.png", "x", "--out", "bad.png"], "bad.png is a file; give a folder"),
        (["ask", "scene.png", " "], "The question is empty"),
    ],
)
def test_mistakes_that_need_no_model(argv, expected, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "best_device", lambda: pytest.fail("torch was imported"))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    assert expected in sentence(capsys, *argv)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--width", "60"], "The width 60 is no positive multiple of 8; use 56 or 64."),
        (["--device", "cuda:77"], "The device cuda:77 is not there on this machine"),
        (["--device", "toaster"], "The device toaster is not there on this machine"),
        (["--tokenizer", "/nowhere"], "/nowhere holds no tokenizer.json"),
    ],
)
def test_mistakes_that_the_model_finds(options, expected, model, tmp_path, capsys):
    argv = ["generate", "x", "--model", model, "--out", str(tmp_path / "out"), "--device", "cpu", *options]
    assert expected in sentence(capsys, *argv)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [ValueError("from below"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback(error, model, monkeypatch):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(LadderPipeline, "__call__", broken)
    with pytest.raises(type(error)):
        main(["generate", "x", "--model", model, "--device", "cpu"])


def test_a_torn_write_leaves_nothing(tmp_path):
    class Torn(Image.Image):
        def save(self, path, **_):
            path.write_bytes(b"half a pic")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pictures.write_picture(Torn(), tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_never_taken_twice(tmp_path):
    (tmp_path / "0002.png").touch()
    (tmp_path / "notes.png").touch()
    first, second = pictures.reserve_number(tmp_path), pictures.reserve_number(tmp_path)
    assert [path.name for _, path in (first, second)] == ["0003.png", "0004.png"]


def test_help_and_core_import_nothing_heavy():
    code = """
import sys
from tbac_uniimage.shell.main import main, make_parser
try:
    main(["--help"])
except SystemExit as exit:
    assert exit.code == 0
assert main(["generate", "x", "--steps", "0"]) == 2
import tbac_uniimage.core as core
assert "LadderPipeline" in core.__all__
heavy = {"torch", "diffusers", "transformers", "numpy", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)


def test_public_names_of_core():
    import tbac_uniimage.core as core

    for name in core.__all__:
        assert getattr(core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = core.Nothing


def test_old_libraries_are_one_sentence(monkeypatch):
    import tbac_uniimage.core as core

    monkeypatch.setattr(core, "MINIMUM", {"torch": (99, 0), "no-such-library": (1, 2)})
    with pytest.raises(
        ImportError, match=r"torch .* is too old, no-such-library is not installed; .*torch>=99.0"
    ):
        core.check_versions()


def test_earlier_names_lead_to_the_same():
    from tbac_uniimage import cli
    from tbac_uniimage import pictures as earlier
    from tbac_uniimage.core import pictures

    assert cli.main is main
    assert all(getattr(earlier, name) is getattr(pictures, name) for name in earlier.__all__)


@pytest.fixture
def transparent(tmp_path) -> str:
    """A picture of an odd size with alpha, of the embedded model's world."""
    scene = Image.open(SAMPLES / "tbac_uniimage_scene.png").convert("RGBA").resize((61, 61))
    scene.putalpha(Image.linear_gradient("L").resize(scene.size).point(lambda v: 240 + v // 17))
    path = tmp_path / "clear.png"
    scene.save(path)
    return str(path)


def test_edit_within_a_mask_keeps_every_bit_outside(transparent, tmp_path):
    mask = Image.new("1", (61, 61))
    mask.paste(1, (0, 0, 40, 61))
    mask.save(tmp_path / "mask.png")
    argv = ["edit", transparent, "remove the cactus", "--out", str(tmp_path / "out"), *FAST]
    assert main([*argv, "--mask", str(tmp_path / "mask.png"), "--strength", "0.5"]) == 0
    drawn, source = Image.open(tmp_path / "out" / "0001.png"), Image.open(transparent)
    assert drawn.size == (61, 61) and drawn.mode == "RGBA"
    assert drawn.crop((40, 0, 61, 61)).tobytes() == source.crop((40, 0, 61, 61)).tobytes()
    assert drawn.getchannel("A").tobytes() == source.getchannel("A").tobytes()
    assert ImageChops.difference(drawn.convert("RGB"), source.convert("RGB")).getbbox() is not None
    settings = json.loads(drawn.text[pictures.CHUNK])
    assert (settings["mask"], settings["strength"]) == ("mask.png", 0.5)


def test_edit_saves_the_mask_that_it_found(transparent, tmp_path):
    argv = ["edit", transparent, "remove the cactus", "--out", str(tmp_path / "out"), *FAST]
    saved = tmp_path / "masks" / "found.png"
    assert main([*argv, "--mask", "auto", "--save-mask", str(saved), "--num", "2"]) == 0
    found = Image.open(saved)
    assert found.size == (61, 61) and found.mode == "L" and found.getextrema() == (0, 255)
    outside = ImageChops.invert(found).point(lambda v: 255 * (v > 0))
    for number in (1, 2):
        drawn = Image.open(tmp_path / "out" / f"{number:04d}.png")
        difference = ImageChops.difference(drawn.convert("RGB"), Image.open(transparent).convert("RGB"))
        assert Image.composite(difference, Image.new("RGB", difference.size), outside).getbbox() is None
    assert main([*argv, "--mask", str(saved), "--num", "2"]) == 0  # the mask draws the same again
    first, again = (np.asarray(Image.open(tmp_path / "out" / name)) for name in ("0001.png", "0003.png"))
    source = np.asarray(Image.open(transparent))
    inside, changed = np.asarray(found) > 0, (first != source).any(-1)
    assert (again != source).any(-1)[inside].mean() > changed[inside].mean() > 0.1
    assert np.abs(first - again.astype(int))[changed].mean() < 8  # but for seams
    assert [path.name for path in saved.parent.iterdir()] == ["found.png"]


def test_edit_of_a_small_part_keeps_the_photograph(tmp_path):
    """Its colours, its profile and its alpha; only the part of the mask is drawn."""
    scene = Image.open(SAMPLES / "tbac_uniimage_scene.png").convert("RGB").resize((301, 203))
    scene.putalpha(Image.linear_gradient("L").resize(scene.size))
    scene.save(tmp_path / "photograph.png", icc_profile=profiles.rgb())
    mask = Image.new("1", scene.size)
    mask.paste(1, (1, 150, 51, 202))
    mask.save(tmp_path / "mask.png")
    argv = [
        "edit",
        str(tmp_path / "photograph.png"),
        "remove the cactus",
        "--out",
        str(tmp_path / "out"),
        *FAST,
    ]
    assert main([*argv, "--mask", str(tmp_path / "mask.png"), "--context", "0.25"]) == 0
    drawn = Image.open(tmp_path / "out" / "0001.png")
    assert (drawn.size, drawn.mode, drawn.info["icc_profile"]) == (scene.size, "RGBA", profiles.rgb())
    stays = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(drawn)[stays], np.asarray(scene)[stays])
    assert np.array_equal(np.asarray(drawn)[..., 3], np.asarray(scene)[..., 3])
    assert (np.asarray(drawn)[~stays] != np.asarray(scene)[~stays]).mean() > 0.3
    assert json.loads(drawn.text[pictures.CHUNK])["context"] == 0.25


@pytest.mark.parametrize("kind", ["I;16", "RGB"])
def test_the_loss_of_depth_is_said(kind, tmp_path, capsys):
    path = tmp_path / "deep.png"
    values = (np.arange(64 * 64 * 3).reshape(64, 64, 3) * 5).astype(">u2")
    if kind == "RGB":  # which Pillow cannot write
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        parts = [(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
        chunks = [
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in [*parts, (b"IEND", b"")]
        ]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    else:
        Image.fromarray(values[..., 0].astype(np.uint16)).save(path)
    mask = Image.new("1", (64, 64))
    mask.paste(1, (3, 5, 40, 60))
    mask.save(tmp_path / "mask.png")
    argv = ["edit", str(path), "add a star", "--out", str(tmp_path / "out"), *FAST]
    assert main([*argv, "--mask", str(tmp_path / "mask.png")]) == 0
    assert "(deep.png has more than 8 bits a channel, its edit has 8)\n" in capsys.readouterr().err
    drawn = np.asarray(Image.open(tmp_path / "out" / "0001.png")).astype(float)
    source = values if kind == "RGB" else values[..., :1]
    outside = np.abs(drawn - source / 257)[~np.asarray(mask)]
    assert drawn.shape == (64, 64, 3) and outside.max() <= 1  # what 8 bits hold of it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mask", "none.png"], "There is no picture at none.png"),
        (["--save-mask", "m.png"], "--save-mask has no mask to save"),
        (["--mask", "auto", "--save-mask", "m.jpg"], "m.jpg is no name of a PNG file"),
        (
            ["--mask", "auto", "--save-mask", "scene.png"],
            "scene.png is there already, and stays",
        ),
        (["--context", "1"], "--context has no mask to be around"),
        (["--mask", "auto", "--context", "-1"], "-1 is not possible; give a number of at least 0"),
        (["--strength", "1.5"], "1.5 is not possible; give a number from 0 to 1"),
        (["--strength", "nan"], "nan is not possible; give a number from 0 to 1"),
    ],
)
def test_bad_masks_are_one_sentence(options, words, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "scene.png").read_bytes()
    assert words in sentence(capsys, "edit", picture, "make it blue", *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.png"]
    assert (tmp_path / "scene.png").read_bytes() == before
