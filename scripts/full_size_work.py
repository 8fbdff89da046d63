"""What ``full_size.py`` measures and no command does: ``full_size_work.py NAME MODEL SCRATCH [WORD...]``."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from comfy_tree import ROOT
from process_costs import memory, reset_peak

GRAPHS = ROOT / "tests" / "data" / "workflows"
SCENE = ROOT / "assets" / "samples" / "tbac_uniimage_scene.png"
GRAPH_LIMIT_S = 3600.0


def write(model: Path, scratch: Path) -> None:
    """A random checkpoint where the model should be."""
    from random_checkpoint import write_random
    from tbac_uniimage.core.checkpoints import released_parts_on_meta
    from tbac_uniimage.core.checkpoints.tokenizers import find_tokenizer

    parts = released_parts_on_meta()
    parts.tokenizer = find_tokenizer(parts.mllm.config, [])
    write_random(parts, model, as_published=True)


def save(model: Path, scratch: Path) -> None:
    """Write the model as a pipeline folder."""
    from tbac_uniimage.core import LadderPipeline

    LadderPipeline.from_pretrained(model).save_pretrained(scratch / "pipeline")


def back(model: Path, scratch: Path) -> None:
    """Load that folder; all that the checkpoint holds is in it, bit for bit. It is removed then."""
    import torch
    from tbac_uniimage.core import LadderPipeline
    from tbac_uniimage.core.checkpoints.export import released_tensors
    from tbac_uniimage.core.checkpoints.naming import place_of, released_name
    from tbac_uniimage.core.checkpoints.weights import find_weights, read_tensors

    folder = scratch / "pipeline"
    mine = released_tensors(LadderPipeline.from_pretrained(folder, dtype="bfloat16"))
    infos = {released_name(place_of(name)): info for name, info in find_weights(model).items()}
    same = read_tensors(infos, lambda name, tensor: torch.tensor(torch.equal(tensor, mine[name])))
    other = [name for name, equal in same.items() if not equal]
    if other or same.keys() != mine.keys():
        sys.exit(f"{len(other)} tensors came back as others: {other[:5]}")
    shutil.rmtree(folder)


def lora(model: Path, scratch: Path, file: str) -> None:
    """Load a LoRA beside the weights."""
    from tbac_uniimage.core import LadderPipeline

    pipe = LadderPipeline.from_pretrained(model)
    pipe.load_lora_weights(file)
    print(pipe.get_list_adapters())


def comfyui(model: Path, scratch: Path, dtype: str, steps: str, device: str) -> None:
    """Load, draw and edit on one server; prints the costs of each graph as JSON."""
    import comfy_server
    import psutil

    folder = scratch / f"comfyui-{dtype}"
    paths = folder / "models.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    paths.write_text(json.dumps({"full_size": {"uniimage": str(model.parent)}}))  # JSON is YAML
    more = ["--extra-model-paths-config", str(paths), *(["--cpu"] if device == "cpu" else [])]
    with comfy_server.running_server(Path(os.environ["COMFYUI_PATH"]), folder, *more) as server:
        process = psutil.Process(server.pid)
        shutil.copy(SCENE, folder / "input")
        rows = []
        for name, graph in graphs(model.name, dtype, int(steps)):
            reset_peak(server.pid)
            before, start = (process.cpu_times(), process.io_counters()), time.monotonic()
            asyncio.run(comfy_server.run_graph(server, graph, limit_s=GRAPH_LIMIT_S))
            after = process.cpu_times(), process.io_counters()
            cpu = sum(after[0][:2]) - sum(before[0][:2])
            read = after[1].read_bytes - before[1].read_bytes
            rows.append((name, (time.monotonic() - start, cpu, memory("VmHWM", server.pid), read)))
    print(json.dumps(rows))


def graphs(checkpoint: str, dtype: str, steps: int) -> Iterator[tuple[str, dict]]:
    """Those of the demo with another model: ComfyUI keeps what the first loaded for the next."""
    own = {
        "TBACUniImageLoadModel": {"checkpoint": checkpoint, "weight_dtype": dtype},
        "TBACUniImageSampler": {"steps": steps},
    }
    for name in ("text_to_image", "image_edit"):
        graph = json.loads((GRAPHS / f"{name}.api.json").read_text())
        for node in graph.values():
            node["inputs"].update(own.get(node["class_type"], {}))
        if name == "text_to_image":
            latent = {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0], "filename_prefix": "empty"}}
            yield "load", {"1": graph["1"], "4": graph["4"], "8": latent}
        yield name.replace("_", " "), graph


WORK: dict[str, Callable[..., None]] = {
    "write": write,
    "save": save,
    "back": back,
    "lora": lora,
    "comfyui": comfyui,
}


if __name__ == "__main__":
    name, *paths = sys.argv[1:4]
    WORK[name](*map(Path, paths), *sys.argv[4:])
