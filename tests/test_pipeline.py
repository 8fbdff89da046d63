"""The pipeline as people use it: batches, several results, reuse, interruption, saving, bad input."""

import json

import numpy as np
import pytest
import torch
from conftest import load_tiny
from diffusers.hooks import FirstBlockCacheConfig
from diffusers.models.attention_processor import AttnProcessor2_0, SanaLinearAttnProcessor2_0
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tbac_uniimage.core import canvas
from tbac_uniimage.core.guidance import Guidance
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.core.requests import check_request, check_size, fit_size
from tbac_uniimage.core.schedulers import euler_scheduler, step_levels
from tbac_uniimage.core.versions import IS_4
from tiny_checkpoint import BASES, CHECKPOINT

STEPS = 3


def picture(shade: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).point(lambda v: (v + shade) % 256).convert("RGB")


def noise(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 8, 8, 8, generator=torch.Generator().manual_seed(seed))


def run(pipe: LadderPipeline, *args, **kwargs) -> torch.Tensor:
    size = {"height": 64, "width": 64} | {k: kwargs.pop(k) for k in ("height", "width") if k in kwargs}
    return pipe(*args, num_inference_steps=STEPS, output_type="latent", **size, **kwargs).images


def test_several_results_and_several_edits_in_one_batch(pipe):
    """The released code mixes rows up in both cases; here each row equals its own call."""
    prompts, images = ["make it red", "remove the car and the bird"], [picture(3), picture(90, (40, 80))]
    guidance = {"guidance_scale": 3.0, "image_guidance_scale": 1.5, "negative_prompt": ["", "blurry"]}
    latents = noise(4)
    together = run(pipe, prompts, images, num_images_per_prompt=2, latents=latents, **guidance)
    for i in range(2):
        for j in range(2):
            row = 2 * i + j
            alone = run(
                pipe,
                prompts[i],
                images[i],
                latents=latents[row : row + 1],
                **guidance | {"negative_prompt": guidance["negative_prompt"][i]},
            )
            torch.testing.assert_close(together[row : row + 1], alone, atol=2e-4, rtol=1e-3)
    assert (together[0] - together[2]).abs().max() > 1e-2


def test_denoising_written_out(pipe):
    """Reference: SANA called with one branch at a time and guidance spelled out, Euler by hand."""
    old, pipe.scheduler = pipe.scheduler, euler_scheduler()
    try:
        ours = run(pipe, "a cat", picture(7), latents=noise(1), guidance_scale=3.0, image_guidance_scale=2.0)
    finally:
        pipe.scheduler = old
    black = Image.new("RGB", picture(7).size)
    with torch.no_grad():
        states = [
            pipe.encoder([text], [[image]]).states
            for text, image in (("", black), ("", picture(7)), ("a cat", picture(7)))
        ]
        sigmas = torch.tensor(step_levels(STEPS))
        assert sigmas[0] == 1 and sigmas[-1] == 0
        x = noise(1)
        for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
            t = torch.full((1,), float(now * 1000))
            nothing, image, both = (pipe.transformer(x, s, t).sample for s in states)
            v = nothing + 2.0 * (image - nothing) + 3.0 * (both - image)
            x = x + (then - now) * v
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


def test_outside_the_interval_only_the_prompt_counts(pipe):
    latents = noise(1)
    unguided = run(pipe, "a cat", latents=latents, guidance_scale=1.0)
    rows: list[int] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    try:
        partly = run(pipe, "a cat", latents=latents, guidance_scale=6.0, guidance_interval=(0.5, 1.0))
    finally:
        handle.remove()
    assert rows == [1, 1, 2]
    first_only = []
    pipe(
        "a cat",
        latents=latents,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        guidance_scale=6.0,
        guidance_interval=(0.5, 1.0),
        callback_on_step_end=lambda _p, i, _t, tensors: first_only.append(tensors["latents"]) or {},
    )
    assert (partly - unguided).abs().max() > 1e-3
    assert len(first_only) == STEPS


