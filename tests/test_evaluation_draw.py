"""Pictures of a set: the same files whoever draws them and whatever was interrupted; bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from evaluation_sets import DPG, GENEVAL, fetched
from nano_models import FACTOR, SIDE
from PIL import Image
from tbac_uniimage.core.pictures import CHUNK
from tbac_uniimage.shell.main import main
from tbac_uniimage.training.evaluation.painting import noise_seed
from tbac_uniimage.training.evaluation.sets import find
from training_runs import finish, start, wait_until

NANO = ROOT / "assets" / "nano"


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    return fetched(tmp_path_factory.mktemp("made-up"), "geneval", "dpg", "tiif", "imgedit")


@pytest.fixture(scope="module")
def drawn(sets, tmp_path_factory) -> Path:
    """Every set, drawn by one process."""
    out = tmp_path_factory.mktemp("drawn")
    assert main(command(sets, out, "geneval", "dpg", "tiif", "imgedit")) == 0
    return out


def arguments(sets: Path, out: Path, *more: str) -> list[str]:
    drawing = ["--model", str(NANO), "--steps", "1", "--device", "cpu"]
    return [*more, *drawing, "--sets", str(sets), "--out", str(out)]


def command(sets: Path, out: Path, *more: str) -> list[str]:
    return ["evaluate", "draw", *arguments(sets, out, *more)]


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sentence(capsys, argv: list[str], code: int = 2) -> str:
    """What a command says about bad input: one line, nothing on stdout. Before code 5 there is a bar."""
    capsys.readouterr()
    assert main(argv) == code
    said = capsys.readouterr()
    assert said.out == "" and (said.err.count("\n") == 1 or code == 5), said
    return said.err.splitlines()[-1]


def test_files_lie_where_the_official_scorers_look(drawn):
    names = {path for path in files(drawn) if "pictures" in path}
    shots = {f"geneval/pictures/{i:05}/samples/{n:04}.png" for i in range(len(GENEVAL)) for n in range(4)}
    shots |= {f"geneval/pictures/{i:05}/metadata.jsonl" for i in range(len(GENEVAL))}
    shots |= {f"dpg/pictures/{name}.png" for name in DPG}
    for kind, number in (("text", 1), ("style", 2)):
        for length in ("short", "long"):
            folder = f"tiif/pictures/{kind}/tbac-uniimage/{length}_description"
            shots |= {f"{folder}/{n}.png" for n in range(number)}
    shots |= {f"imgedit/pictures/{key}.png" for key in ("10", "11", "12")}
    assert names == shots
    assert set(files(drawn)) - names == {
        f"{name}/manifest.json" for name in ("geneval", "dpg", "tiif", "imgedit")
    }


def test_a_picture_is_what_the_pipeline_draws_from_its_seed(drawn):
    import torch
    from tbac_uniimage.core.checkpoints import load_parts
    from tbac_uniimage.core.pipeline import LadderPipeline

    pipeline = LadderPipeline(**vars(load_parts(NANO, dtype="float32")))
    pipeline.set_progress_bar_config(disable=True)
    torch.set_num_threads(1)
    seeds = [noise_seed("dpg", "beta", sample, 0) for sample in range(4)]
    tiles = pipeline(
        DPG["beta"][0],
        num_inference_steps=1,
        num_images_per_prompt=4,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
    ).images
    sheet = Image.open(drawn / "dpg" / "pictures" / "beta.png")
    assert sheet.size == (2 * SIDE, 2 * SIDE)
    for tile, (left, top) in zip(tiles, ((0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)), strict=True):
        assert sheet.crop((left, top, left + SIDE, top + SIDE)).tobytes() == tile.tobytes()
    said = json.loads(sheet.text[CHUNK])
    assert (said["set"], said["item"], said["prompt"]) == ("dpg", "beta", DPG["beta"][0])
    assert said["noise"] == seeds and len(set(seeds)) == 4
    assert (said["steps"], said["guidance"], said["seed"]) == (1, 4.5, 0)


def test_seeds_differ_by_set_item_sample_and_seed():
    cases = [("a", "1", 0, 0), ("b", "1", 0, 0), ("a", "2", 0, 0), ("a", "1", 1, 0), ("a", "1", 0, 1)]
    cases += [("a", "10", 0, 0), ("a1", "0", 0, 0)]
    assert len({noise_seed(*case) for case in cases}) == len(cases)
    assert noise_seed("geneval", "00000", 0, 0) == 7382648967419111179  # never to change: runs hold it


def test_edits_in_the_models_size_and_in_their_own(drawn, sets, tmp_path):
    sizes = {name: Image.open(drawn / "imgedit" / "pictures" / f"{name}.png").size for name in ("10", "11")}
    scale = FACTOR // 8  # SIDE² pixels in the proportions of 96x64 and 50x70
    assert sizes == {"10": (80 * scale, 56 * scale), "11": (56 * scale, 72 * scale)}
    assert main(command(sets, tmp_path, "imgedit", "--edit-size", "own")) == 0
    sizes = {
        name: Image.open(tmp_path / "imgedit" / "pictures" / f"{name}.png").size for name in ("10", "11")
    }
    assert sizes == {"10": (96, 64), "11": (50, 70)}


def test_manifest_says_what_drew(drawn, sets):
    manifest = json.loads((drawn / "imgedit" / "manifest.json").read_text())
    settings = manifest["settings"]
    assert manifest["model"] == "nano" and len(settings["model"]) == len(settings["files"]) == 64
    assert (settings["dtype"], settings["device"], settings["steps"]) == ("float32", "cpu", 1)
    assert (settings["guidance"], settings["image_guidance"], settings["edit_size"]) == (4.5, 1.5, "model")
    assert set(settings["versions"]) == {"tbac-uniimage", "torch", "transformers", "diffusers"}
    text = json.loads((drawn / "dpg" / "manifest.json").read_text())["settings"]
    assert "image_guidance" not in text and text["size"] is None and text["files"] != settings["files"]


def test_what_is_there_is_kept_and_what_is_missing_drawn(drawn, sets, tmp_path, monkeypatch):
    from tbac_uniimage.training.evaluation import painting

    out = tmp_path / "out"
    shutil.copytree(drawn, out)
    gone = out / "geneval" / "pictures" / "00001" / "samples" / "0002.png"
    gone.unlink()
    (out / "dpg" / ".partial").mkdir()
    (out / "dpg" / ".partial" / "1.partial").write_bytes(b"half a pic")  # of a process that was killed
    painted, paint = [], painting.paint
    monkeypatch.setattr(
        painting, "paint", lambda p, name, item, way: painted.append(item.key) or paint(p, name, item, way)
    )
    assert main(command(sets, out, "geneval", "dpg")) == 0
    assert painted == ["00001"] and files(out) == files(drawn)


def test_a_part_of_a_set_is_spread_over_it_and_can_be_completed(drawn, sets, tmp_path):
    assert main(command(sets, tmp_path, "geneval", "--limit", "2")) == 0
    assert {path.name for path in (tmp_path / "geneval" / "pictures").iterdir()} == {"00000", "00001"}
    assert main(command(sets, tmp_path, "geneval")) == 0
    assert files(tmp_path / "geneval") == files(drawn / "geneval")


@pytest.mark.parametrize("world", [3, 4])
def test_more_processes_share_the_items_and_draw_the_same_files(world, drawn, sets, tmp_path):
    """Each process's share, one after the other, in any order."""
    from tbac_uniimage.training.evaluation import draw

    parser = ArgumentParser()
    draw.add_arguments(parser)
    options = parser.parse_args(arguments(sets, tmp_path, "geneval"))
    way, job = draw.way_of(options), draw.job_of(find("geneval"), options)
    [settings] = draw.all_settings([job], options, way, "cpu", "float32")
    pipeline = draw.load(options, "cpu", "float32")
    draw.begin(job, settings, options.model)
    for rank in reversed(range(world)):
        state = SimpleNamespace(process_index=rank, num_processes=world, is_main_process=rank == 0)
        draw.draw(job, settings, way, pipeline, state)
        if rank == 1:
            assert not (job.pictures / "00000" / "samples").exists()  # item 0 is the first process's
    draw.end(job)
    assert files(tmp_path / "geneval") == files(drawn / "geneval")


