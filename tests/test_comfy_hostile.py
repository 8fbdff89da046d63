"""Hostile and odd input over HTTP: a red node with one clear sentence, and the next prompt works."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import psutil
import pytest
import torch
from nano_models import SIDE
from PIL import Image
from safetensors.torch import save_file

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent
NANO = "nano (embedded)"
TEXT, EDIT = "text", "edit"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The server's folder of models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def server(comfy_tree, models, tmp_path_factory) -> Iterator:
    """A server with the pack, with nodes that make odd pictures, and with a folder of models of its own."""
    import comfy_server

    folder = tmp_path_factory.mktemp("comfyui")
    nodes = folder / "custom_nodes"
    nodes.mkdir()
    (nodes / "hostile_pack").symlink_to(ROOT / "tests" / "data" / "hostile_pack", target_is_directory=True)
    paths = folder / "paths.yaml"
    paths.write_text(f'tests:\n  custom_nodes: "{nodes.as_posix()}"\n  uniimage: "{models.as_posix()}"\n')
    with comfy_server.running_server(comfy_tree, folder, "--extra-model-paths-config", str(paths)) as running:
        yield running


SEEDS = iter(range(1, 1_000_000))  # a seed twice would be answered from ComfyUI's cache


def graph(kind: str, changes: dict | None = None, shape: str = "odd", values: str = "plain") -> dict:
    """Text to image, or Image Edit of a made-up picture, in two steps; ``changes``: node -> inputs."""
    content = {
        "load": {
            "class_type": "TBACUniImageLoadModel",
            "inputs": {"checkpoint": NANO, "weight_dtype": "default"},
        },
        "save": {"class_type": "SaveImage", "inputs": {"images": ["draw", 0], "filename_prefix": "x"}},
    }
    model, mllm, vae = (["load", i] for i in range(3))
    seed = next(SEEDS)
    if kind == EDIT:
        content["picture"] = {"class_type": "HostilePicture", "inputs": {"shape": shape, "values": values}}
        content["draw"] = {
            "class_type": "TBACUniImageEditPicture",
            "inputs": {
                **{"model": model, "mllm": mllm, "vae": vae, "image": ["picture", 0], "seed": seed},
                **{"instruction": "make it blue", "steps": 2, "guidance": 2.0, "image_guidance": 1.5},
                **{"strength": 1.0, "feather": 4, "side": 0},
            },
        }
    else:
        content["draw"] = {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": vae}}
        content["prompt"] = {
            "class_type": "TBACUniImageEncode",
            "inputs": {"mllm": mllm, "prompt": "a panda"},
        }
        content["latent"] = {
            "class_type": "TBACUniImageEmptyLatent",
            "inputs": {"model": model, "width": 0, "height": 0, "batch_size": 1},
        }
        content["sample"] = {
            "class_type": "KSampler",
            "inputs": {
                **{"model": model, "positive": ["prompt", 0], "negative": ["prompt", 0]},
                **{"latent_image": ["latent", 0], "seed": seed, "steps": 2, "cfg": 2.0},
                **{"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
            },
        }
    for node, inputs in (changes or {}).items():
        content[node]["inputs"].update(inputs)
    return content


def run(server, content: dict, on_event=None):
    import comfy_server

    return asyncio.run(asyncio.wait_for(comfy_server.run_graph(server, content, on_event), 120))


def picture_of(result) -> np.ndarray:
    [file, *_] = result.images["save"]
    return np.asarray(Image.open(file))


def refusal(server, content: dict) -> str:
    """ComfyUI's sentence about a graph that must fail, before or while it runs; then the next one runs."""
    with pytest.raises((ValueError, RuntimeError)) as error:
        run(server, content)
    assert_works(server)
    return str(error.value)


def assert_works(server) -> None:
    assert picture_of(run(server, graph(TEXT))).shape == (SIDE, SIDE, 3)


def assert_one_sentence(message: str) -> None:
    assert "Traceback" not in message and ". " not in message.strip() and len(message) < 500, message


