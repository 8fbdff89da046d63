"""The log of a run: JSON lines, TensorBoard, and Weights & Biases when asked.

Every line has ``step``, the optimizer steps done when it was written. A run that is resumed after step s
first drops all lines after s, so that its curves are unbroken.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exits import DISK, Stop

if TYPE_CHECKING:
    from PIL import Image

METRICS, SKIPS, BAD_SAMPLES = "metrics.jsonl", "skips.jsonl", "bad_samples.jsonl"


class RunLog:
    """Writes the log of a run, on one process only.

    Args:
        run: folder of the run; made if need be.
        step: optimizer steps done; what the folder holds of later ones is dropped.
        tensorboard: whether to write ``run/tensorboard``.
        wandb: project at Weights & Biases, or None.
        config: the resolved recipe, for Weights & Biases.
        enabled: False on all processes but the first: nothing is read, dropped or written.

    Raises:
        ValueError: a log of the folder is damaged before its last line.
        ImportError: TensorBoard or wandb is asked for and not installed.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        tensorboard: bool,
        wandb: str | None,
        config: Mapping[str, Any],
        enabled: bool = True,
    ) -> None:
        self.run = Path(run)
        self.enabled = enabled
        self.files: dict[str, FileIO] = {}
        self.tensorboard = self.wandb = None
        if not enabled:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            self.tensorboard = open_tensorboard(self.run, step)
        if wandb is not None:
            self.wandb = open_wandb(self.run, wandb, config)
        for name in (METRICS, SKIPS, BAD_SAMPLES):
            drop_after(self.run / name, step)

    def line(self, values: Mapping[str, Any]) -> None:
        """Log a step: one line of ``metrics.jsonl``, and its numbers as curves.

        Args:
            values: ``step`` and whatever was measured: numbers, None, and lists or dicts of them.
        """
        if not self.enabled:
            return
        self.write(METRICS, values)
        scalars = dict(flatten(values))
        step = scalars.pop("step")
        if self.tensorboard is not None:
            with full_disk_stops(self.run / "tensorboard"):
                for name, value in scalars.items():
                    self.tensorboard.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(scalars, step=step)

    def skip(self, values: Mapping[str, Any]) -> None:
        """Log a step that was not applied: one line of ``skips.jsonl``.

        Args:
            values: ``step``, ``decision``, ``norm``, ``threshold``, ``finite``, the ``positions`` read, from
                the first to before the last, and the keys of their ``samples``.
        """
        if self.enabled:
            self.write(SKIPS, values)

    def bad_samples(self, step: int, lines: Sequence[str]) -> None:
        """Log samples that could not be used: a line of ``bad_samples.jsonl`` each.

        Args:
            step: optimizer steps done with the one that met them.
            lines: key and reason, one text per sample.
        """
        if self.enabled:
            for line in lines:
                self.write(BAD_SAMPLES, {"step": step, "sample": line})

    def image(self, name: str, picture: Image.Image, step: int) -> None:
        """Log a picture."""
        if self.tensorboard is not None:
            import numpy as np

            pixels = np.asarray(picture.convert("RGB"))
            with full_disk_stops(self.run / "tensorboard"):
                self.tensorboard.add_image(name, pixels, step, dataformats="HWC")
        if self.wandb is not None:
            import wandb

            self.wandb.log({name: wandb.Image(picture)}, step=step)

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        """Append a line to one of the files; it is in the system's hands afterwards.

        Raises:
            Stop: it cannot be written.
        """
        text = json.dumps(without_nan(values), ensure_ascii=False, allow_nan=False)
        line = memoryview(f"{text}\n".encode())
        with full_disk_stops(self.run / name):
            if name not in self.files:
                self.files[name] = FileIO(self.run / name, "a")  # nothing is buffered
            while line:
                line = line[self.files[name].write(line) :]

    def flush(self) -> None:
        """Bring everything to the disk, before a checkpoint that goes on from here.

        Raises:
            Stop: it cannot be written.
        """
        for name, file in self.files.items():
            with full_disk_stops(self.run / name):
                os.fsync(file.fileno())
        if self.tensorboard is not None:
            with full_disk_stops(self.run / "tensorboard"):
                self.tensorboard.flush()

    def close(self) -> None:
        """End the log; nothing can be written afterwards.

        Raises:
            Stop: what was not written yet cannot be.
        """
        for name, file in self.files.items():
            with full_disk_stops(self.run / name):
                file.close()
        if self.tensorboard is not None:
            with full_disk_stops(self.run / "tensorboard"):
                self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


@contextmanager
def full_disk_stops(path: Path) -> Iterator[None]:
    """End the run with a sentence where a log cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise Stop(f"The log {path} cannot be written: {reason}; free some space.", DISK) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that was not written whole is left out.

    Raises:
        ValueError: another line is damaged.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end is torn, or nothing
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) - 1:
                break
            raise ValueError(
                f"Line {number} of {path} is damaged; remove it, or the file if its curves are not needed."
            ) from error
        records.append(record)
    return records


def drop_after(path: Path, step: int) -> None:
    """Rewrite a log without its lines after ``step``, at once, if it has any or ends in a torn line."""
    if not path.exists():
        return
    kept = [record for record in read_lines(path) if record["step"] <= step]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept).encode()
    if text == path.read_bytes():
        return
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float | int]]:
    """Numbers by name, those of lists and dicts as ``name/key``; what is None or no number is left out."""
    numbers: list[tuple[str, float | int]] = []
    for key, value in values.items():
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            numbers += flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            numbers.append((f"{prefix}{key}", value + 0))  # a bool counts 0 or 1
    return numbers


def without_nan(value: Any) -> Any:
    """The same with None in place of numbers that are not finite, which JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return value


def open_tensorboard(run: Path, step: int) -> Any:
    """A writer of ``run/tensorboard`` that hides what came after ``step``."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "log.tensorboard needs TensorBoard: pip install tensorboard, or set log.tensorboard=false."
        ) from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)


def open_wandb(run: Path, project: str, config: Mapping[str, Any]) -> Any:
    """The Weights & Biases run that belongs to a folder; its id is kept there.

    What the service holds of dropped steps stays there: it takes only steps after its last.
    """
    try:
        import wandb
    except ImportError as error:
        raise ImportError("log.wandb needs wandb: pip install wandb, or set log.wandb=null.") from error
    known = run / "wandb_id.txt"
    if not known.exists():
        partial = known.with_name(f".{known.name}.partial")
        partial.write_text(secrets.token_hex(4), encoding="utf-8")
        partial.replace(known)
    identity = known.read_text(encoding="utf-8").strip()
    return wandb.init(
        project=project, name=run.name, dir=str(run), id=identity, resume="allow", config=dict(config)
    )
