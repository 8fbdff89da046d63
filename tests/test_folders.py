"""A pipeline folder loads by diffusers alone, where this package is installed and its module may run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tbac_uniimage.core.pipeline import LadderPipeline

NANO = Path(__file__).resolve().parent.parent / "assets" / "nano"
LOAD = """
import sys
import torch
from diffusers import DiffusionPipeline
for folder, target in zip(sys.argv[1::2], sys.argv[2::2]):
    # what the diffusers backends of SGLang and vLLM-Omni call, with a class name as text the second way
    more = {"custom_pipeline": folder} if "text" in folder else {}
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, revision=None, **more).to("cpu")
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        picture = pipe(
            prompt="a cat", num_inference_steps=2, guidance_scale=3.0, height=64, width=64,
            num_images_per_prompt=2, output_type="pt", generator=torch.Generator("cpu").manual_seed(0),
        ).images
    torch.save(picture, target)
    print(type(pipe).__module__, type(pipe).__name__)
"""


@pytest.mark.slow
def test_diffusers_alone_loads_and_draws(checkpoint, tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # diffusers copies the module there
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folders = {NANO: tmp_path / "nano.pt", checkpoint: tmp_path / "saved.pt"}
    for folder in folders:
        index = json.loads((folder / "model_index.json").read_text())
        assert index["_class_name"] == ["pipeline", "LadderPipeline"]
        code = (folder / "pipeline.py").read_text()
        assert len(code.splitlines()) == 3 and "import LadderPipeline" in code
    text = Path(shutil.copytree(NANO, tmp_path / "text"))
    index = json.loads((text / "model_index.json").read_text())
    (text / "model_index.json").write_text(json.dumps(index | {"_class_name": "LadderPipeline"}))
    folders[text] = tmp_path / "text.pt"
    command = [sys.executable, "-c", LOAD, *(path for pair in folders.items() for path in pair)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["tbac_uniimage.core.pipeline", "LadderPipeline"] * 3
    for folder, drawn in folders.items():
        pipe = LadderPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 64, "width": 64}
        options |= {"num_images_per_prompt": 2, "output_type": "pt"}
        ours = pipe("a cat", generator=torch.Generator().manual_seed(0), **options).images
        torch.testing.assert_close(torch.load(drawn), ours, atol=1e-3, rtol=0)


def test_our_own_class_runs_no_module_of_a_folder(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    (folder / "pipeline.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert LadderPipeline.from_pretrained(folder).config.max_text_tokens > 0
    assert not (tmp_path / "ran").exists()
