"""Ladder Sampler, Ladder Guider, Rung Gains and Rung Mix on the embedded model, against stock graphs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from comfy_helpers import as_batch, largest
from nano_models import CHANNELS, OTHER, PROMPT, nano_comfy, nano_pipe, sample_picture

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]

STEPS = 6
INSTRUCTION = "make the background green"


@pytest.fixture(scope="module")
def nano(comfy, tmp_path_factory):
    import folder_paths

    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("temp")))
    return nano_comfy()


@pytest.fixture(scope="module")
def scene(nano) -> SimpleNamespace:
    """Conditionings of a prompt, of another, of an edit; and an empty latent."""
    from tbac_uniimage.nodes.conditioning import LadderEncode
    from tbac_uniimage.nodes.sampling import LadderEmptyLatent

    with torch.inference_mode():
        positive, negative, _ = LadderEncode.execute(nano.mllm, PROMPT).result
        other = LadderEncode.execute(nano.mllm, OTHER).result[0]
        edit = LadderEncode.execute(nano.mllm, INSTRUCTION, as_batch(sample_picture()), vae=nano.vae).result
        latent = LadderEmptyLatent.execute(nano.model, 0, 0, 1).result[0]
    return SimpleNamespace(positive=positive, negative=negative, other=other, edit=edit, latent=latent)


def sample(model, positive, negative, latent, *, steps=STEPS, guidance=3.0, image_guidance=2.0, **options):
    from tbac_uniimage.nodes.sampling import LadderSampler

    return LadderSampler.execute(
        model, positive, negative, latent, 7, steps, guidance, image_guidance, **options
    ).result[0]["samples"]


def advanced(guider, sampler_name, sigmas, latent) -> torch.Tensor:
    """SamplerCustomAdvanced with seed 7."""
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, RandomNoise, SamplerCustomAdvanced

    sampler = KSamplerSelect.execute(sampler_name).result[0]
    noise = RandomNoise.execute(7).result[0]
    return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result[0]["samples"]


def gained(nano, preset="even", amount=0.5, curve="", model=None):
    from tbac_uniimage.nodes.rungs import LadderRungGains

    return LadderRungGains.execute(model or nano.model, preset, amount, curve).result


STOCK = [("euler", "simple"), ("dpmpp_2m", "sgm_uniform"), ("dpm_2", "beta"), ("euler_ancestral", "normal")]


@pytest.mark.parametrize(("sampler", "scheduler"), STOCK)
@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_ladder_sampler_equals_ksampler(nano, scene, sampler, scheduler, denoise):
    import nodes as stock

    start = torch.randn(scene.latent["samples"].shape, generator=torch.Generator().manual_seed(3))
    latent = scene.latent if denoise == 1 else {"samples": start}
    arguments = scene.positive, scene.negative, latent
    expected = stock.KSampler().sample(nano.model, 7, STEPS, 3.0, sampler, scheduler, *arguments, denoise)
    found = sample(nano.model, *arguments, sampler=sampler, scheduler=scheduler, denoise=denoise)
    error = largest(found, expected[0]["samples"])
    print(f"\nLadder Sampler against KSampler, {sampler} {scheduler} {denoise}: {error:.1e}")
    assert error == 0


def test_ladder_sampler_equals_dual_guider(nano, scene):
    from comfy_extras.nodes_custom_sampler import BasicScheduler, DualCFGGuider

    positive, negative, image_only = scene.edit
    for sampler, scheduler in STOCK[:2]:
        guider = DualCFGGuider.execute(nano.model, positive, image_only, negative, 3.0, 2.0, "regular")
        sigmas = BasicScheduler.execute(nano.model, scheduler, STEPS, 1.0).result[0]
        expected = advanced(guider.result[0], sampler, sigmas, scene.latent)
        options = {"image_only": image_only, "sampler": sampler, "scheduler": scheduler}
        error = largest(sample(nano.model, positive, negative, scene.latent, **options), expected)
        print(f"\nLadder Sampler against DualCFGGuider, {sampler} {scheduler}: {error:.1e}")
        assert error == 0


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.3, 1.0), (0.2, 0.7)])
def test_guidance_interval_equals_the_pipeline(nano, scene, interval):
    start, end = interval
    options = {"guidance_start": start, "guidance_end": end}
    found = sample(nano.model, scene.positive, scene.negative, scene.latent, steps=10, **options)
    latents = nano_pipe()(
        PROMPT,
        guidance_scale=3.0,
        guidance_interval=interval,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    error = largest(found, latents / nano_pipe().vae.config.scaling_factor)
    print(f"\nguidance from {start} to {end} against the pipeline: {error:.1e}")
    assert error < 1e-3
    assert largest(found, sample(nano.model, scene.positive, scene.negative, scene.latent, steps=10)) > 1e-2


def test_outside_the_interval_the_prompt_alone_is_evaluated(nano, scene, monkeypatch):
    rows = []
    predict = type(nano.model.model.diffusion_model).predict

    def counting(self, x, *arguments, **options):
        rows.append(len(x))
        return predict(self, x, *arguments, **options)

    monkeypatch.setattr(type(nano.model.model.diffusion_model), "predict", counting)
    positive, negative, image_only = scene.edit
    sample(nano.model, positive, negative, scene.latent, image_only=image_only, guidance_start=0.5)
    assert rows == [1, 1, 1, 3, 3, 3]


def test_gains_of_one_change_nothing_to_the_bit(nano, scene):
    arguments = scene.positive, scene.negative, scene.latent
    expected = sample(nano.model, *arguments)
    for preset, amount, curve in [("even", 3.0, ""), ("layout", 0.0, "1"), ("detail", 0.0, "1, 1, 1")]:
        model, gains, _ = gained(nano, preset, amount, curve)
        assert gains == (1.0,) * 6
        assert torch.equal(sample(model, *arguments), expected)
        assert torch.equal(sample(nano.model, *arguments, gains=gains), expected)


def test_gains_equal_those_of_the_pipeline(nano, scene):
    gains = gained(nano, "detail", 0.5, "1: 0, 2: 1.5")[1]
    found = sample(nano.model, scene.positive, scene.negative, scene.latent, gains=gains)
    pipe = nano_pipe()
    expected = pipe(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7),
        rung_gains=gains,
        output_type="latent",
    ).images
    error = largest(found * pipe.vae.config.scaling_factor, expected)
    print(f"\nRung Gains against the pipeline: {error:.1e}")
    assert error < 1e-4


@pytest.mark.parametrize("rung", [0, 3, 5])
def test_a_gain_of_zero_mutes_the_rung(nano, scene, rung):
    """Muting done the plain way: the block's attention to the prompt yields nothing."""
    arguments = scene.positive, scene.negative, scene.latent
    model, gains, _ = gained(nano, curve=f"{rung + 1}: 0")
    found = sample(model, *arguments)
    assert torch.equal(sample(nano.model, *arguments, gains=gains), found)
    output = nano.model.model.diffusion_model.transformer_blocks[rung].attn2.to_out[0]
    handle = output.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),))
    try:
        expected = sample(nano.model, *arguments)
    finally:
        handle.remove()
    error = largest(found, expected)
    print(f"\nrung {rung + 1}, gain 0 against muting: {error:.1e}")
    assert error < 1e-5
    assert largest(found, sample(nano.model, *arguments)) > 1e-2