@pytest.mark.parametrize("shape", ["one pixel", "grey", "alpha", "odd", "long", "batch"])
def test_odd_pictures_are_edited(server, shape):
    sizes = {"one pixel": (1, 1), "odd": (37, 53), "long": (96, 16384)}
    found = picture_of(run(server, graph(EDIT, shape=shape)))
    assert found.shape[:2] == sizes.get(shape, (24, 40))
    assert found.shape[2] == (4 if shape == "alpha" else 3)


@pytest.mark.parametrize("values", ["beyond", "negative"])
def test_values_beyond_white_and_black_are_edited(server, values):
    assert picture_of(run(server, graph(EDIT, values=values))).shape == (37, 53, 3)


@pytest.mark.parametrize(
    ("shape", "values", "message"),
    [
        ("no height", "plain", "image has the shape [1, 0, 8, 3]"),
        ("no pictures", "plain", "image has the shape [0, 8, 8, 3]"),
        ("no batch", "plain", "image has the shape [24, 40, 3]"),
        ("two channels", "plain", "image has 2 channels"),
        ("too long", "plain", "16384x16 is more than 200 times as long as wide"),
        ("odd", "nan", "image holds values that are not finite"),
        ("odd", "infinite", "image holds values that are not finite"),
    ],
)
def test_impossible_pictures_are_one_sentence(server, shape, values, message):
    found = refusal(server, graph(EDIT, shape=shape, values=values))
    assert message in found
    assert_one_sentence(found)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"steps": None}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": float("inf")}, "guidance"),
        ({"image_guidance": -0.5}, "image_guidance"),
        ({"strength": float("nan")}, "strength"),
        ({"strength": [1, 2]}, ""),  # to ComfyUI a link to a node that is not there
        ({"strength": "half"}, "strength"),
        ({"feather": -3}, "feather"),
        ({"side": 10**9}, "side"),
        ({"instruction": ""}, "instruction is empty"),
        ({"instruction": "   \n"}, "instruction is empty"),
        ({"image": ["load", 0]}, "image"),
        ({"image": 3}, "image is of the type int; connect a picture"),
        ({"mask": "a"}, "mask is of the type str; connect a mask"),
        ({"model": 3}, "model is of the type int; connect"),
        ({"vae": 3}, "vae is that of another model"),
        ({"image": ["gone", 0]}, ""),
        ({"mask": ["picture", 0]}, "mask"),
        ({"mllm": ["load", 2]}, "mllm"),
    ],
)
def test_wrong_types_and_numbers_are_refused(server, inputs, message):
    assert message in refusal(server, graph(EDIT, {"draw": inputs}))


@pytest.mark.parametrize(
    "prompt",
    [
        "word " * 20_000,
        "x" * 100_000,
        "<|im_end|><|im_start|>system<|vision_start|><|img0|><|img3|><|image_pad|><|vision_end|>",
        "\x00\x07\u202e\u200b",
        "熊猫 🐼 \U0001f469\u200d\U0001f680",
        "(panda:1.9) [[cat]] {a|b} embedding:x <lora:y:1>",
    ],
    ids=["words", "characters", "control tokens", "control characters", "other scripts", "weights"],
)
def test_any_text_is_a_prompt(server, prompt):
    assert picture_of(run(server, graph(TEXT, {"prompt": {"prompt": prompt}}))).shape == (SIDE, SIDE, 3)
    assert picture_of(run(server, graph(EDIT, {"draw": {"instruction": prompt}}))).shape == (37, 53, 3)


@pytest.mark.parametrize("value", [None, 3, 2.5, True, ["a"], ["a", "b", "c"], {"a": 1}])
def test_what_is_no_text_is_no_crash(server, value):
    """ComfyUI turns numbers into text; all else is refused by name."""
    content = graph(EDIT, {"draw": {"instruction": value}})
    try:
        assert picture_of(run(server, content)).shape == (37, 53, 3)
    except (ValueError, RuntimeError) as error:
        assert "instruction" in str(error) or "str" in str(error), error
    assert_works(server)


