"""The nodes about rungs, Ask and Save / Load Conditioning in a real ComfyUI server."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator

import aiohttp
import numpy as np
import pytest
from nano_models import OTHER, PROMPT, nano_pipe
from PIL import Image

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

TEXT_EVENT = 3  # ComfyUI's number for text that a node shows while it runs


@pytest.fixture(scope="module")
def server(comfy_tree, tmp_path_factory) -> Iterator:
    import comfy_server

    with comfy_server.running_server(comfy_tree, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def base() -> dict:
    """Model, two prompts and an empty latent."""
    return {
        "model": node("TBACUniImageLoadModel", checkpoint="nano (embedded)", weight_dtype="default"),
        "a": node("TBACUniImageEncode", mllm=["model", 1], prompt=PROMPT),
        "b": node("TBACUniImageEncode", mllm=["model", 1], prompt=OTHER),
        "latent": node("TBACUniImageEmptyLatent", model=["model", 0], width=0, height=0, batch_size=1),
    }


def sampler(**inputs: object) -> dict:
    given = {
        "model": ["model", 0],
        "positive": ["a", 0],
        "negative": ["a", 1],
        "latent": ["latent", 0],
        "seed": 7,
        "steps": 4,
        "guidance": 3.0,
        "image_guidance": 1.0,
    }
    return node("TBACUniImageSampler", **{**given, **inputs})


def saved(latent: str, name: str) -> dict:
    return {
        f"{name} decode": node("VAEDecode", samples=[latent, 0], vae=["model", 2]),
        f"{name} save": node("SaveImage", images=[f"{name} decode", 0], filename_prefix=name),
    }


def run(server, graph: dict):
    import comfy_server

    return asyncio.run(comfy_server.run_graph(server, graph))


def pixels(result, name: str) -> np.ndarray:
    [file] = result.images[f"{name} save"]
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def test_every_rung_node_in_one_graph(server):
    graph = base() | {
        "gains": node("TBACUniImageRungGains", model=["model", 0], preset="layout", amount=0.5, curve="6: 0"),
        "mix": node(
            "TBACUniImageRungMix", model=["model", 0], structure=["a", 0], style=["b", 0], crossover=0.5
        ),
        "one": sampler(gains=["gains", 1], positive=["mix", 0], sampler="euler", scheduler="simple"),
        "guider": node(
            "TBACUniImageGuider",
            model=["gains", 0],
            positive=["mix", 0],
            negative=["a", 1],
            layout=3.0,
            subject=3.0,
            detail=3.0,
            image_guidance=1.0,
        ),
        "noise": node("RandomNoise", noise_seed=7),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=4, denoise=1.0),
        "two": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["euler", 0],
            sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        ),
        "probe": node(
            "TBACUniImageProbe",
            model=["model", 0],
            vae=["model", 2],
            positive=["a", 0],
            negative=["a", 1],
            latent=["latent", 0],
            seed=7,
            steps=2,
            guidance=3.0,
            image_guidance=1.0,
        ),
        "sheet": node("SaveImage", images=["probe", 0], filename_prefix="sheet"),
        "chart": node("SaveImage", images=["gains", 2], filename_prefix="chart"),
    }
    result = run(server, graph | saved("one", "first") | saved("two", "second"))
    assert np.array_equal(pixels(result, "first"), pixels(result, "second"))
    assert pixels(result, "first").std() > 1
    assert len(result.images["probe"]) == 2 and len(result.images["gains"]) == 1  # shown on the nodes
    shown = server.folder / "temp" / "temp" / result.images["probe"][1].name
    assert Image.open(result.images["sheet"][0]).size == Image.open(shown).size


def test_a_saved_conditioning_draws_the_same_in_another_graph(server):
    graph = base() | {
        "keep": node(
            "TBACUniImageSaveConditioning", conditioning=["a", 0], filename_prefix="conditioning/apple"
        ),
        "one": sampler(),
    }
    first = run(server, graph | saved("one", "first"))
    del graph["keep"]
    graph["read"] = node(
        "TBACUniImageLoadConditioning", file="conditioning/apple_00001_.safetensors [output]"
    )
    graph["one"] = sampler(positive=["read", 0])
    assert np.array_equal(pixels(first, "first"), pixels(run(server, graph | saved("one", "first")), "first"))


def test_an_answer_arrives_word_by_word(server):
    async def listen() -> tuple[list[str], dict]:
        graph = base() | {
            "ask": node("TBACUniImageAsk", mllm=["model", 1], question="what is in this picture?"),
            "show": node("PreviewAny", source=["ask", 0]),
        }
        texts = []
        async with aiohttp.ClientSession(server.url) as session:
            async with session.ws_connect("/ws?clientId=listener") as socket:
                body = {"prompt": graph, "client_id": "listener"}
                async with session.post("/prompt", json=body) as reply:
                    number = (await reply.json())["prompt_id"]
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        kind, length = struct.unpack(">II", message.data[:8])
                        if kind == TEXT_EVENT:
                            assert message.data[8 : 8 + length] == b"ask"
                            texts.append(message.data[8 + length :].decode())
                        continue
                    event = json.loads(message.data)
                    if event["type"] == "executing" and event["data"]["node"] is None:
                        break
            async with session.get(f"/history/{number}") as reply:
                return texts, (await reply.json())[number]["outputs"]

    texts, outputs = asyncio.run(listen())
    expected = nano_pipe().ask(None, "what is in this picture?").text
    assert texts[-1] == expected and all(expected.startswith(text) for text in texts) and len(texts) >= 2
    assert outputs["ask"]["text"] == [expected] and outputs["show"]["text"] == [expected]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"one": sampler(guidance=float("nan"))}, "guidance is nan; give a number from 0 to 100"),
        ({"one": sampler(sampler="magic")}, "sampler is 'magic'; choose recipe, euler"),
        ({"one": sampler(denoise=float("inf"))}, "denoise is inf"),
        ({"one": sampler(guidance_start=0.9, guidance_end=0.1)}, "let it start before it ends"),
        (
            {"x": node("TBACUniImageRungGains", model=["model", 0], preset="layout", amount=float("nan"))},
            "amount is nan",
        ),
        ({"x": node("TBACUniImageAsk", mllm=["model", 1], question=" ")}, "The question is empty"),
        (
            {"x": node("TBACUniImageLoadConditioning", file="../../etc/passwd [output]")},
            "is no file inside ComfyUI's output folder",
        ),
        (
            {
                "x": node(
                    "TBACUniImageSaveConditioning", conditioning=["a", 0], filename_prefix="/elsewhere/x"
                )
            },
            "is no file inside ComfyUI's output folder",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_runs(server, changed, message):
    # a second output that is good would be drawn all the same
    graph = base() | changed | ({} if "x" in changed else saved("one", "first"))
    output = {"TBACUniImageRungGains": 2, "TBACUniImageLoadConditioning": 1, "TBACUniImageAsk": 0}
    if "x" in graph and graph["x"]["class_type"] in output:
        graph["y"] = node("PreviewAny", source=["x", output[graph["x"]["class_type"]]])
    with pytest.raises(ValueError) as caught:
        run(server, graph)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {
                "x": node(
                    "TBACUniImageRungGains", model=["model", 0], preset="even", amount=0.0, curve="9: 0"
                ),
                "one": sampler(gains=["x", 1]),
            },
            "The curve names rung 9; this model has 1 to 6",
        ),
        (
            {"x": node("TBACUniImageAsk", mllm=["model", 1], question="one two " * 9000, max_new_tokens=5)},
            "2048 is the most; shorten it",
        ),
        (
            {"latent": node("EmptyLatentImage", width=16, height=16, batch_size=1), "one": sampler(seed=9)},
            "",
        ),
    ],
)
def test_what_shows_only_while_running_is_one_sentence_and_the_next_prompt_works(server, changed, message):
    graph = base() | {"one": sampler()} | changed | saved("one", "first")
    if graph.get("x", {}).get("class_type") == "TBACUniImageAsk":
        graph["y"] = node("PreviewAny", source=["x", 0])
    if message:
        with pytest.raises(RuntimeError) as caught:
            run(server, graph)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    run(server, base() | {"one": sampler()} | saved("one", "first"))
