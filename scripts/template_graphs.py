"""What is in every template: nodes, settings, and places. ``make_templates.py`` writes the files."""

from __future__ import annotations

from dataclasses import dataclass, field

Link = tuple[int, int]
Value = str | int | float | bool | Link

NANO = {"checkpoint": "nano (embedded)", "weight_dtype": "default"}
ENLARGE = {"upscale_method": "bicubic", "width": 512, "height": 0, "crop": "disabled"}
SIZE = {"width": 0, "height": 0, "batch_size": 1}
SHEET = (520, 456)  # a node that shows a contact sheet
EDIT = {"steps": 30, "guidance": 2.0, "image_guidance": 2.0}


@dataclass
class Node:
    """A node of a template: its class, its place, and what is set or connected."""

    kind: str
    column: int
    inputs: dict[str, Value] = field(default_factory=dict)
    title: str = ""
    size: tuple[int, int] = (0, 0)  # at least; samplers have room for their preview
    collapsed: bool = False


@dataclass
class Template:
    """A graph. Nodes are numbered from 1 in their order; groups name a title and the columns it spans.

    Its note stands at the foot of a column. A column may begin lower than the first, by ``drops`` pixels, so
    that links to what stands right of it run above it and not behind.
    """

    nodes: list[Node]
    groups: list[tuple[str, int, int]]
    drops: tuple[int, ...] = ()
    note_column: int = 0
    note_size: tuple[int, int] = (360, 250)


def load(column: int = 0) -> Node:
    """Load Model with the embedded model."""
    return Node("TBACUniImageLoadModel", column, NANO, size=(360, 200))


def sampler(
    column: int, conditions: tuple[Link, ...], latent: Link, title: str = "", **settings: Value
) -> Node:
    """Ladder Sampler, folded if it has a title. ``conditions``: positive, negative, image_only."""
    named = dict(zip(("positive", "negative", "image_only"), conditions, strict=False))
    settings = {"seed": 7, "steps": 30, "guidance": 4.5, "image_guidance": 1.5, **settings}
    inputs = {"model": (1, 0), **named, "latent": latent, **settings}
    return Node("TBACUniImageSampler", column, inputs, title, (330, 690), collapsed=bool(title))


def empty(column: int) -> Node:
    """Empty Ladder Latent at the model's own size."""
    return Node("TBACUniImageEmptyLatent", column, {"model": (1, 0), **SIZE}, size=(240, 160))


def stored(column: int, name: str, title: str) -> Node:
    """Load Conditioning with one of the samples."""
    inputs = {"file": f"conditioning/tbac_uniimage_{name}.safetensors [input]"}
    return Node("TBACUniImageLoadConditioning", column, inputs, title, (430, 220))


def decode(column: int, latent: Link, collapsed: bool = False) -> Node:
    """VAE Decode with the VAE of node 1."""
    inputs = {"samples": latent, "vae": (1, 2)}
    return Node("VAEDecode", column, inputs, size=(240, 60), collapsed=collapsed)


def enlarge(column: int, image: Link, collapsed: bool = False) -> Node:
    """A picture at a size to look at."""
    return Node("ImageScale", column, {"image": image, **ENLARGE}, "Enlarge", (240, 160), collapsed)


def save(column: int, image: Link, name: str, title: str = "", size: tuple[int, int] = (400, 460)) -> Node:
    """Save Image, with room for a square picture."""
    inputs = {"images": image, "filename_prefix": name}
    return Node("SaveImage", column, inputs, title, size)


def picture(column: int, name: str, title: str = "") -> Node:
    """Load Image with one of the samples."""
    return Node("LoadImage", column, {"image": name}, title, (320, 330))


def encode(column: int, prompt: str, title: str = "", **pictures: Link) -> Node:
    """Multi-Layer MLLM Encode."""
    inputs = {"mllm": (1, 1), **pictures, "prompt": prompt, "negative_prompt": ""}
    return Node("TBACUniImageEncode", column, inputs, title, (380, 300))


def edit(column: int, image: Link, instruction: Value, **more: Value) -> Node:
    """Image Edit."""
    parts = {"model": (1, 0), "mllm": (1, 1), "vae": (1, 2), "image": image, "instruction": instruction}
    inputs = {**parts, "seed": 7, **EDIT, **more}
    return Node("TBACUniImageEditPicture", column, inputs, size=(400, 820))