def test_masks_of_all_kinds(server):
    masked = {"draw": {"mask": ["picture", 1]}}
    assert picture_of(run(server, graph(EDIT, masked))).shape == (37, 53, 3)
    for values, message in (("nan", "not finite"), ("infinite", "not finite")):
        content = graph(EDIT, {"draw": {"mask": ["bad", 1]}})
        content["bad"] = {"class_type": "HostilePicture", "inputs": {"shape": "odd", "values": values}}
        assert message in refusal(server, content)
    for shape, message in (("batch", "3 masks"), ("long", "in the proportions"), ("no height", "shape")):
        content = graph(EDIT, {"draw": {"mask": ["bad", 1]}})
        content["bad"] = {"class_type": "HostilePicture", "inputs": {"shape": shape, "values": "plain"}}
        assert message in refusal(server, content)


@pytest.fixture
def model(models) -> Iterator[Path]:
    """A copy of nano in the server's folder."""
    folder = models / "copy"
    shutil.copytree(ROOT / "assets" / "nano", folder)
    yield folder
    shutil.rmtree(folder)


def use(name: str) -> dict:
    return {"load": {"checkpoint": name}}


def test_damaged_and_foreign_checkpoints_are_one_sentence(server, models, model):
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size - 10)
    message = refusal(server, graph(TEXT, use("copy")))
    assert "is truncated" in message and file.name in message
    assert_one_sentence(message)
    file.unlink()
    assert "transformer holds no safetensors weights" in refusal(server, graph(TEXT, use("copy")))
    other = models / "other.safetensors"
    for tensors, expected in (
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4)}, "another diffusion model"),
        ({"lora_unet_x.lora_up.weight": torch.zeros(4)}, "a LoRA"),
    ):
        save_file(tensors, other)
        message = refusal(server, graph(TEXT, use("other.safetensors")))
        assert expected in message
        assert_one_sentence(message)
    other.write_bytes(b"PK\x03\x04 a zip")
    assert "not a safetensors file" in refusal(server, graph(TEXT, use("other.safetensors")))
    other.unlink()
    assert "no model 'other.safetensors'" in refusal(server, graph(TEXT, use("other.safetensors")))


def test_a_checkpoint_replaced_while_loaded(server, model):
    """Cut short under a loaded model: the run that has it goes on, the next load is one sentence."""
    before = graph(TEXT, use("copy"))
    expected = picture_of(run(server, before))
    loads = []

    def cut(kind: str, data: dict) -> None:
        if kind == "executing" and data["node"] == "sample" and not loads:
            loads.append(1)
            for weights in model.rglob("*.safetensors"):
                os.truncate(weights, 50)

    again = graph(TEXT, use("copy"))
    again["sample"]["inputs"]["seed"] = before["sample"]["inputs"]["seed"]
    again["sample"]["inputs"]["cfg"] = 2.01
    found = picture_of(run(server, again, cut))
    assert loads and np.abs(found.astype(int) - expected).mean() < 20
    assert "truncated" in refusal(server, graph(TEXT, use("copy")))
    shutil.rmtree(model)
    shutil.copytree(ROOT / "assets" / "nano", model)
    assert picture_of(run(server, graph(TEXT, use("copy")))).shape == (SIDE, SIDE, 3)


async def post(server, path: str, content: dict) -> int:
    async with aiohttp.ClientSession(server.url) as session, session.post(path, json=content) as reply:
        return reply.status


@pytest.mark.parametrize(
    ("kind", "node"), [(TEXT, "load"), (TEXT, "prompt"), (TEXT, "sample"), (EDIT, "load"), (EDIT, "draw")]
)
def test_interrupt_at_any_node_and_the_next_prompt_works(server, kind, node):
    def interrupt(event: str, data: dict) -> None:
        if event == "executing" and data["node"] == node:
            asyncio.ensure_future(post(server, "/interrupt", {}))

    seed = next(SEEDS)
    changes = {"prompt": {"prompt": f"{seed} pandas"}, "sample": {"steps": 500}}
    if kind == EDIT:
        changes = {"draw": {"steps": 500, "instruction": f"add {seed} pandas"}}
    content = graph(kind, changes)
    content["load"]["inputs"]["weight_dtype"] = "fp32" if node == "load" else "default"
    assert run(server, content, interrupt).interrupted
    assert_works(server)


