"""Change Map and the automatic mask of Image Edit: the pipeline's own mask, and what stays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comfy_helpers import as_batch, largest
from PIL import Image

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]

ROOT = Path(__file__).resolve().parent.parent
SCENE = ROOT / "assets" / "samples" / "tbac_uniimage_scene.png"
TEXT = "remove the cactus"


@pytest.fixture(scope="module")
def nano(comfy):
    from tbac_uniimage.nodes.bridge import load_for_comfy
    from tbac_uniimage.nodes.loading import EMBEDDED_FOLDER

    names = ("model", "mllm", "vae")
    return SimpleNamespace(**dict(zip(names, load_for_comfy(EMBEDDED_FOLDER), strict=True)))


@pytest.fixture(scope="module")
def scene():
    return Image.open(SCENE).convert("RGB")


def change_map(parts, image, text=TEXT, **options):
    from tbac_uniimage.nodes.changes import LadderChangeMap

    return LadderChangeMap.execute(parts.model, parts.mllm, parts.vae, image, text, **options).result


def edit(parts, image, text=TEXT, steps=4, guidance=2.0, image_guidance=2.0, **options):
    from tbac_uniimage.nodes.editing import LadderEdit

    arguments = (parts.model, parts.mllm, parts.vae, image, text, 7, steps, guidance, image_guidance)
    return LadderEdit.execute(*arguments, **options).result


def test_the_map_is_the_pipelines(nano, scene):
    from tbac_uniimage.core import LadderPipeline

    mask, shown, picture = change_map(nano, as_batch(scene))
    found = LadderPipeline.from_pretrained(ROOT / "assets" / "nano").change_map(TEXT, scene)
    assert np.array_equal(mask[0].numpy() > 0, np.asarray(found.masks[0]) > 0)
    assert 0 < mask.mean() < 0.6 and set(mask.unique().tolist()) == {0.0, 1.0}
    cells = torch.nn.functional.interpolate(found.maps[0][None, None], scene.size, mode="bilinear")[0]
    assert largest(shown, cells) < 1e-3
    assert largest(picture, as_batch(scene)) > 0.1


def test_the_automatic_mask_is_that_of_the_change_map(nano, scene):
    picture = as_batch(scene.resize((61, 61)))
    mask = change_map(nano, picture)[0]
    edited, used = edit(nano, picture, feather=0, mask_from="automatic")
    assert torch.equal(used, mask) and mask.shape == (1, 61, 61) and 0 < mask.mean() < 0.6
    assert torch.equal(edited[mask == 0], picture[mask == 0])
    by_hand, same = edit(nano, picture, feather=0, mask=mask)
    assert torch.equal(same, mask)
    changed = (edited != picture).any(-1)
    assert torch.equal(by_hand[changed], edited[changed])
    left = (mask > 0) & ~changed  # drawn again much as it was
    assert changed.float().mean() > 0.05 and left.float().mean() > 0.05
    difference = (by_hand - picture).abs()
    assert difference[left].mean() < difference[changed].mean() / 2


def test_an_instruction_that_says_nothing_changes_no_pixel(nano, scene):
    """As does one that is steered away from: the map is zero everywhere and the mask empty."""
    both = torch.cat([as_batch(scene), as_batch(scene).flip(2)])
    edited, used = edit(nano, both, text=TEXT, negative_prompt=TEXT, mask_from="automatic")
    assert torch.equal(edited, both) and not used.any()


def test_choices_of_the_mask(nano, scene):
    picture = as_batch(scene)
    half, middle = torch.zeros(picture.shape[:3]), scene.width // 2
    half[..., middle:] = 1
    plain, white = edit(nano, picture)
    assert torch.equal(white, torch.ones(picture.shape[:3]))
    assert torch.equal(edit(nano, picture, mask=half, mask_from="none")[0], plain)
    connected = edit(nano, picture, mask=half)[0]
    assert torch.equal(edit(nano, picture, mask=half, mask_from="as connected")[0], connected)
    assert torch.equal(connected[:, :, :middle], picture[:, :, :middle])
    assert not torch.equal(connected, plain)


def test_maps_of_a_batch_do_not_depend_on_each_other(nano, scene):
    picture = as_batch(scene)
    batch = torch.cat([picture, picture.flip(2), torch.rand(picture.shape)])
    masks, maps, _ = change_map(nano, batch)
    for i in range(3):
        alone = change_map(nano, batch[i : i + 1])
        assert torch.equal(masks[i], alone[0][0]) and torch.equal(maps[i], alone[1][0])
    assert not torch.equal(maps[0], maps[1])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_without_guidance_the_mask_is_the_same(nano, scene, guidance):
    picture = as_batch(scene)
    used = edit(nano, picture, steps=1, guidance=guidance, image_guidance=1.0, mask_from="automatic")[1]
    assert torch.equal(used, change_map(nano, picture)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": " "}, "The instruction is empty"),
        ({"image": torch.full((1, 8, 8, 3), torch.nan)}, "image holds values that are not finite"),
        ({"image_2": torch.zeros(3, 8, 8, 3)}, "image_2 holds 3 pictures for 2 edits"),
    ],
)
def test_bad_input_is_one_sentence(nano, monkeypatch, changes, message):
    from tbac_uniimage.nodes.mllm import LadderMLLM

    monkeypatch.setattr(LadderMLLM, "encode", lambda *_: pytest.fail("encoded"))
    with pytest.raises(ValueError) as error:
        change_map(nano, **{"image": torch.rand(2, 40, 40, 3)} | changes)
    assert message in str(error.value)


def test_old_graphs_have_no_choice_and_the_same_face():
    """Widgets are told by their place in a saved graph: what was there stays where it was."""
    from tbac_uniimage.core.crops import CONTEXT
    from tbac_uniimage.nodes.editing import LadderEdit

    schema = LadderEdit.define_schema()
    choice, context, few = schema.inputs[-3:]
    assert (choice.id, choice.default, choice.optional) == ("mask_from", "as connected", True)
    assert (context.id, context.default, context.optional) == ("context", CONTEXT, True)
    assert (few.id, few.default, few.optional) == ("few_steps", "off", True)
    assert [output.display_name for output in schema.outputs] == ["image", "mask"]
