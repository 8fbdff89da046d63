"""The sections of a recipe: every key, its default, and what it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ...core.paths import user_path
from ...core.rung_kinds import RungKind

SWITCHES = {"on": True, "yes": True, "off": False, "no": False}


def whole(value: Any) -> Any:
    """``1e5`` is a float to YAML; a number of steps all the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def switch(value: Any) -> Any:
    """``on`` and ``off`` are text to YAML 1.2."""
    return SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


def project(value: Any) -> Any:
    """``wandb: off`` names no project."""
    return None if switch(value) is False else value


Whole = Annotated[int, BeforeValidator(whole)]
Count = Annotated[Whole, Field(ge=1)]
Switch = Annotated[bool, BeforeValidator(switch)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Settings that know all their keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BaseModels(Section):
    """Pretrained parts that a new model is assembled from, where ``init`` is null.

    Attributes:
        mllm: Qwen2.5-VL, folder or hub id.
        sana: SANA in diffusers' layout, folder or hub id.
        tokenizer: folder of a tokenizer, where the MLLM's has none.
        num_queries: learnable queries.
        mllm_dtype: type of the weights of the MLLM's linear layers while training, also where ``init`` is
            given: ``int8`` or ``fp8`` (torchao, weights only, not of the vision tower), null for that of
            ``train.precision``.
    """

    mllm: Text = "Qwen/Qwen2.5-VL-3B-Instruct"
    sana: Text = "Efficient-Large-Model/Sana_1600M_512px_diffusers"
    tokenizer: Text | None = None
    num_queries: Count = 64
    mllm_dtype: Literal["int8", "fp8"] | None = None


class ModelSettings(Section):
    """What of the model a run decides.

    Attributes:
        rungs: which states of the MLLM the blocks are told, see :class:`..core.connector.LadderConnector`;
            null keeps the kind of the model that the run starts from, of a new one ``ladder``, the published.
        source_latents: whether the transformer also reads the latents of what is edited; true gives a model
            that does not yet the weights for it, zeros, false takes them away, null keeps the model.
        text_states: whether the blocks attend to the text's own tokens beside the queries; true gives a model
            that does not yet the weights for it, zeros, false takes them away, null keeps the model.
    """

    rungs: RungKind | None = None
    source_latents: Switch | None = None
    text_states: Switch | None = None


class DataSet(Section):
    """One indexed data set.

    Attributes:
        index: folder that `tbac-uniimage data index` wrote; may start with ``~``.
        weight: times each sample is seen per epoch.
        name: in logs, and in what decides on the order of samples; null: that of the index, or its path where
            two indexes are called the same.
        exclude: globs of sample keys to leave out; one that fits no key is an error.
        lenient: whether a glob may fit none.
    """

    index: Text
    weight: Annotated[float, Field(gt=0)] = 1.0
    name: Text | None = None
    exclude: list[Text] = []
    lenient: bool = False

    @property
    def folder(self) -> Path:
        """Where the index is."""
        return user_path(self.index)


class DropSettings(Section):
    """Shares of samples that lose their condition, so that guidance has its branches.

    Attributes:
        caption: of the samples without input image, those that lose their caption.
        text: of the edits, those that lose their instruction, with or without image.
        image: of the edits, those whose input images are blackened, with or without instruction.
        both: of the edits, those that lose both; counted in ``text`` and in ``image``.
    """

    caption: Share = 0.1
    text: Share = 0.2
    image: Share = 0.2
    both: Share = 0.1

    @model_validator(mode="after")
    def check(self) -> DropSettings:
        if self.both > min(self.text, self.image):
            raise ValueError(
                f"data.drop.both is {self.both}, more than data.drop.text = {self.text} or data.drop.image = "
                f"{self.image}, which include it; lower it."
            )
        if self.text + self.image - self.both > 1 + 1e-9:
            raise ValueError(
                f"data.drop.text = {self.text} and data.drop.image = {self.image} with data.drop.both = "
                f"{self.both} in common are more than all edits; lower one of them."
            )
        return self


class CacheSettings(Section):
    """Folders of values computed before; null computes them anew.

    Attributes:
        latents: of the target images.
        vision: vision tokens of the input images.
    """

    latents: Text | None = None
    vision: Text | None = None


class DataSettings(Section):
    """What is trained on.

    Attributes:
        sets: data sets that are mixed.
        resolution: side of a square target in pixels.
        aspect: ``square`` crops all; ``buckets`` takes the nearest aspect ratio of resolution² pixels.
        crop: where the crop is.
        drop: dropped conditions.
        max_bad: the run stops when more than this share of the samples read is bad.
        workers: processes that load, per device; 0 loads in the training process.
        cache: values computed before.
    """

    sets: Annotated[list[DataSet], Field(min_length=1)]
    resolution: Annotated[Whole, Field(ge=32)] = 512
    aspect: Literal["square", "buckets"] = "square"
    crop: Literal["center", "random"] = "center"
    drop: DropSettings = DropSettings()
    max_bad: Share = 0.001
    workers: Annotated[Whole, Field(ge=0)] = 4
    cache: CacheSettings = CacheSettings()

    @model_validator(mode="after")
    def check(self) -> DataSettings:
        if self.cache.latents and self.crop == "random":
            raise ValueError(
                "data.cache.latents needs the same crop every time, which data.crop = random does not give; "
                "set data.crop=center or data.cache.latents=null."
            )
        return self


class ObjectiveSettings(Section):
    """How noise levels are drawn.

    Attributes:
        timesteps: ``uniform`` is published.
        shift: towards noise; trained at 1, sampled at 3, as published.
    """

    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    shift: Annotated[float, Field(gt=0)] = 1.0


class DistillationSettings(Section):
    """Few-step distillation, see :mod:`..step.few_steps`: a student that needs no guidance.

    Attributes:
        steps: evaluations of the transformer that a picture shall take; null trains by flow matching.
        guidance: of the teacher, towards captions.
        edit_guidance: of the teacher, towards instructions.
        image_guidance: of the teacher, towards the picture that is edited.
        solver_steps: steps of the teacher, of two evaluations each, within one of the student.
    """

    steps: Annotated[Whole, Field(ge=1, le=8)] | None = None
    guidance: Annotated[float, Field(ge=0)] = 4.5
    edit_guidance: Annotated[float, Field(ge=0)] = 4.5
    image_guidance: Annotated[float, Field(ge=0)] = 1.5
    solver_steps: Count = 1


class LoraSettings(Section):
    """Low-rank adapters on the diffusion transformer.

    Attributes:
        rank: of the update of a weight.
        alpha: the update is scaled by alpha / rank.
        dropout: before the first factor.
        targets: endings of the names of the layers that are adapted.
    """

    rank: Count = 32
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[list[Text], Field(min_length=1)] = ["to_q", "to_k", "to_v", "to_out.0"]


class TrainSettings(Section):
    """The optimisation.

    Attributes:
        steps: optimizer steps, or null.
        epochs: passes through the mixture, or null; exactly one of the two is given.
        batch: samples per optimizer step, over all devices.
        micro_batch: samples that go through the model at once, on one device.
        masked_loss: whether a target that has a mask counts only where that is white.
        mask_floor: what black counts, of 1 for white: a little keeps what is masked from drifting.
        parts: ``all`` trains queries, connector and diffusion transformer, ``lora`` adapters of the latter.
        lora: used where parts is lora.
        learning_rate: after warm-up, then along a cosine.
        min_learning_rate: at the last step.
        rates: factors of both for single layers or parts, by name: ``{source_embed: 10}`` for a layer that
            begins at zero in a model that is trained already.
        warmup: steps from 0 to learning_rate.
        betas: of AdamW.
        weight_decay: of weight matrices; never of norms, biases, tables and queries.
        clip: largest norm of an applied gradient.
        optimizer: ``adamw_8bit`` keeps its moments in 8 bits (CUDA only).
        precision: of what is computed; trained weights are float32 always.
        parallel: ``ddp`` holds the trained state on every device, ``fsdp2`` a part of it.
        gradient_checkpointing: computes the blocks twice to save memory.
        offload: keeps MLLM and autoencoder in main memory, and brings a layer where it is computed.
        compile: compiles the blocks.
        ema: decay of averaged weights per step, null averages none, as published.
        profile: steps whose trace by torch's profiler is written into the run's folder, 0 for none.
    """

    steps: Count | None = None
    epochs: Count | None = None
    batch: Count = 128
    micro_batch: Count = 16
    masked_loss: Switch = True
    mask_floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    parts: Literal["all", "lora"] = "all"
    lora: LoraSettings = LoraSettings()
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-5
    rates: dict[Text, Annotated[float, Field(gt=0)]] = {}
    warmup: Annotated[Whole, Field(ge=0)] = 5000
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip: Annotated[float, Field(gt=0)] = 0.5
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    precision: Literal["bf16", "fp32"] = "bf16"
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    gradient_checkpointing: Switch = True
    offload: Switch = False
    compile: Switch = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    profile: Annotated[Whole, Field(ge=0)] = 0

    @model_validator(mode="after")
    def check(self) -> TrainSettings:
        if (self.steps is None) == (self.epochs is None):
            both = "both" if self.steps else "neither"
            raise ValueError(
                f"train.steps and train.epochs are {both} given; give exactly one, null the other."
            )
        if self.batch % self.micro_batch:
            raise ValueError(
                f"train.batch is {self.batch}, which train.micro_batch = {self.micro_batch} does not divide; "
                "change one of them."
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas are {list(self.betas)}; both must be at least 0 and below 1.")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"train.min_learning_rate is {self.min_learning_rate}, above train.learning_rate = "
                f"{self.learning_rate}; lower it."
            )
        if self.steps is not None:
            check_warmup(self.warmup, self.steps)
        return self


class MonitorRecipe(Section):
    """When the gradient monitor trips, rolls back and gives up; see :class:`.monitor.MonitorSettings`."""

    enabled: Switch = True
    deviations: Annotated[float, Field(ge=1)] = 6.0
    floor: Annotated[float, Field(gt=0)] = 0.1
    young: Annotated[Whole, Field(ge=2)] = 100
    memory: Annotated[float, Field(gt=0, lt=1)] = 0.99
    trips: Count = 20
    rollbacks: Annotated[Whole, Field(ge=0)] = 3


class CheckpointSettings(Section):
    """When checkpoints are written, and which stay.

    Attributes:
        every: steps between two.
        keep: the newest that stay; a roll-back needs one from before the trouble.
        best: keep that of the lowest validation loss too.
        asynchronous: go on training while one is written.
    """

    every: Count = 1000
    keep: Count = 3
    best: Switch = True
    asynchronous: Switch = True


class ValidationEdit(Section):
    """An edit to draw: a picture, may start with ``~``, and what to do to it."""

    image: Text
    instruction: str


class ValidationSet(Section):
    """A fixed part of a benchmark, drawn and judged while training.

    Attributes:
        name: of a set that was fetched, such as ``geneval``.
        items: so many, spread over the set.
        url: OpenAI-compatible address of a local judge, or null.
        judge: the model there, or null.
        detector: folder of a Mask2Former that judges GenEval, or null.
        clip: folder of CLIP beside it, or null.
        folder: where the fetched sets lie, null where `evaluate fetch` puts them.
    """

    name: Text
    items: Count = 16
    url: Text | None = None
    judge: Text | None = None
    detector: Text | None = None
    clip: Text | None = None
    folder: Text | None = None


class ValidationSettings(Section):
    """What is drawn and measured while training.

    Attributes:
        every: steps between two validations, 0 makes none.
        prompts: texts to draw.
        edits: pictures to edit.
        steps: of the sampler.
        guidance: towards the text.
        image_guidance: of edits, towards the picture.
        seed: of the noise of the drawings.
        held_out: samples that are measured and never trained on.
        sets: parts of benchmarks to draw and judge.
    """

    every: Annotated[Whole, Field(ge=0)] = 1000
    prompts: list[str] = []
    edits: list[ValidationEdit] = []
    steps: Count = 20
    guidance: Annotated[float, Field(ge=0)] = 4.5
    image_guidance: Annotated[float, Field(ge=0)] = 1.5
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    held_out: Annotated[Whole, Field(ge=0)] = 64
    sets: list[ValidationSet] = []


class LogSettings(Section):
    """Where the run's figures go.

    Attributes:
        every: steps between two lines.
        tensorboard: write event files too.
        wandb: project of Weights & Biases, null for none.
    """

    every: Count = 10
    tensorboard: Switch = True
    wandb: Annotated[Text | None, BeforeValidator(project)] = None


def check_warmup(warmup: int, steps: int) -> None:
    """Raise ValueError if a run ends before its warm-up."""
    if warmup > steps:
        raise ValueError(f"train.warmup is {warmup}, more than the run's {steps} steps; lower train.warmup.")