def test_gains_work_in_stock_samplers_stack_and_leave_the_model_alone(nano, scene):
    import nodes as stock

    arguments = scene.positive, scene.negative, scene.latent
    before = sample(nano.model, *arguments)
    first, _, _ = gained(nano, "subject", -0.5)
    both, gains, _ = gained(nano, curve="2", model=first)
    assert gains == pytest.approx((2, 1.75, 1.25, 1.25, 1.75, 2))
    settings = both, 7, STEPS, 3.0, "euler", "simple"
    found = stock.KSampler().sample(*settings, *arguments, 1.0)[0]["samples"]
    options = {"sampler": "euler", "scheduler": "simple"}
    assert torch.equal(found, sample(nano.model, *arguments, gains=gains, **options))
    assert torch.equal(
        found, sample(first, *arguments, gains=gains, **options)
    )  # take the place of those of first
    assert torch.equal(sample(nano.model, *arguments), before)


def mixed(nano, a, b, crossover, softness=0.0):
    from tbac_uniimage.nodes.rungs import LadderRungMix

    return LadderRungMix.execute(nano.model, a, b, crossover, softness).result[0]


@pytest.mark.parametrize("softness", [0.0, 0.4, 1.0])
def test_mix_at_an_end_is_one_alone(nano, scene, softness):
    a, b = scene.positive, scene.other
    assert torch.equal(mixed(nano, a, b, 1.0, softness)[0][0], a[0][0])
    assert torch.equal(mixed(nano, a, b, 0.0, softness)[0][0], b[0][0])