DOG_AND_ROCKET = "a dog to the left of a rocket on a blue background"

TEMPLATES = {
    "text_to_image": Template(
        [
            load(),
            encode(1, DOG_AND_ROCKET, "Prompt"),
            empty(1),
            sampler(2, ((2, 0), (2, 1)), (3, 0)),
            decode(3, (4, 0)),
            enlarge(3, (5, 0)),
            save(3, (6, 0), "tbac/text_to_image"),
        ],
        [("Model", 0, 0), ("Prompt", 1, 1), ("Picture", 2, 3)],
        drops=(0, 230, 110, 0),
    ),
    "edit_by_instruction": Template(
        [
            load(),
            picture(0, "tbac_uniimage_dog_and_rocket.png"),
            edit(1, (2, 0), "replace the rocket with a mushroom"),
            save(2, (3, 0), "tbac/edit"),
        ],
        [("Model and source", 0, 0), ("Edit", 1, 2)],
    ),
    "masked_edit": Template(
        [
            load(),
            picture(0, "tbac_uniimage_masked.png", "Picture with a mask"),
            edit(1, (2, 0), "replace the rocket with a mushroom", mask=(2, 1)),
            save(2, (3, 0), "tbac/masked_edit"),
        ],
        [("Model and source", 0, 0), ("Edit", 1, 2)],
    ),
    "two_image_composition": Template(
        [
            load(),
            picture(0, "tbac_uniimage_cat.png", "First picture"),
            picture(0, "tbac_uniimage_car.png", "Second picture"),
            encode(1, "a cat to the left of a car on white", "Sentence", image=(2, 0), image_2=(3, 0)),
            empty(1),
            sampler(2, ((4, 0), (4, 1), (4, 2)), (5, 0), guidance=3.0),
            decode(3, (6, 0)),
            enlarge(3, (7, 0)),
            save(3, (8, 0), "tbac/composition"),
        ],
        [("Model and sources", 0, 0), ("Sentence", 1, 1), ("Picture", 2, 3)],
        drops=(0, 230, 110, 0),
        note_column=1,
    ),
    "structure_and_style": Template(
        [
            load(1),
            encode(1, "a panda above a car on a blue background", "Structure"),
            encode(1, "two hearts on a yellow background", "Style"),
            empty(1),
            Node("PrimitiveInt", 1, {"value": 7}, "Seed of all three"),
            sampler(2, ((2, 0), (2, 1)), (4, 0), "Structure alone", seed=(5, 0)),
            sampler(2, ((3, 0), (3, 1)), (4, 0), "Style alone", seed=(5, 0)),
            Node("LatentBatch", 3, {"samples1": (6, 0), "samples2": (7, 0)}, "Both", collapsed=True),
            decode(3, (8, 0), collapsed=True),
            enlarge(3, (9, 0), collapsed=True),
            Node("PreviewImage", 3, {"images": (10, 0)}, "Structure alone, style alone", (420, 270)),
            Node(
                "TBACUniImageRungMix",
                2,
                {"model": (1, 0), "structure": (2, 0), "style": (3, 0), "crossover": 0.67, "softness": 0.0},
                size=(330, 170),
            ),
            sampler(2, ((12, 0), (2, 1)), (4, 0), seed=(5, 0)),
            decode(3, (13, 0), collapsed=True),
            enlarge(3, (14, 0), collapsed=True),
            save(3, (15, 0), "tbac/structure_and_style", "Mix"),
        ],
        [("About", 0, 0), ("Model, prompts, size, seed", 1, 1), ("Each alone, and the mix", 2, 3)],
        drops=(0, 0, 110, 0),
    ),
    "batch_edit_of_a_folder": Template(
        [
            load(),
            Node(
                "LoadImageDataSetFromFolder",
                0,
                {"folder": "tbac_uniimage"},
                "Folder in ComfyUI's input folder",
                (340, 100),
            ),
            edit(1, (2, 0), "change the background to pink"),
            save(2, (3, 0), "tbac/batch", size=(420, 480)),
        ],
        [("Model and folder", 0, 0), ("Edit", 1, 2)],
    ),
    "native_ksampler": Template(
        [
            load(),
            encode(1, "three stars on white", "Prompt"),
            empty(1),
            Node(
                "KSampler",
                2,
                {
                    "model": (1, 0),
                    "positive": (2, 0),
                    "negative": (2, 1),
                    "latent_image": (3, 0),
                    "seed": 7,
                    "steps": 30,
                    "cfg": 4.5,
                    "sampler_name": "dpmpp_2m",
                    "scheduler": "simple",
                    "denoise": 1.0,
                },
                size=(330, 540),
            ),
            decode(3, (4, 0)),
            enlarge(3, (5, 0)),
            save(3, (6, 0), "tbac/native_ksampler"),
        ],
        [("Model", 0, 0), ("Prompt", 1, 1), ("ComfyUI's own nodes", 2, 3)],
        drops=(0, 230, 110, 0),
    ),
    "ask_then_edit": Template(
        [
            load(),
            picture(0, "tbac_uniimage_cat.png"),
            Node(
                "TBACUniImageAsk",
                1,
                {"mllm": (1, 1), "question": "what is it?", "image": (2, 0), "max_new_tokens": 64},
                size=(380, 330),
            ),
            Node(
                "RegexReplace",
                1,
                {
                    "string": (3, 0),
                    "regex_pattern": r"^an? (.+)$",  # "a cat": instructions say "the cat"
                    "replace": r"replace the \1 with a rocket",
                },
                "Instruction",
                (380, 320),
            ),
            Node("PreviewAny", 1, {"source": (4, 0)}, "The instruction that is sent", (380, 160)),
            edit(2, (2, 0), (4, 0)),
            save(3, (6, 0), "tbac/ask_then_edit"),
        ],
        [("Model and source", 0, 0), ("Question", 1, 1), ("Edit", 2, 3)],
        drops=(0, 320, 0, 0),
    ),
    "ladder_probe": Template(
        [
            load(),
            encode(1, DOG_AND_ROCKET, "Prompt"),
            empty(1),
            Node(
                "TBACUniImageProbe",
                2,
                {
                    "model": (1, 0),
                    "vae": (1, 2),
                    "positive": (2, 0),
                    "negative": (2, 1),
                    "latent": (3, 0),
                    "seed": 7,
                    "steps": 15,
                    "guidance": 4.5,
                },
                size=(460, 964),
            ),
            save(3, (4, 0), "tbac/probe_muted", "Each rung muted", SHEET),
            save(3, (4, 1), "tbac/probe_attention", "Where each rung looks", SHEET),
        ],
        [("Model", 0, 0), ("Prompt", 1, 1), ("Probe", 2, 3)],
        drops=(0, 170, 0, 0),
    ),
    "edit_in_parts": Template(
        [
            load(),
            picture(0, "tbac_uniimage_cat.png"),
            Node(
                "TBACUniImageEdit",
                1,
                {
                    "mllm": (1, 1),
                    "instruction": "make the cat blue",
                    "image": (2, 0),
                    "negative_prompt": "",
                    "side": 0,
                },
                size=(380, 320),
            ),
            sampler(2, ((3, 0), (3, 2), (3, 1)), (3, 3), guidance=2.0, image_guidance=2.0),
            decode(3, (4, 0)),
            enlarge(3, (5, 0)),
            save(3, (6, 0), "tbac/edit_in_parts"),
        ],
        [("Model and source", 0, 0), ("Instruction", 1, 1), ("Picture", 2, 3)],
        drops=(0, 230, 110, 0),
    ),
    "stored_conditions": Template(
        [
            load(),
            stored(1, "dog_and_rocket", "Prompt"),
            stored(1, "nothing", "Negative"),
            empty(1),
            sampler(2, ((2, 0), (3, 0)), (4, 0)),
            decode(3, (5, 0)),
            enlarge(3, (6, 0)),
            save(3, (7, 0), "tbac/stored_conditions"),
        ],
        [("Model", 0, 0), ("Stored conditions", 1, 1), ("Picture", 2, 3)],
        drops=(0, 230, 110, 0),
    ),
}