def test_a_condition_can_be_reused(pipe):
    arguments = {"guidance_scale": 3.0, "image_guidance_scale": 1.5}
    condition = pipe.encode_prompt("make it red", picture(3), **arguments)
    assert condition.states.shape[1] == 3
    direct = run(pipe, "make it red", picture(3), latents=noise(2), num_images_per_prompt=2, **arguments)
    reused = run(pipe, condition=condition, latents=noise(2), num_images_per_prompt=2, **arguments)
    torch.testing.assert_close(direct, reused, atol=0, rtol=0)


def test_generators_fix_the_result(pipe):
    def draw(seeds):
        return run(pipe, ["a cat", "a dog"], generator=[torch.Generator().manual_seed(s) for s in seeds])

    first, second = draw([1, 2]), draw([1, 3])
    torch.testing.assert_close(first[0], second[0], atol=1e-5, rtol=1e-4)
    assert (first[1] - second[1]).abs().max() > 1e-2


def test_callback_sees_and_changes_latents_and_can_stop(pipe):
    steps = []

    def callback(pipeline, i, t, tensors):
        steps.append((i, int(t)))
        pipeline._interrupt = i == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    result = run(pipe, "a cat", latents=noise(1), callback_on_step_end=callback)
    assert [i for i, _ in steps] == [0, 1]
    assert steps[0][1] > steps[1][1]
    assert result.abs().max() == 0


def test_output_types_agree(pipe):
    def draw(output_type):
        return pipe(
            "a cat",
            latents=noise(1),
            height=64,
            width=64,
            num_inference_steps=STEPS,
            output_type=output_type,
        ).images

    tensor, array, image = draw("pt"), draw("np"), draw("pil")[0]
    assert image.size == (64, 64)
    np.testing.assert_allclose(tensor[0].permute(1, 2, 0).numpy(), array[0], atol=1e-6)
    np.testing.assert_allclose(np.asarray(image), (array[0] * 255).round(), atol=1)


def test_edits_keep_the_proportions_of_the_picture(pipe):
    shown = pipe("make it red", picture(3, (300, 150)), num_inference_steps=1).images[0]
    assert shown.size == fit_size((300, 150), 64, 8) == (88, 48)
    assert pipe("a cat", num_inference_steps=1).images[0].size == (64, 64)


def test_bfloat16_runs_close_to_float32(pipe, tmp_path):
    exact = run(pipe, "a cat", latents=noise(1))
    pipe.save_pretrained(tmp_path)
    half = LadderPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert {half.transformer.dtype, half.mllm.dtype, half.connector.dtype} == {torch.bfloat16}
    rounded = run(half, "a cat", latents=noise(1))
    assert rounded.dtype == torch.float32
    assert ((rounded - exact).norm() / exact.norm()).item() < 0.05


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("kind", ["pipeline folder", "released"])
def test_the_type_of_the_weights_has_two_names(pipe, tmp_path, name, kind):
    """Of both layouts, as a torch type and as text; both names at once are refused."""
    path, bases = CHECKPOINT, BASES
    if kind == "pipeline folder":
        pipe.save_pretrained(path := tmp_path / "saved")
        bases = {}
    for wanted in (torch.bfloat16, "bfloat16"):
        loaded = LadderPipeline.from_pretrained(path, **{name: wanted}, **bases)
        parts = (loaded.mllm, loaded.connector, loaded.transformer, loaded.vae)
        assert {part.dtype for part in parts} == {torch.bfloat16}
    with pytest.raises(ValueError, match="Both dtype and torch_dtype are given"):
        LadderPipeline.from_pretrained(path, dtype=torch.float16, torch_dtype=torch.bfloat16, **bases)
    for wrong in ("int7", torch.int8, 16):
        with pytest.raises(ValueError, match=f"The type {wrong} is not known"):
            LadderPipeline.from_pretrained(path, **{name: wrong}, **bases)