def test_mix_takes_whole_rungs(nano, scene):
    a, b = scene.positive[0][0], scene.other[0][0]
    width = a.shape[-1] // 6
    [[states, _]] = mixed(nano, scene.positive, scene.other, 1 / 3)
    assert torch.equal(states[..., : 2 * width], a[..., : 2 * width])
    assert torch.equal(states[..., 2 * width :], b[..., 2 * width :])


def test_mix_of_many_entries_and_of_joined_prompts(nano, scene):
    import nodes as stock

    regions = stock.ConditioningSetMask().append(scene.other, torch.ones(1, 8, 8), "default", 0.5)[0]
    regions = stock.ConditioningCombine().combine(regions, scene.negative)[0]
    found = mixed(nano, scene.positive, regions, 0.5)
    assert [set(options) for _, options in found] == [set(options) for _, options in regions]
    assert torch.equal(found[1][0], mixed(nano, scene.positive, scene.negative, 0.5)[0][0])
    with pytest.raises(ValueError, match="2 and 1 entries"):
        mixed(nano, regions, scene.positive, 0.5)
    joined = stock.ConditioningConcat().concat(scene.other, scene.other)[0]
    arguments = scene.negative, scene.latent
    expected = sample(nano.model, mixed(nano, scene.positive, scene.other, 0.5), *arguments)
    found = sample(nano.model, mixed(nano, scene.positive, joined, 0.5), *arguments)
    assert largest(found, expected) < 1e-4


def ladder_guided(nano, scene, conditionings, *scales, image_guidance=2.0, **options):
    from tbac_uniimage.nodes.guider import LadderGuider

    guider = LadderGuider.execute(nano.model, *conditionings, *scales, image_guidance, **options).result[0]
    return advanced(guider, "euler", simple_sigmas(nano), scene.latent)


def simple_sigmas(nano) -> torch.Tensor:
    from comfy_extras.nodes_custom_sampler import BasicScheduler

    return BasicScheduler.execute(nano.model, "simple", STEPS, 1.0).result[0]


def test_equal_guidance_everywhere_is_the_stock_guider(nano, scene):
    from comfy_extras.nodes_custom_sampler import CFGGuider, DualCFGGuider

    both = scene.positive, scene.negative
    guider = CFGGuider.execute(nano.model, *both, 3.0).result[0]
    expected = advanced(guider, "euler", simple_sigmas(nano), scene.latent)
    assert torch.equal(ladder_guided(nano, scene, both, 3.0, 3.0, 3.0), expected)
    nearly = ladder_guided(nano, scene, both, 3.0, 3.0 + 1e-6, 3.0 - 1e-6)
    error = largest(nearly, expected)

    positive, negative, image_only = scene.edit
    guider = DualCFGGuider.execute(nano.model, positive, image_only, negative, 3.0, 2.0, "regular").result[0]
    expected = advanced(guider, "euler", simple_sigmas(nano), scene.latent)
    edit = positive, negative
    found = ladder_guided(nano, scene, edit, 3.0, 3.0, 3.0, image_only=image_only)
    assert torch.equal(found, expected)
    nearly = ladder_guided(nano, scene, edit, 3.0, 3.0 + 1e-6, 3.0 - 1e-6, image_only=image_only)
    print(f"\nthree groups against CFGGuider {error:.1e}, DualCFGGuider {largest(nearly, expected):.1e}")
    assert error < 1e-3 and largest(nearly, expected) < 1e-3


