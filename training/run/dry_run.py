"""What a run would be, as text: the recipe in full, parameters, data, steps and memory (``--dry-run``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...core.checkpoints import LadderParts
from ..data.order import Order, Source
from ..recipe.memory import estimate_memory, parameter_counts
from ..recipe.recipe import Recipe, recipe_yaml, total_steps

GIB = 1 << 30
Row = Sequence[str]


def summarise(
    recipe: Recipe,
    parts: LadderParts,
    sources: Sequence[Source],
    world: int,
    images: int = 1,
    found: Path | None = None,
    told: Sequence[str] = (),
) -> str:
    """The text of a dry run, at most 100 columns wide where the recipe's own lines are.

    Args:
        recipe: resolved.
        parts: the model, also on the meta device.
        sources: the data sets as the order gets them: names, samples per bucket after `exclude`, weights.
        world: number of devices.
        images: input images of a sample at most, 0 if there are no edits.
        found: checkpoint of the run that it would go on from, None if it would begin.
        told: lines about the data: texts that are cut, masks.

    Raises:
        ValueError: data that no order can be made of, or a warm-up that is longer than the run.
    """
    order = Order(sources, recipe.train.batch, recipe.seed, recipe.stage, recipe.validation.held_out)
    sections = {
        "Recipe": recipe_yaml(recipe).rstrip(),
        "Model": model_text(recipe, parts),
        "Data": "\n".join([data_text(order), *told]),
        "Steps": steps_text(recipe, order, world, found),
        "Memory of one device": memory_text(recipe, parts, world, images),
    }
    return "\n\n".join(f"{title}\n{'-' * len(title)}\n{text}" for title, text in sections.items()) + "\n"


def model_text(recipe: Recipe, parts: LadderParts) -> str:
    """Where the model comes from, and its parameters by part."""
    base = recipe.base
    start = f"A new model of {base.mllm} and {base.sana} with {base.num_queries} new queries."
    if recipe.init is not None:
        averaged = ", averaged weights" if recipe.init_ema else ""
        start = f"Starts from {recipe.init}{averaged} (init is given, so base is not read)."
    counts = parameter_counts(parts, recipe)
    rows = [[name, f"{trained:,}", f"{frozen:,}"] for name, (trained, frozen) in counts.items()]
    totals = [f"{sum(column):,}" for column in zip(*counts.values(), strict=True)]
    return f"{start}\n\n" + table(["part", "trained", "frozen"], [*rows, ["together", *totals]])


def data_text(order: Order) -> str:
    """The mixture, and what a small bucket does to it."""
    per_epoch = order.samples_per_epoch()
    rows = [
        [
            source.name,
            f"{sum(source.sizes):,}",
            f"{sum(held):,}",
            f"{source.weight:g}",
            f"{seen:,.0f}",
            f"{100 * seen / sum(per_epoch):.2f}",
        ]
        for source, held, seen in zip(order.sources, order.held, per_epoch, strict=True)
    ]
    sizes = [sum(source.sizes) for source in order.sources]
    held = sum(map(sum, order.held))
    rows.append(["together", f"{sum(sizes):,}", f"{held:,}", "", f"{sum(per_epoch):,.0f}", "100.00"])
    text = table(["data set", "samples", "held out", "weight", "per epoch", "share, %"], rows)
    small = [b for b, size in enumerate(order.rounds) if 0 < size < order.batch]
    if small:
        repeated = sum(order.batch - order.rounds[b] for b in small)
        text += (
            f"\n{len(small)} of {order.buckets} buckets have less than one step's {order.batch} samples; "
            f"filling their steps\nrepeats {repeated:,} samples per epoch."
        )
    return text


def steps_text(recipe: Recipe, order: Order, world: int, found: Path | None) -> str:
    """How long the run is, where it begins, and how a step is cut."""
    train = recipe.train
    steps = total_steps(train, order.steps_per_epoch)
    rounds = train.batch / train.micro_batch / world
    rows = [
        ["steps per epoch", f"{order.steps_per_epoch:,}"],
        ["steps", f"{steps:,}"],
        ["epochs", f"{steps / order.steps_per_epoch:.2f}"],
        ["samples seen", f"{steps * train.batch:,}"],
        ["samples per step", f"{train.batch:,}"],
        ["samples at once per device", f"{train.micro_batch:,}"],
        ["devices", f"{world:,}"],
        ["passes per step and device", f"{rounds:g}"],
    ]
    start = f"Goes on from {found}." if found else f"Begins in {recipe.run}."
    return f"{start}\n\n{table(None, rows)}"


def memory_text(recipe: Recipe, parts: LadderParts, world: int, images: int) -> str:
    """The estimate by part."""
    estimate = estimate_memory(parts, recipe, world, images)
    rows = [[name, f"{size / GIB:.2f}"] for name, size in estimate.items() if size >= GIB / 200]
    rows.append(["together", f"{sum(estimate.values()) / GIB:.2f}"])
    return (
        table(["GiB, an estimate", ""], rows)
        + "\nComputed, but for activations: those of a step on tensors without values are counted."
    )


def table(header: Row | None, rows: Sequence[Row]) -> str:
    """Columns under each other: the first to the left, numbers to the right."""
    lines = [row for row in (header, *rows) if row is not None]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in lines
    )