@pytest.mark.skipif(IS_4, reason="transformers 5 lets diffusers read the folder")
def test_components_have_types_of_their_own(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    mixed = LadderPipeline.from_pretrained(
        tmp_path / "saved", dtype={"mllm": "bfloat16", "default": torch.float32}
    )
    assert (mixed.mllm.dtype, mixed.transformer.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.skipif(IS_4, reason="transformers 5 lets diffusers read the folder")
def test_without_a_type_the_libraries_decide(tmp_path):
    """As docs/python.md says: diffusers takes float32, transformers what is stored."""
    LadderPipeline(**vars(load_tiny())).to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    loaded = LadderPipeline.from_pretrained(tmp_path / "saved")
    assert {part.dtype for part in (loaded.connector, loaded.transformer, loaded.vae)} == {torch.float32}
    assert loaded.mllm.dtype == torch.bfloat16


def test_save_and_load_change_no_number(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    again = LadderPipeline.from_pretrained(tmp_path / "pipeline")
    again.set_progress_bar_config(disable=True)
    assert again.encoder.processor.system_prompt == pipe.encoder.processor.system_prompt
    arguments = {"guidance_scale": 3.0, "image_guidance_scale": 1.5, "latents": noise(1)}
    ours = run(pipe, "make it red", picture(3), **arguments)
    torch.testing.assert_close(run(again, "make it red", picture(3), **arguments), ours, atol=0, rtol=0)
    assert not list((tmp_path / "pipeline").rglob("*.bin"))


def test_a_saved_folder_names_no_path_of_the_machine(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    LadderPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    written = {str(path): path.read_text() for path in (tmp_path / "second").rglob("*.json")}
    assert sum(path.endswith("config.json") for path in written) >= 4
    assert [path for path, text in written.items() if str(tmp_path) in text or "_name_or_path" in text] == []
    for part in ("transformer", "vae", "connector"):
        first, second = (tmp_path / name / part / "config.json" for name in ("first", "second"))
        assert json.loads(first.read_text()) == json.loads(second.read_text())


def test_a_failed_save_leaves_nothing_and_a_full_folder_stays(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pipe.vae, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        pipe.save_pretrained(tmp_path / "torn")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="is there already and not empty"):
        pipe.save_pretrained(tmp_path / "mine")
    assert [file.name for file in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_model_offload_brings_each_part_before_it_computes(pipe, tmp_path, monkeypatch):
    """On the CPU nothing moves, but the hooks that would move a part must fire, in the order of use."""
    from accelerate.hooks import CpuOffload

    expected = run(pipe, "make it red", picture(3), latents=noise(1), image_guidance_scale=1.5)
    pipe.save_pretrained(tmp_path)
    offloaded = LadderPipeline.from_pretrained(tmp_path)
    offloaded.set_progress_bar_config(disable=True)
    offloaded.enable_model_cpu_offload(device="cpu")
    brought = []
    original = CpuOffload.pre_forward

    def pre_forward(self, module, *args, **kwargs):
        brought.append(type(module).__name__)
        return original(self, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", pre_forward)
    result = run(offloaded, "make it red", picture(3), latents=noise(1), image_guidance_scale=1.5)
    offloaded.decode(result)
    torch.testing.assert_close(result, expected, atol=0, rtol=0)
    order = list(dict.fromkeys(brought))
    assert order == ["Qwen2_5_VLForConditionalGeneration", "LadderTransformer2DModel", "AutoencoderDC"]
    assert brought.index("LadderTransformer2DModel") < brought.index("AutoencoderDC")


def test_layers_that_are_brought_one_by_one_compute_the_same(pipe):
    """The hooks of sequential offloading, which on an accelerator load each layer's weights."""
    from accelerate import cpu_offload

    arguments = {"latents": noise(1), "image_guidance_scale": 1.5}
    expected = run(pipe, "make it red", picture(3), **arguments)
    answer = pipe.ask(picture(3), "what is it?", max_new_tokens=4).text
    offloaded = LadderPipeline(**vars(load_tiny()))
    offloaded.set_progress_bar_config(disable=True)
    for name in ("mllm", "transformer", "vae"):
        part = getattr(offloaded, name)
        cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert next(offloaded.transformer.parameters()).device.type == "meta"
    result = run(offloaded, "make it red", picture(3), **arguments)
    torch.testing.assert_close(result, expected, atol=0, rtol=0)
    torch.testing.assert_close(offloaded.decode(result, "pt"), pipe.decode(expected, "pt"), atol=0, rtol=0)
    assert offloaded.ask(picture(3), "what is it?", max_new_tokens=4).text == answer


def test_sequential_offloading_to_the_cpu_is_refused(pipe):
    for device in ("cpu", torch.device("cpu", 0)):
        with pytest.raises(ValueError, match="device is the CPU, where they lie already; leave the call out"):
            pipe.enable_sequential_cpu_offload(device=device)
    assert not hasattr(pipe.transformer, "_hf_hook")


def test_tiles_and_slices_are_the_autoencoders_own():
    pipeline = LadderPipeline(**vars(load_tiny()))
    for name in ("tiling", "slicing"):
        getattr(pipeline, f"enable_vae_{name}")()
        assert getattr(pipeline.vae, f"use_{name}")
        getattr(pipeline, f"disable_vae_{name}")()
        assert not getattr(pipeline.vae, f"use_{name}")
    pipeline.vae = None
    with pytest.raises(ValueError, match="has no vae, without which it cannot decode in tiles"):
        pipeline.enable_vae_tiling()


def test_tiles_show_the_whole_picture(pipe):
    """Larger than a tile of the autoencoder; what differs is only where tiles meet."""
    pipeline = LadderPipeline(**vars(load_tiny()))
    latents = torch.randn(
        1, pipe.vae.config.latent_channels, 16, 24, generator=torch.Generator().manual_seed(0)
    )
    whole = pipeline.decode(latents, "pt")
    pipeline.vae.enable_tiling(64, 64, 48, 48)
    tiles = pipeline.decode(latents, "pt")
    assert tiles.shape == whole.shape == (1, 3, 128, 192)
    assert 0 < (tiles - whole).abs().mean() < 0.1 < whole.std() * 2


def test_nothing_is_fused_in_silence(pipe):
    for owner in (pipe, pipe.transformer):
        with pytest.raises(ValueError, match="SANA's attention has no fused projections"):
            owner.fuse_qkv_projections()


def test_processors_of_self_attention_can_be_set_and_those_of_rungs_stay(pipe):
    pipeline = LadderPipeline(**vars(load_tiny()))
    transformer = pipeline.transformer
    before = transformer.attn_processors

    class Counting(SanaLinearAttnProcessor2_0):
        calls = 0

        def __call__(self, *args, **kwargs):
            Counting.calls += 1
            return super().__call__(*args, **kwargs)

    expected = run(pipe, "a cat", latents=noise(1))
    transformer.set_attn_processor({n: Counting() if ".attn1." in n else p for n, p in before.items()})
    torch.testing.assert_close(run(pipeline, "a cat", latents=noise(1)), expected, atol=0, rtol=0)
    assert Counting.calls == STEPS * transformer.config.num_layers
    kept = transformer.attn_processors
    name = "transformer_blocks.0.attn2.processor"
    for wrong, sentence in (
        (AttnProcessor2_0(), f"AttnProcessor2_0 at {name} cannot read rungs"),
        ({**kept, name: AttnProcessor2_0()}, f"AttnProcessor2_0 at {name} cannot read rungs"),
        (kept[name], "RungAttnProcessor at transformer_blocks.0.attn1.processor has no rung to read"),
    ):
        with pytest.raises(ValueError, match=sentence):
            transformer.set_attn_processor(wrong)
        assert transformer.attn_processors == kept
    transformer.transformer_blocks[0].attn2.set_processor(AttnProcessor2_0())
    with pytest.raises(ValueError, match=f"AttnProcessor2_0 at {name} cannot read rungs"):
        run(pipeline, "a cat", latents=noise(1))


BAD = [
    ({"prompt": ""}, "The prompt is empty and there is no image"),
    ({"prompt": None}, "Give either a prompt or a condition"),
    ({"prompt": []}, "No prompt was given"),
    ({"prompt": 3}, "A prompt is a int; give text"),
    ({"prompt": b"a cat"}, "A prompt is a bytes; give text"),
    ({"negative_prompt": [None]}, "A negative prompt is a NoneType; give text"),
    ({"negative_prompt": 5}, "A negative prompt is a int; give text"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    ({"num_inference_steps": 1.5}, "num_inference_steps is 1.5; give a whole number"),
    ({"num_inference_steps": "3"}, "num_inference_steps is '3'; give a whole number"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
    ({"num_images_per_prompt": None}, "num_images_per_prompt is None; give a whole number"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ({"guidance_scale": "2"}, "guidance_scale is '2'; give a finite number"),
    ({"image": []}, "The list of images is empty; give one, or leave image out"),
    ({"height": 64, "width": 64.0}, "The width is 64.0; give a whole number of pixels"),
    ({"height": 64, "width": "64"}, "The width is '64'; give a whole number of pixels"),
    ({"latents": torch.full((1, 8, 8, 8), float("nan"))}, "latents are not finite"),
    ({"image": [picture(1)] * 5}, "at most 4 images, 5 were given"),
    ({"prompt": ["a", "b"], "image": [picture(1)]}, "1 images were given for 2 prompts"),
    ({"prompt": ["a", "b"], "negative_prompt": ["x"]}, "1 negative prompts were given for 2 prompts"),
    ({"prompt": ["a", "b"], "image": [[], [picture(1)]]}, "some without"),
    ({"image": "cat.png"}, "give PIL images"),
    ({"height": 60, "width": 64}, "height 60 is no positive multiple of 8; use 56 or 64"),
    ({"height": 64, "width": -8}, "width -8 is no positive multiple of 8; use 8"),
    (
        {"latents": torch.zeros(1, 8, 4, 4)},
        r"latents have shape \[1, 8, 4, 4\]; this call needs \[1, 8, 8, 8\]",
    ),
    ({"generator": [torch.Generator()] * 3}, "3 generators were given for 1 results"),
    ({"output_type": "gif"}, "output_type is 'gif'"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "known: latents"),
    ({"rung_gains": [1.0]}, "1 gains were given for 4 rungs"),
    ({"rung_gains": [1, 1, 11, 1]}, "The gain of rung 3 is 11; give 0"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_input_is_named_before_anything_is_computed(pipe, arguments, words):
    def refuse(*_):
        raise AssertionError("a model ran")

    modules = (pipe.mllm.model.language_model.layers[0], pipe.transformer.patch_embed)
    handles = [module.register_forward_pre_hook(refuse) for module in modules]
    try:
        with pytest.raises(ValueError, match=words):
            pipe(**{"prompt": "a cat"} | arguments)
    finally:
        for handle in handles:
            handle.remove()


@given(st.integers(-200, 5000), st.sampled_from([8, 32]))
def test_nearest_sizes_are_right(size, factor):
    if size > 0 and size % factor == 0:
        check_size(size, size, factor)
        return
    with pytest.raises(ValueError) as error:
        check_size(size, factor, factor)
    offered = [int(word) for word in str(error.value).split("use ")[1].rstrip(".").split(" or ")]
    assert all(o > 0 and o % factor == 0 for o in offered)
    assert size < factor or (max(offered) - min(offered) == factor and min(offered) < size < max(offered))


@given(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), st.sampled_from([64, 512]))
def test_fitted_sizes_keep_area_and_proportions(size, side):
    width, height = fit_size(size, side, 8)
    assert width % 8 == height % 8 == 0 and min(width, height) >= 8
    if max(size) <= 3 * min(size):
        assert abs(width / height / (size[0] / size[1]) - 1) < 16 / min(width, height)
        assert abs(width * height / side**2 - 1) < 24 / min(width, height)


def test_rung_gains_reach_every_branch(pipe):
    rungs, options = pipe.transformer.config.num_layers, {"latents": noise(1), "guidance_scale": 3.0}
    plain = run(pipe, "a cat", **options)
    assert torch.equal(run(pipe, "a cat", rung_gains=[1.0] * rungs, **options), plain)
    silent = run(pipe, "a cat", rung_gains=[0.0] * rungs, **options)
    assert torch.equal(silent, run(pipe, "a dog", rung_gains=[0.0] * rungs, **options))
    assert (silent - plain).abs().max() > 1e-2
    first = run(pipe, "a cat", rung_gains=[0.0] + [1.0] * (rungs - 1), **options)
    assert (first - plain).abs().max() > 1e-3 and (first - silent).abs().max() > 1e-3


def count_blocks(transformer, run) -> list[int]:
    """How often each block computed while ``run`` ran."""
    counts = [0] * len(transformer.transformer_blocks)

    def count(at: int) -> None:
        counts[at] += 1

    handles = [
        block.ff.register_forward_pre_hook(lambda *_, at=at: count(at))
        for at, block in enumerate(transformer.transformer_blocks)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return counts


def test_a_step_cache_leaves_blocks_out_and_nothing_behind(pipe):
    """diffusers' FirstBlockCache: nothing skipped changes nothing, all skipped keeps the first residual."""
    options = {"latents": noise(1), "guidance_scale": 3.0}
    plain = run(pipe, "a cat", **options)
    drawn, counts = {}, {}
    for threshold in (0.0, 1e9):
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        try:
            counts[threshold] = count_blocks(
                pipe.transformer, lambda t=threshold: drawn.update({t: run(pipe, "a cat", **options)})
            )
            again = run(pipe, "a cat", **options)  # nothing of another call is left
            in_part = run(pipe, "a cat", guidance_interval=(0.3, 0.6), **options)  # 1, 2, then 1 branch
        finally:
            pipe.transformer.disable_cache()
        assert torch.equal(again, drawn[threshold])
        assert in_part.isfinite().all()
    assert counts[0.0] == [STEPS] * 4 and counts[1e9] == [STEPS, 1, 1, 1]
    torch.testing.assert_close(drawn[0.0], plain, atol=0, rtol=0)
    assert (drawn[1e9] - plain).abs().max() > 1e-3
    assert torch.equal(run(pipe, "a cat", **options), plain)


def test_a_call_that_failed_leaves_nothing_in_a_step_cache(pipe):
    options = {"latents": noise(1)}
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    try:
        expected = run(pipe, "a cat", **options)
        with pytest.raises(RuntimeError, match="stop here"):
            run(pipe, "another", callback_on_step_end=lambda *_: stop(), **options)
        assert torch.equal(run(pipe, "a cat", **options), expected)
    finally:
        pipe.transformer.disable_cache()


@pytest.mark.parametrize(("side", "tiles"), [(32, 1), (33, 9)])
def test_large_pictures_are_decoded_in_tiles(pipe, monkeypatch, side, tiles):
    """The autoencoder's own tiles, from the size on that stands here for 1024 x 1024 pixels."""
    factor = pipe.vae_scale_factor
    seen = []

    def enlarged(latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3].repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    def decoder(latents: torch.Tensor) -> torch.Tensor:
        seen.append(latents.shape)
        return enlarged(latents)

    monkeypatch.setattr(pipe.vae.decoder, "forward", decoder)
    monkeypatch.setattr(canvas, "TILED_ABOVE", (32 * factor) ** 2)
    for edge in ("height", "width"):
        monkeypatch.setattr(pipe.vae, f"tile_sample_min_{edge}", 16 * factor)
        monkeypatch.setattr(pipe.vae, f"tile_latent_min_{edge}", 16)
        monkeypatch.setattr(pipe.vae, f"tile_sample_stride_{edge}", 14 * factor)
    latents = torch.randn(1, 8, side, side)
    pixels = pipe.decode(latents * pipe.vae.config.scaling_factor, "pt")
    assert len(seen) == tiles and not pipe.vae.use_tiling
    expected = (enlarged(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=1e-5)


def stop() -> None:
    raise RuntimeError("stop here")


def test_requests_take_every_form():
    a, b = picture(1), picture(2)
    assert check_request("x", a).images == [[a]]
    assert check_request("x", [a, b]).images == [[a, b]]
    assert check_request(["x", "y"], a).images == [[a], [a]]
    assert check_request(["x", "y"], [a, [a, b]]).images == [[a], [a, b]]
    assert check_request(["x", "y"], negative_prompt="n").negatives == ["n", "n"]
    assert check_request("", a).prompts == [""]
    assert Guidance().combine(torch.ones(1), 1).item() == 1
