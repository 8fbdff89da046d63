"""The checkpoints of a run that is going on: when they are through, which stay, and what if one fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ...exits import DISK, Stop
from ...recipe.settings import CheckpointSettings
from .. import engine
from . import folders, shards


class Keeper:
    """Writes checkpoints one after another and removes old ones.

    Args:
        run: folder of the run.
        settings: how many stay, and whether they are written in the background.
        accelerator: the processes.
        is_calm: False while the monitor refuses steps. Nothing is removed then, for a roll-back needs a
            checkpoint from before.
        say: prints a sentence.

    Attributes:
        best: ``{"step", "loss"}`` of the checkpoint of the lowest validation loss, or None.
    """

    def __init__(
        self,
        run: Path,
        settings: CheckpointSettings,
        accelerator: Accelerator,
        is_calm: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self.run = run
        self.settings = settings
        self.accelerator = accelerator
        self.is_calm = is_calm
        self.say = say
        self.best: dict[str, Any] | None = None
        self.best_saved: dict[str, Any] | None = None  # the same without the one that is being written
        self.saving: shards.Saving | None = None

    def resume(self, best: dict[str, Any] | None) -> None:
        """Take over what a checkpoint says of the best one."""
        self.best = self.best_saved = best

    def consider(self, step: int, loss: float | None) -> bool:
        """Whether the checkpoint of a step is the best one so far, and has to be written to be kept."""
        if loss is None or not math.isfinite(loss):
            return False
        self.finish()  # the one before may have been the best and fail
        if self.best and loss >= self.best["loss"]:
            return False
        self.best = {"step": step, "loss": loss}
        return self.settings.best

    def save(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], final: bool) -> None:
        """Begin a checkpoint after the one before is through.

        Args:
            step: optimizer steps done.
            tensors: everything that a step changes.
            state: everything else.
            final: wait for it, and let the run fail if it does.

        Raises:
            Stop: the final one could not be written.
        """
        self.finish()
        asynchronous = self.settings.asynchronous and not final
        self.saving = shards.save(self.run, step, tensors, state, asynchronous=asynchronous)
        if final:
            self.finish(final=True)

    def finish(self, final: bool = False) -> None:
        """Wait for the checkpoint being written. If it failed the run goes on and tries again later."""
        saving, self.saving = self.saving, None
        if saving is None:
            return
        try:
            saving.wait()
        except shards.CheckpointError as error:
            if final:
                raise Stop(str(error), DISK) from error
            self.best = self.best_saved
            self.say(f"{error} The run goes on and tries again at the next checkpoint.")
            return
        self.best_saved = self.best
        if self.accelerator.is_main_process and self.is_calm():
            best = f"step-{self.best['step']:08d}" if self.best and self.settings.best else None
            try:
                folders.prune(self.run, self.settings.keep, best)
            except OSError as error:
                self.say(f"An old checkpoint cannot be removed ({error}); the run goes on, look at its disk.")

    def newest_before(self, step: int) -> Path | None:
        """The newest whole checkpoint that knows nothing of a step (from 0), the same on all processes."""
        self.finish()
        return engine.by_first(self.accelerator, lambda: folders.newest(self.run, before=step)[0])