@pytest.mark.slow
def test_two_processes_that_were_killed_and_started_again_draw_the_same_files(drawn, sets, tmp_path):
    out, log, names = tmp_path / "out", tmp_path / "log", ("geneval", "imgedit")
    argv = arguments(sets, out, *names)
    processes = start(argv, log, 2, module="training.evaluation.draw")
    pictures = out / "geneval" / "pictures"
    wait_until(lambda: len(list(pictures.glob("*/samples/*.png"))) >= 1, processes, log)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert not (out / "imgedit" / "pictures" / "12.png").exists()
    assert finish(start(argv, log, 2, module="training.evaluation.draw")) == [0, 0], log.read_text()
    assert {name: files(out / name) for name in names} == {name: files(drawn / name) for name in names}


@pytest.mark.parametrize(
    "more, expected",
    [
        (["geneva"], "There is no set 'geneva'; there are "),
        (["geneval", "--model", "nowhere"], "There is no model at nowhere"),
        (["geneval", "--steps", "0"], "--steps: 0 is not possible"),
        (["geneval", "--size", "60"], f"The height 60 is no positive multiple of {FACTOR}; use "),
        (["gedit"], "gedit is not in"),
        (["geneval", "--device", "toaster"], "The device toaster is not there"),
    ],
)
def test_bad_input_writes_nothing(more, expected, sets, tmp_path, capsys):
    out = tmp_path / "out"
    assert expected in sentence(capsys, command(sets, out, *more[:1]) + more[1:])
    assert not out.exists()


