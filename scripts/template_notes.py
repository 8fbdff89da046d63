"""What the note in every template says. No inline code: Nodes 2.0 draws it dark on dark."""

from __future__ import annotations

OTHER_MODEL = (
    "**Another model**: put it into *models/uniimage*, press R, and choose it in *Load Model*. The nano "
    "model knows 128-pixel scenes of a few objects and nothing else."
)
OPENED = "The button in the node's corner, or *Enter subgraph* at its foot, opens it: "
INSIDE = OPENED + "encoder, sampler and decoder stand inside."
ENLARGED = "*Enlarge* is there because nano draws 128 pixels; bypass it (Ctrl+B) for a larger model."

NOTES = {
    "text_to_image": (
        "### A sentence becomes a picture\n\n"
        "**Change** the prompt. For nano: *three stars on white*, *a cat above a blue car on pink*, *a flat "
        'illustration of a frog*, *the word "HELLO" on green*.\n\n'
        "Every Run has a new seed, unless *control after generate* is *fixed*: below the seed, on newer "
        "pages at the sampler inside.\n\n"
        "Width and height 0 are the size that the model was trained at. " + ENLARGED + "\n\n" + INSIDE
    ),
    "edit_by_instruction": (
        "### A sentence changes a picture\n\n"
        "**Change** the picture and the instruction. For nano: *replace the dog with a cat*, *make the "
        "rocket red*, *turn it into a cartoon*, *change the background to pink*.\n\n"
        "**guidance** follows the instruction, **image_guidance** keeps to the picture. The result has "
        "the picture's size. In newer ComfyUI with Nodes 2.0 *Compare Images* lays one over the other."
    ),
    "masked_edit": (
        "### Only what the mask covers changes\n\n"
        "**Change** the mask: right-click the picture, *Open in MaskEditor*, paint, save. Every pixel "
        "outside stays as it is, bit for bit.\n\n"
        "**feather** is the width of the seam inside the mask. **strength** below 1 keeps more of what "
        "was there."
    ),
    "two_image_composition": (
        "### What two pictures show, in one\n\n"
        "**Change** the pictures and the sentence that brings them together: the first is *image*, the "
        "second *image_2*; up to four can be connected.\n\n"
        "**image_guidance** is how strongly they count.\n\n"
        "Nano never learned from two pictures: it keeps the first one's background and takes the car from "
        "the sentence. " + ENLARGED + "\n\n" + INSIDE
    ),
    "structure_and_style": (
        "### Structure of this, style of that\n\n"
        "*Rung Mix* tells the first blocks of the model about one prompt and the others about another.\n\n"
        "**Change** both prompts, and move **crossover** in steps of one rung (1/6 for nano): 1 is "
        "structure alone, 0 style alone. **softness** blends around it.\n\n"
        "Beside the mix both prompts are drawn alone with the same seed, which counts up at every Run.\n\n"
        + OPENED
        + "*Rung Mix*, three samplers and *Enlarge* stand inside, the last for nano alone."
    ),
    "batch_edit_of_a_folder": (
        "### One instruction for all pictures of a folder\n\n"
        "**Change** the folder: make one in ComfyUI's *input* folder, put pictures of any sizes into it, "
        "press R, and choose it.\n\n"
        "Each picture is edited by itself, keeps its size, and is saved under *output/tbac*."
    ),
    "native_ksampler": (
        "### ComfyUI's own nodes on this model\n\n"
        "MODEL, VAE, CONDITIONING and LATENT are ComfyUI's types: put LoRA loaders, "
        "*ConditioningCombine*, masks, schedulers, guiders where you would with any model.\n\n"
        "**Change** sampler, scheduler and cfg. *dpmpp_2m* with *simple* comes close to the recipe; "
        "*Ladder Sampler*, or *Ladder Scheduler* with *SamplerCustomAdvanced*, is it exactly.\n\n"
        "" + ENLARGED
    ),
    "four_steps": (
        "### Four steps instead of thirty\n\n"
        "A LoRA made by distillation draws in four evaluations, without guidance: a tenth of the work. "
        "*few_steps* of *Ladder Sampler* sets steps, guidance, sampler and scheduler, whatever stands above "
        "it.\n\n"
        "**Change** the prompt, and *few_steps* to 2 or 8. *KSampler* does the same with 4 steps, cfg 1, "
        "*euler* and *simple*. Edits work too, with *Edit Conditions*.\n\n"
        "For another model distil a LoRA with *training/recipes/4_few_steps.yaml*. " + ENLARGED
    ),
    "ask_then_edit": (
        "### Look first, then edit\n\n"
        "*Ask* says what is in the picture. Its answer, *a cat*, becomes an instruction, in which **\\1** "
        "stands for *cat*.\n\n"
        "**Change** the picture, the question and the instruction. For nano: *what is it?*, *what is the "
        "background?*, *describe the picture*. A larger model answers in sentences, and may be asked what "
        "to change."
    ),
    "ladder_probe": (
        "### What each rung does\n\n"
        "The first sheet shows the picture with each rung muted: what goes wrong is what that rung "
        "carried. The second shows where each rung looks.\n\n"
        "**Change** the prompt, and *moment* to early or late. **query** shows a single query's "
        "attention.\n\n"
        "Use it to choose *crossover* of *Rung Mix* and the curve of *Rung Gains*. It draws one picture "
        "more than there are rungs."
    ),
    "edit_in_parts": (
        "### An edit with every part in sight\n\n"
        "*Edit Conditions* hands out the three conditions of image and text guidance, for any sampler or "
        "guider; *Image Edit* does all of it in one node.\n\n"
        "**Change** the instruction. **guidance** follows it, **image_guidance** keeps to the picture. "
        "With *KSampler* connect *image_only* as negative.\n\n"
        "" + ENLARGED
    ),
    "stored_conditions": (
        "### A picture without the language model\n\n"
        "*Save Conditioning*, behind *Multi-Layer MLLM Encode* on a machine with room for it, made the two "
        "small files. Here the prompt is not encoded again: the language model, most of the model, stays "
        "off the GPU.\n\n"
        "**Change** the files: they lie in the folder *conditioning* of ComfyUI's *input* or *output* and "
        "fit the model that made them. " + ENLARGED + "\n\n" + INSIDE.replace("encoder, ", "")
    ),
    "edit_without_a_mask": (
        "### A sentence, and the rest stays\n\n"
        "*Image Edit* finds where the instruction changes the picture and draws there, as *Change Map* "
        "shows it. What it draws again as it was, and every other pixel, stays bit for bit.\n\n"
        "**Change** the picture and the instruction. For nano: *remove the dog*, *make the rocket purple*, "
        "*add a star at the top*.\n\n"
        "Where that is too small or too large: connect *Change Map*'s **mask**, through *GrowMask*, to "
        "*Image Edit* and set **mask_from** to *as connected*."
    ),
    "small_thing": (
        "### A small thing in a large picture\n\n"
        "What lies around the mask is cut out, drawn with all the model's pixels, scaled back and laid in. "
        "Every other pixel stays, bit for bit, and a photograph may be of any size.\n\n"
        "**Change** the mask: right-click the picture, *Open in MaskEditor*, paint, save. Name what lies "
        "there and not where: the model sees the part alone. For nano: *remove the balloon*, *make the "
        "balloon yellow*.\n\n"
        "**context** is how much around the mask is drawn with it."
    ),
}
