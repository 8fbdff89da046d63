"""What is in every template: nodes, settings, and places. ``make_templates.py`` writes the files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

Link = tuple[int, int]
Value = str | int | float | bool | Link

NANO = {"checkpoint": "nano (embedded)", "weight_dtype": "default"}
FOUR_STEPS = {"lora_name": "tbac_uniimage_nano_few_steps.safetensors", "strength_model": 1.0}
ENLARGE = {"upscale_method": "bicubic", "width": 512, "height": 0, "crop": "disabled"}
SIZE = {"width": 0, "height": 0, "batch_size": 1}
SHEET = (520, 456)  # a node that shows a contact sheet
PARTS = {"model": (1, 0), "mllm": (1, 1), "vae": (1, 2)}  # of Load Model, the first node
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
    above: bool = False  # the first of its column, wherever it comes in the order
    optional: bool = False  # left out by a ComfyUI that does not have it


@dataclass
class Fold:
    """Nodes of a template, by number, that one node stands for: a subgraph.

    What comes from outside are its first inputs. Below them it shows the values ``shown``: node, input, name;
    and ``seed``, a widget of a node with what happens to it after a run. ``outputs`` names what it hands out
    by the node that it comes from. Inside, columns are counted anew.
    """

    title: str
    inside: list[int]
    shown: list[tuple[int, str, str]]
    seed: tuple[int, str] | None = None
    column: int = 0
    size: tuple[int, int] = (0, 0)
    outputs: dict[int, str] = field(default_factory=dict)
    drops: tuple[int, ...] = ()
    collapsed: bool = False
    above: bool = False


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
    folded: Fold | None = None


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


def picture(column: int, name: str, title: str = "", above: bool = False) -> Node:
    """Load Image with one of the samples."""
    return Node("LoadImage", column, {"image": name}, title, (320, 330), above=above)


def encode(column: int, prompt: str, title: str = "", **pictures: Link) -> Node:
    """Multi-Layer MLLM Encode."""
    inputs = {"mllm": (1, 1), **pictures, "prompt": prompt, "negative_prompt": ""}
    return Node("TBACUniImageEncode", column, inputs, title, (380, 300))


def edit(column: int, image: Link, instruction: Value, **more: Value) -> Node:
    """Image Edit."""
    inputs = {**PARTS, "image": image, "instruction": instruction, "seed": 7, **EDIT, **more}
    return Node("TBACUniImageEditPicture", column, inputs, size=(400, 820))


def compare(column: int, before: Link, after: Link) -> Node:
    """Compare Images of newer ComfyUI: a slider between two pictures. In a column and a group of its own."""
    inputs = {"image_a": before, "image_b": after}
    return Node("ImageCompare", column, inputs, size=(420, 480), optional=True)


COMPARED = "Before and after"
CLOSE_UP = {"width": 320, "height": 320, "x": 1100, "y": 30}  # around the mask of the large picture
MUSHROOM = "replace the rocket with a mushroom"
DOG_AND_ROCKET = "a dog to the left of a rocket on a blue background"
# a template and a blueprint
TEXT_TO_PICTURE = [
    load(),
    encode(1, DOG_AND_ROCKET),
    empty(1),
    sampler(2, ((2, 0), (2, 1)), (3, 0)),
    decode(3, (4, 0)),
]
TEXT_TO_PICTURE_FOLD = Fold(
    "Text to Image (TBAC-UniImage)",
    [1, 2, 3, 4, 5],
    [
        (2, "prompt", "prompt"),
        (1, "checkpoint", "checkpoint"),
        (3, "width", "width"),
        (3, "height", "height"),
        (4, "steps", "steps"),
        (4, "guidance", "guidance"),
    ],
    seed=(4, "seed"),
)

TEMPLATES = {
    "text_to_image": Template(
        [
            *TEXT_TO_PICTURE,
            enlarge(1, (5, 0)),
            save(1, (6, 0), "tbac/text_to_image"),
        ],
        [("Prompt", 0, 0), ("Picture", 1, 1)],
        folded=replace(TEXT_TO_PICTURE_FOLD, size=(400, 600), drops=(0, 230, 110, 0)),
    ),
    "edit_by_instruction": Template(
        [
            load(),
            picture(0, "tbac_uniimage_dog_and_rocket.png", above=True),
            edit(1, (2, 0), "replace the rocket with a mushroom"),
            save(2, (3, 0), "tbac/edit"),
            compare(3, (2, 0), (3, 0)),
        ],
        [("Model and source", 0, 0), ("Edit", 1, 2), (COMPARED, 3, 3)],
        drops=(0, 120, 200, 0),
    ),
    "masked_edit": Template(
        [
            load(),
            picture(0, "tbac_uniimage_masked.png", "Picture with a mask", above=True),
            edit(1, (2, 0), "replace the rocket with a mushroom", mask=(2, 1)),
            save(2, (3, 0), "tbac/masked_edit"),
            compare(3, (2, 0), (3, 0)),
        ],
        [("Model and source", 0, 0), ("Edit", 1, 2), (COMPARED, 3, 3)],
        drops=(0, 120, 200, 0),
    ),
    "two_image_composition": Template(
        [
            load(),
            picture(0, "tbac_uniimage_cat.png", "First picture"),
            picture(0, "tbac_uniimage_car.png", "Second picture"),
            encode(1, "replace the cat with a car", image=(2, 0), image_2=(3, 0), vae=(1, 2)),
            empty(1),
            sampler(2, ((4, 0), (4, 1), (4, 2)), (5, 0), guidance=2.0, image_guidance=2.0),
            decode(3, (6, 0)),
            enlarge(2, (7, 0)),
            save(2, (8, 0), "tbac/composition"),
        ],
        [("Sources", 0, 0), ("Sentence", 1, 1), ("Picture", 2, 2)],
        note_column=1,
        folded=Fold(
            "Two Pictures in One (TBAC-UniImage)",
            [1, 4, 5, 6, 7],
            [
                (4, "prompt", "prompt"),
                (1, "checkpoint", "checkpoint"),
                (6, "steps", "steps"),
                (6, "guidance", "guidance"),
                (6, "image_guidance", "image_guidance"),
            ],
            seed=(6, "seed"),
            column=1,
            size=(400, 680),
            drops=(0, 230, 110, 0),
        ),
    ),
    "structure_and_style": Template(
        [
            load(),
            encode(1, "a panda above a car on a blue background", "Structure"),
            encode(1, "two hearts on a yellow background", "Style"),
            empty(1),
            Node("PrimitiveInt", 0, {"value": 7}, "Seed of all three"),
            sampler(2, ((2, 0), (2, 1)), (4, 0), "Structure alone", seed=(5, 0)),
            sampler(2, ((3, 0), (3, 1)), (4, 0), "Style alone", seed=(5, 0)),
            Node("LatentBatch", 3, {"samples1": (6, 0), "samples2": (7, 0)}, "Both", collapsed=True),
            decode(3, (8, 0), collapsed=True),
            enlarge(3, (9, 0), collapsed=True),
            Node("PreviewImage", 1, {"images": (10, 0)}, "Structure alone, style alone", (420, 270)),
            Node(
                "TBACUniImageRungMix",
                2,
                {"model": (1, 0), "structure": (2, 0), "style": (3, 0), "crossover": 0.67, "softness": 0.0},
                size=(330, 170),
            ),
            sampler(2, ((12, 0), (2, 1)), (4, 0), seed=(5, 0)),
            decode(3, (13, 0), collapsed=True),
            enlarge(3, (14, 0), collapsed=True),
            save(1, (15, 0), "tbac/structure_and_style", "Mix"),
        ],
        [("Two prompts", 0, 0), ("Each alone, and the mix", 1, 1)],
        folded=Fold(
            "Structure and Style (TBAC-UniImage)",
            [1, 2, 3, 4, *range(6, 11), *range(12, 16)],
            [
                (2, "prompt", "structure"),
                (3, "prompt", "style"),
                (12, "crossover", "crossover"),
                (12, "softness", "softness"),
                (1, "checkpoint", "checkpoint"),
            ],
            size=(400, 560),
            outputs={10: "alone", 15: "mix"},
            drops=(0, 230, 110, 0),
        ),
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
    "four_steps": Template(
        [
            load(),
            Node("LoraLoaderModelOnly", 0, {"model": (1, 0), **FOUR_STEPS}, size=(360, 110)),
            encode(1, DOG_AND_ROCKET),
            empty(1),
            sampler(2, ((3, 0), (3, 1)), (4, 0), model=(2, 0), few_steps="4"),
            decode(3, (5, 0)),
            enlarge(3, (6, 0)),
            save(3, (7, 0), "tbac/four_steps"),
        ],
        [("Model with its LoRA", 0, 0), ("Prompt", 1, 1), ("Four steps", 2, 3)],
        drops=(0, 350, 110, 0),
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
                    "vae": (1, 2),
                },
                size=(380, 340),
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
            stored(0, "dog_and_rocket", "Prompt"),
            stored(0, "nothing", "Negative"),
            empty(1),
            sampler(2, ((2, 0), (3, 0)), (4, 0)),
            decode(3, (5, 0)),
            enlarge(2, (6, 0)),
            save(2, (7, 0), "tbac/stored_conditions"),
        ],
        [("Stored conditions", 0, 0), ("Draw", 1, 1), ("Picture", 2, 2)],
        folded=Fold(
            "Draw from Conditions (TBAC-UniImage)",
            [1, 4, 5, 6],
            [
                (1, "checkpoint", "checkpoint"),
                (4, "width", "width"),
                (4, "height", "height"),
                (5, "steps", "steps"),
                (5, "guidance", "guidance"),
            ],
            seed=(5, "seed"),
            column=1,
            size=(360, 560),
            drops=(0, 230, 110, 0),
        ),
    ),
    "edit_without_a_mask": Template(
        [
            load(),
            picture(0, "tbac_uniimage_dog_and_rocket.png", above=True),
            Node("PrimitiveStringMultiline", 0, {"value": MUSHROOM}, "Instruction", (360, 120)),
            Node(
                "TBACUniImageChangeMap",
                1,
                {**PARTS, "image": (2, 0), "instruction": (3, 0), "negative_prompt": ""},
                size=(400, 680),
            ),
            edit(2, (2, 0), (3, 0), mask_from="automatic"),
            save(3, (5, 0), "tbac/edit_without_a_mask"),
            compare(4, (2, 0), (5, 0)),
        ],
        [("Model, source, instruction", 0, 0), ("Where it changes", 1, 1), ("Edit", 2, 3), (COMPARED, 4, 4)],
        drops=(0, 760, 120, 200, 0),  # so low that what goes to Image Edit passes above Change Map
    ),
    "small_thing": Template(
        [
            load(),
            picture(0, "tbac_uniimage_small_thing.png", "Large picture with a mask", above=True),
            edit(1, (2, 0), "replace the balloon with a panda", mask=(2, 1), context=0.2),
            save(2, (3, 0), "tbac/small_thing", size=(460, 400)),
            Node("ImageCrop", 2, {"image": (3, 0), **CLOSE_UP}, "Cut out to look at", collapsed=True),
            Node("PreviewImage", 2, {"images": (5, 0)}, "Close-up", (460, 400)),
            compare(3, (2, 0), (3, 0)),
        ],
        [("Model and source", 0, 0), ("Edit", 1, 2), (COMPARED, 3, 3)],
        drops=(0, 120, 200, 0),
    ),
}