@pytest.mark.parametrize("image_guidance", [1.0, 2.0])
def test_guidance_of_groups_equals_the_formula(nano, scene, image_guidance):
    """One prediction of every branch, combined by hand."""
    positive, negative, image_only = scene.edit
    width = positive[0][0].shape[-1] // 6
    x = torch.randn(scene.latent["samples"].shape, generator=torch.Generator().manual_seed(1))

    def denoised(context: torch.Tensor, carried: dict) -> torch.Tensor:
        source = carried.get("concat_latent_image")  # None for a model that does not read it
        source = None if source is None else nano.model.model.process_latent_in(source)
        return nano.model.model.apply_model(x, torch.tensor([0.7]), c_concat=source, c_crossattn=context)

    def entered(rungs: int) -> torch.Tensor:
        with_prompt, without = positive[0][0], image_only[0][0]
        return torch.cat([with_prompt[..., : rungs * width], without[..., rungs * width :]], dim=-1)

    v = [denoised(entered(rungs), positive[0][1]) for rungs in (0, 2, 4, 6)]
    expected = denoised(*negative[0])
    expected = expected + image_guidance * (v[0] - expected)
    for scale, before, after in zip((5.0, 2.0, 0.0), v, v[1:], strict=False):
        expected = expected + scale * (after - before)

    found = []

    def keep(args: dict) -> torch.Tensor:
        found.append(args["denoised"])
        return args["denoised"]

    from comfy.samplers import KSAMPLER
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
    from tbac_uniimage.nodes.guider import LadderGuider

    def once(model, x_, sigmas, extra_args=None, **_):
        return model(x, torch.tensor([0.7]), **extra_args)

    guider = LadderGuider.execute(
        nano.model, positive, negative, 5.0, 2.0, 0.0, image_guidance, image_only
    ).result[0]
    noise = SimpleNamespace(seed=1, generate_noise=lambda latent: torch.zeros_like(latent["samples"]))
    sigmas = torch.tensor([0.7, 0.0])
    out = SamplerCustomAdvanced.execute(noise, guider, KSAMPLER(once), sigmas, scene.latent).result[0]
    scale = nano_pipe().vae.config.scaling_factor
    error = largest(out["samples"] * scale, expected)
    print(f"\ngroups against the formula, image guidance {image_guidance}: {error:.1e}")
    assert error < 1e-4


def test_nodes_that_change_guidance_have_their_say(nano, scene):
    from comfy_extras.nodes_model_advanced import RescaleCFG
    from tbac_uniimage.nodes.guider import LadderGuider

    both = scene.positive, scene.negative
    plain = ladder_guided(nano, scene, both, 6.0, 3.0, 1.0)
    seen = []
    model = nano.model.clone()
    model.set_model_sampler_post_cfg_function(
        lambda args: seen.append(args["cond_scale"]) or args["denoised"]
    )
    guider = LadderGuider.execute(model, *both, 6.0, 3.0, 1.0, 1.0).result[0]
    assert torch.equal(advanced(guider, "euler", simple_sigmas(nano), scene.latent), plain)
    assert seen == [6.0] * STEPS
    rescaled = RescaleCFG().patch(nano.model, 0.7)[0]
    guider = LadderGuider.execute(rescaled, *both, 6.0, 3.0, 1.0, 1.0).result[0]
    assert largest(advanced(guider, "euler", simple_sigmas(nano), scene.latent), plain) > 1e-2