@pytest.mark.parametrize(
    "more, expected",
    [
        (["--steps", "3"], "drawn with steps 1, not 3"),
        (["--seed", "1"], "drawn with seed 0, not 1"),
        (["--guidance", "2"], "drawn with guidance 4.5, not 2.0"),
        (["--dtype", "bfloat16"], "drawn with dtype float32, not bfloat16"),
    ],
)
def test_other_settings_are_refused(more, expected, drawn, sets, capsys):
    before = files(drawn)
    assert expected in sentence(capsys, [*command(sets, drawn, "dpg"), *more])
    assert files(drawn) == before


def test_another_model_is_refused(drawn, sets, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(NANO, other)
    scheduler = other / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text() + " ")
    argv = command(sets, drawn, "dpg")
    argv[argv.index("--model") + 1] = str(other)
    assert "holds pictures drawn with model " in sentence(capsys, argv)


def test_foreign_torn_and_unexplained_pictures_are_refused(drawn, sets, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(drawn / "dpg", out / "dpg")
    shot = out / "dpg" / "pictures" / "beta.png"
    content = shot.read_bytes()
    shutil.copy(out / "dpg" / "pictures" / "alpha.png", shot)
    assert "beta.png was drawn with item alpha, not beta" in sentence(capsys, command(sets, out, "dpg"))
    Image.new("RGB", (128, 128)).save(shot)
    assert "beta.png is no picture that was drawn here" in sentence(capsys, command(sets, out, "dpg"))
    shot.write_bytes(content[: len(content) * 2 // 3])
    assert "beta.png is torn" in sentence(capsys, command(sets, out, "dpg"))
    shot.write_bytes(content)
    (out / "dpg" / "manifest.json").unlink()
    assert "so nobody knows what drew them" in sentence(capsys, command(sets, out, "dpg"))


def test_a_changed_set_is_refused(sets, tmp_path, capsys):
    shutil.copytree(sets, tmp_path / "sets")
    [prompts] = (tmp_path / "sets").rglob("evaluation_metadata.jsonl")
    prompts.write_text(prompts.read_text().replace("bench", "chair"))
    said = sentence(capsys, command(tmp_path / "sets", tmp_path / "out", "geneval"))
    assert "was changed since it was fetched" in said and not (tmp_path / "out").exists()


def test_a_full_disk_ends_with_a_sentence_and_no_half_picture(drawn, sets, tmp_path, capsys, monkeypatch):
    from tbac_uniimage.training.evaluation import manifest

    def full(path: Path, content: bytes) -> None:
        write(path, content[:50])
        raise OSError(28, "No space left on device", str(path))

    write = Path.write_bytes
    assert main(command(sets, tmp_path, "dpg", "--limit", "1")) == 0
    before = files(tmp_path)
    monkeypatch.setattr(manifest.Path, "write_bytes", full)
    said = sentence(capsys, command(sets, tmp_path, "dpg"), code=5)
    assert "beta.png cannot be written (No space left on device); free some space" in said
    assert files(tmp_path) == before