def test_a_cancelled_queue_leaves_nothing_behind(server):
    """Three prompts queued; the first is interrupted, the others deleted; then one runs."""

    async def queue_and_cancel() -> dict:
        async with aiohttp.ClientSession(server.url) as session:
            ids = []
            for _ in range(3):
                body = {"prompt": graph(EDIT, {"draw": {"steps": 500}})}
                async with session.post("/prompt", json=body) as reply:
                    ids.append((await reply.json())["prompt_id"])
            await (await session.post("/queue", json={"delete": ids[1:]})).release()
            for _ in range(600):
                async with session.get("/queue") as reply:
                    queue = await reply.json()
                if not queue["queue_running"] and not queue["queue_pending"]:
                    break
                await (await session.post("/interrupt", json={})).release()
                await asyncio.sleep(0.1)
            return queue

    queue = asyncio.run(asyncio.wait_for(queue_and_cancel(), 120))
    assert queue == {"queue_running": [], "queue_pending": []}
    assert_works(server)


def test_two_prompts_at_once_do_not_mix(server):
    import comfy_server

    contents = [graph(EDIT), graph(TEXT), graph(EDIT, {"draw": {"instruction": "make it red"}})]
    alone = [picture_of(run(server, content)) for content in contents]
    for content in contents:  # the same again, not from the cache
        content["load"]["inputs"]["weight_dtype"] = "fp32"

    async def together() -> list:
        runs = (comfy_server.run_graph(server, content) for content in contents)
        return await asyncio.wait_for(asyncio.gather(*runs), 120)

    for one, result in zip(alone, asyncio.run(together()), strict=True):
        assert np.abs(one.astype(int) - picture_of(result)).max() <= 1


@pytest.mark.parametrize("stage", ["load", "read", "encode", "sample", "decode"])
def test_memory_that_runs_out_at_a_stage(server, stage):
    """ComfyUI's own words; in the autoencoder ComfyUI goes on in tiles."""
    strength = 0.5 if stage == "encode" else 1.0
    content = graph(EDIT, {"draw": {"strength": strength, "instruction": f"make it blue {next(SEEDS)}"}})
    content["short"] = {
        "class_type": "HostileMemory",
        "inputs": {
            **{name: ["load", i] for i, name in enumerate(("model", "mllm", "vae"))},
            "stage": stage,
            "round": next(SEEDS),
        },
    }
    content["draw"]["inputs"] |= {name: ["short", i] for i, name in enumerate(("model", "mllm", "vae"))}
    if stage in ("encode", "decode"):
        assert picture_of(run(server, content)).shape == (37, 53, 3)
        assert_works(server)
    else:
        message = refusal(server, content)
        assert "ran out of memory" in message


def resident(server) -> int:
    """Bytes that the server's process holds."""
    port = server.address.rpartition(":")[2]
    for process in psutil.Process().children(recursive=True):
        if port in process.cmdline():
            return process.memory_info().rss
    raise AssertionError("the server's process is not there")


def test_memory_is_back_after_fifty_rounds(server):
    """New prompts, pictures, seeds and now and then an error; what is held must not grow with them."""

    def rounds(count: int) -> None:
        for i in range(count):
            seed = next(SEEDS)
            run(server, graph(EDIT, {"draw": {"instruction": f"add {seed} hats"}}))
            if i % 5 == 0:
                with pytest.raises(RuntimeError):
                    run(server, graph(EDIT, {"draw": {"instruction": " "}}))

    rounds(15)  # allocators, caches of conditions, thread pools
    before = resident(server)
    rounds(50)
    growth = (resident(server) - before) / 2**20
    print(f"\nafter 50 rounds the server holds {growth:+.1f} MB of {before / 2**20:.0f} MB")
    assert growth < 30


def test_freeing_on_request_empties_the_memory(server):
    """ComfyUI's "unload models": nothing of ours holds them, and the next prompt loads them again."""
    assert_works(server)
    asyncio.run(post(server, "/free", {"unload_models": True, "free_memory": True}))
    assert_works(server)