def test_bad_numbers_are_one_sentence(nano, scene):
    from tbac_uniimage.nodes.guider import LadderGuider
    from tbac_uniimage.nodes.rungs import LadderRungGains, LadderRungMix
    from tbac_uniimage.nodes.sampling import LadderSampler

    assert "amount is nan; give a number from -1 to 4" in LadderRungGains.validate_inputs("layout", math.nan)
    assert "preset is 'loud'; choose even, layout" in LadderRungGains.validate_inputs("loud", 1.0)
    assert "crossover is inf" in LadderRungMix.validate_inputs(math.inf, 0.0)
    assert "sampler is 'magic'" in LadderSampler.validate_inputs(sampler="magic")
    assert "denoise is nan" in LadderSampler.validate_inputs(denoise=math.nan)
    assert "let it start before it ends" in LadderSampler.validate_inputs(
        guidance_start=0.5, guidance_end=0.5
    )
    assert "subject is -1" in LadderGuider.validate_inputs(subject=-1.0)
    assert "let them rise" in LadderGuider.validate_inputs(layout_until=0.8, subject_until=0.2)
    both = scene.positive, scene.negative
    for call, message in [
        (lambda: gained(nano, curve="1, nan"), "curve has 'nan'; give numbers from 0"),
        (lambda: gained(nano, curve="20"), "curve has '20'; give numbers"),
        (lambda: gained(nano, curve="7: 0"), "names rung 7; this model has 1 to 6"),
        (lambda: gained(nano, amount=math.nan), "amount is nan"),
        (lambda: mixed(nano, *both, math.nan), "crossover is nan"),
        (lambda: sample(nano.model, *both, scene.latent, guidance=math.nan), "guidance is nan"),
        (lambda: sample(nano.model, *both, scene.latent, gains=(1.0,) * 20), "20 gains were given for 6"),
        (lambda: sample(nano.model, *both, scene.latent, gains=(math.nan,) * 6), "gain of rung 1 is nan"),
        (lambda: ladder_guided(nano, scene, both, 3.0, math.inf, 3.0), "subject is inf"),
        (lambda: sample(nano.model, *both, scene.latent, steps=0), "steps is 0; give a number from 1"),
        (lambda: sample(nano.model, *both, scene.latent, scheduler="never"), "scheduler is 'never'"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_literals_in_the_place_of_links_are_one_sentence(nano, scene):
    """Over the API anything may stand where a link belongs; ComfyUI lets it through."""
    from tbac_uniimage.nodes.asking import LadderAsk
    from tbac_uniimage.nodes.conditioning import LadderEncode, LadderImageEdit
    from tbac_uniimage.nodes.guider import LadderGuider
    from tbac_uniimage.nodes.sampling import LadderEmptyLatent
    from tbac_uniimage.nodes.storing import LadderSaveConditioning

    both, picture = (scene.positive, scene.negative), as_batch(sample_picture())
    for call, message in [
        (lambda: sample(3, *both, scene.latent), "The model is not a TBAC-UniImage model"),
        (lambda: sample(nano.model, 3, scene.negative, scene.latent), "positive is of the type int; connect"),
        (lambda: sample(nano.model, *both, 3), "latent is of the type int; connect Empty Ladder Latent"),
        (lambda: sample(nano.model, *both, scene.latent, image_only="x"), "image_only is of the type str"),
        (lambda: sample(nano.model, *both, scene.latent, gains=3), "The gains are 3; give a list"),
        (lambda: sample(nano.model, *both, scene.latent, gains=["a"] * 6), "The gains are .*; give a list"),
        (lambda: LadderGuider.execute(3, *both, 1.0, 1.0, 1.0, 1.0), "not a TBAC-UniImage model"),
        (lambda: mixed(nano, 3, scene.positive, 0.5), "first conditioning is of the type int"),
        (lambda: gained(nano, model=3), "not a TBAC-UniImage model"),
        (lambda: LadderEmptyLatent.execute(3, 0, 0, 1), "model is of the type int; connect Load Model"),
        (lambda: LadderEmptyLatent.execute(nano.model, -64, 0, 1), "width is -64; give a number from 0"),
        (lambda: LadderEncode.execute(3, PROMPT), "mllm is of the type int; connect Load Model"),
        (lambda: LadderEncode.execute(nano.mllm, PROMPT, None, "x"), "image_2 is of the type str; connect"),
        (lambda: LadderImageEdit.execute(3, PROMPT, picture), "mllm is of the type int; connect"),
        (lambda: LadderImageEdit.execute(nano.mllm, PROMPT, 3), "image is of the type int; connect"),
        (lambda: LadderImageEdit.execute(nano.mllm, PROMPT, picture, side=9999), "side is 9999; give"),
        (lambda: LadderAsk.execute(3, "what?"), "mllm is of the type int; connect"),
        (lambda: LadderSaveConditioning.execute(3, "x"), "The conditioning is empty; connect"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_what_belongs_to_another_model_is_one_sentence(nano, scene, loaded):
    """Conditionings, latents and models that do not fit, also in a stock sampler."""
    from tbac_uniimage.nodes.conditioning import LadderEncode

    import nodes as stock

    foreign = LadderEncode.execute(loaded.mllm, PROMPT).result[0]
    both = scene.positive, scene.negative
    wide = {"samples": torch.zeros(1, 4, 8, 8) + 1}
    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(2, 2)))
    needed = "this model needs 6 rungs of"
    for call, message in [
        (lambda: sample(nano.model, foreign, scene.negative, scene.latent), f"positive has .* {needed}"),
        (lambda: mixed(nano, scene.positive, foreign, 0.5), f"The second conditioning has .* {needed}"),
        (
            lambda: ladder_guided(nano, scene, (scene.positive, foreign), 3.0, 2.0, 1.0),
            f"negative .* {needed}",
        ),
        (
            lambda: stock.KSampler().sample(
                nano.model, 7, 2, 3.0, "euler", "simple", foreign, foreign, scene.latent, 1.0
            ),
            f"The conditioning is of shape .* {needed}",
        ),
        (lambda: sample(nano.model, *both, wide), f"The latent has the shape .* needs {CHANNELS} channels"),
        (lambda: gained(nano, model=other), "not a TBAC-UniImage model"),
        (lambda: sample(nano.model, [], scene.negative, scene.latent), "positive is an empty conditioning"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
