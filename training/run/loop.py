"""The loop: one optimizer step after another, each a function of the recipe, the seed and its number.

A step reads ``train.batch`` positions in micro-batches. All its gradients are reduced, the monitor decides on
their one global norm, and then either everything is updated or nothing is.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor
from tqdm import tqdm

from ...core.checkpoints import LadderParts
from ..data.batch import TrainBatch
from ..data.loading import as_stop, loader
from ..data.order import generator
from ..data.samples import MicroBatches
from ..exits import BAD_DATA, INTERRUPTED, UNSTABLE, Stop
from ..recipe.recipe import Recipe
from ..report.log import RunLog
from ..report.profile import traced_steps
from ..report.progress import progress_bar
from ..report.throughput import Throughput
from ..step import optimizer
from ..step.ema import AveragedWeights
from ..step.few_steps import make_trainee
from ..step.monitor import Decision, GradientMonitor, MonitorSettings
from ..step.trainee import parameters_by_name
from . import engine
from .checkpoints import folders, shards
from .checkpoints.keeper import Keeper
from .sums import OwnSums, StepSums
from .validation import Judged, Validator

FIRST_SAMPLES = 10_000  # the share of bad samples is not judged on fewer


class Trainer:
    """A run between its first and its last step.

    Args:
        recipe: the resolved recipe.
        accelerator: the processes.
        parts: the model on the accelerator's device; trained parts float32.
        dataset: micro-batches by their number.
        held_out: micro-batches that training never sees, the same for every validation.
        steps: optimizer steps in all.
        judged: draws and judges parts of benchmarks, None where the recipe names none.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        parts: LadderParts,
        dataset: MicroBatches,
        held_out: list[TrainBatch],
        steps: int,
        judged: Judged | None = None,
    ) -> None:
        settings = recipe.train
        self.recipe = recipe
        self.run = Path(recipe.run).expanduser()
        self.accelerator = accelerator
        self.parts = parts
        self.dataset = dataset
        self.steps = steps
        self.trainee = make_trainee(parts, recipe, accelerator.device)
        self.module = engine.wrap(accelerator, self.trainee, engine.wanted_parallel(settings.parallel))
        self.named = parameters_by_name(self.trainee)
        self.parameters = list(self.named.values())
        self.optimizer = optimizer.make_optimizer(
            optimizer.parameter_groups(self.trainee, settings.weight_decay, settings.rates), settings
        )
        self.ema = AveragedWeights(self.named, settings.ema) if settings.ema else None
        self.monitor = GradientMonitor(MonitorSettings(**recipe.monitor.model_dump()))
        self.validator = Validator(
            recipe,
            accelerator,
            parts,
            self.trainee,
            self.ema,
            held_out,
            self.losses,
            [data.name for data in dataset.sets],
            judged,
        )
        self.keeper = Keeper(
            self.run,
            recipe.checkpoint,
            accelerator,
            is_calm=lambda: self.monitor.first_trip_step is None,
            say=self.say,
        )
        self.done = 0  # steps
        self.samples = 0
        self.bad = 0
        self.stop_asked = False

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name, as it is used: loading into these restores the run."""
        tensors = {f"trained/{name}": parameter.detach() for name, parameter in self.named.items()}
        tensors |= optimizer.optimizer_tensors(self.named, self.optimizer)
        return tensors | (self.ema.tensors() if self.ema else {})

    def state(self) -> dict[str, Any]:
        """Everything else that a resumed run goes on from."""
        return {
            "step": self.done,
            "samples": self.samples,
            "bad": self.bad,
            "best": self.keeper.best,
            "monitor": self.monitor.state_dict(),
            "data": fingerprints(self.dataset),
        }

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of this run."""
        state = folders.read_state(path)
        if state["data"] != fingerprints(self.dataset):
            raise ValueError(
                f"The data sets of {self.run} have changed since {path.name} was saved, so the run cannot go "
                "on with them; bring the old indices back, or start a new run (run=) from it (init=)."
            )
        shards.load(path, self.tensors())
        self.done, self.samples, self.bad = state["step"], state["samples"], state["bad"]
        self.keeper.resume(state["best"])
        self.monitor.load_state_dict(state["monitor"])

    def fit(self) -> None:
        """Run to the last step.

        Raises:
            Stop: the monitor gave up, the data are too bad, no checkpoint can be written, or SIGTERM came.
        """
        settings = self.recipe
        self.log = RunLog(
            self.run,
            self.done,
            tensorboard=settings.log.tensorboard,
            wandb=settings.log.wandb,
            config=settings.model_dump(mode="json"),
            enabled=self.accelerator.is_main_process,
        )
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.batches = loader(self.dataset, rank, world, self.done, self.steps, workers=settings.data.workers)
        self.throughput = Throughput(self.parts, self.accelerator.device, world)
        previous = {s: signal.signal(s, self.ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        bar = progress_bar(
            total=self.steps,
            initial=self.done,
            desc=settings.stage,
            unit="step",
            shown=self.accelerator.is_main_process,
        )
        try:
            wanted = settings.train.profile if self.accelerator.is_main_process else 0
            with traced_steps(self.run, self.done, wanted) as traced:
                while self.done < self.steps:
                    sums = self.step(self.done, bar)
                    traced()
                    bar.update()
                    self.after_step(sums)
        except (RuntimeError, ValueError) as error:
            # a data worker's death may be reported anywhere
            stop = as_stop(error) or engine.as_lost_process(error) or error
            if isinstance(stop, ValueError) or getattr(stop, "alone", False):
                self.say_alone(stop)
            if stop is error:
                raise
            raise stop from error
        finally:
            self.batches.close()
            bar.close()
            self.log.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """The first signal lets the step end and saves; a second Ctrl-C ends at once."""
        if self.stop_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop_asked = True

    def step(self, step: int, bar: tqdm) -> StepSums:
        """One optimizer step, applied or refused as a whole."""
        train = self.recipe.train
        rate = optimizer.learning_rate(
            step, self.steps, train.learning_rate, train.min_learning_rate, train.warmup
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.throughput.begin()
        sums = self.gradients()
        if 0 < sums.weight < train.batch:  # the mean is over the samples that were there
            torch._foreach_mul_([p.grad for p in self.parameters], train.batch / sums.weight)
        norm = broadcast(optimizer.global_norm(self.parameters)).item()
        finite = math.isfinite(norm) and not sums.broken
        threshold = self.monitor.threshold
        decision = self.monitor.decide(norm, finite, step)
        skipped = decision is not Decision.ACCEPT
        self.logged = (step + 1) % self.recipe.log.every == 0 or step + 1 == self.steps or skipped
        part_norms = optimizer.part_norms(self.named) if self.logged else {}
        update_rms = None
        if sums.weight and not skipped:
            update = optimizer.UpdateRMS(self.parameters) if self.logged else None
            optimizer.clip(self.parameters, norm, train.clip)
            self.optimizer.step()
            if self.ema:
                self.ema.update()
            update_rms = update.value() if update else None
        self.optimizer.zero_grad(set_to_none=True)
        self.throughput.count(train.batch, sums.wait)
        self.done = step + 1
        self.samples += int(sums.weight)
        loss = sums.loss / sums.weight if sums.weight else math.nan
        if skipped:
            self.log_skip(step, norm, threshold, finite, decision)
        bar.set_postfix(loss=f"{loss:.4f}", norm=f"{norm:.3f}", skips=self.monitor.skips, refresh=False)
        self.line = {
            "step": self.done,
            "epoch": self.done / self.dataset.order.steps_per_epoch,
            "samples": self.samples,
            "loss": loss,
            "loss_bins": sums.bins,
            "grad_norm": norm,
            "threshold": threshold,
            "skipped": skipped,
            "lr": rate,
            "part_norms": part_norms,
            "update_rms": update_rms,
        }
        self.act_on(decision)
        return sums

    def gradients(self) -> StepSums:
        """Run the step's micro-batches forward and backward; gradients are reduced at the end."""
        train, device = self.recipe.train, self.accelerator.device
        world = self.accelerator.num_processes
        rounds = train.batch // train.micro_batch // world
        own, bad = OwnSums(), []
        for i in range(rounds):
            began = time.perf_counter()
            batch = next(self.batches)
            wait = time.perf_counter() - began
            with engine.accumulating(self.module, last=i == rounds - 1):
                # of a sample that is not there, 0
                losses = torch.where(batch.weight.to(device) > 0, self.losses(batch), 0.0)
                if not self.recipe.distils:  # of a teacher no operations are counted
                    self.throughput.see(batch.inputs, batch.noise.shape)
                # processes average their gradients, so their number cancels; accelerate's own backward would
                # also divide by its gradient_accumulation_steps
                (losses.sum() * (world / train.batch)).backward()
            own.add(losses, batch.weight, self.trainee.noise_levels(batch.u), wait)
            bad += batch.bad
        sums = own.reduced(device, self.stop_asked)
        missing = train.batch - round(sums.weight)
        if missing:
            self.report_bad(gather_object(bad) if world > 1 else bad, missing)
        return sums

    def losses(self, batch: TrainBatch) -> Tensor:
        """Losses of a micro-batch, float32 ``[batch]`` on the device."""
        device = self.accelerator.device
        # what layers draw (dropout of a LoRA) follows from the position too
        torch.manual_seed(position_seed(self.recipe.seed, self.recipe.stage, batch.positions[0]))
        with engine.mixed_precision(self.accelerator, self.recipe.train.gradient_checkpointing):
            return self.module(*self.trainee.arguments(self.parts, batch, device))

    def report_bad(self, lines: list[str], missing: int) -> None:
        """Log samples that could not be read, and stop when there are too many."""
        self.bad += missing
        self.log.bad_samples(self.done + 1, lines)
        read = self.samples + self.bad
        share = self.recipe.data.max_bad
        if self.bad > share * max(read, FIRST_SAMPLES):
            raise Stop(
                f"{self.bad} of the {read} samples read so far could not be used, more than the share "
                f"data.max_bad={share} allows; bad_samples.jsonl in {self.run} names them. Index the data "
                "again, or raise the share.",
                BAD_DATA,
            )

    def log_skip(self, step: int, norm: float, threshold: float, finite: bool, decision: Decision) -> None:
        """Name the samples of a step that was not applied."""
        batch = self.recipe.train.batch
        positions = range(step * batch, (step + 1) * batch)
        keys = [self.dataset.key(position) for position in positions] if self.log.enabled else []
        self.log.skip(
            {
                "step": step + 1,
                "decision": decision.name.lower(),
                "norm": norm,
                "threshold": threshold,
                "finite": finite,
                "positions": [positions.start, positions.stop],
                "samples": keys,
            }
        )

    def act_on(self, decision: Decision) -> None:
        """Roll back or end the run where the monitor says so."""
        if decision is Decision.GIVE_UP:
            self.give_up(self.monitor.explain())
        if decision is not Decision.ROLL_BACK:
            return
        first = self.monitor.first_trip_step
        path = self.keeper.newest_before(first)
        if path is None:
            self.give_up(
                f"{self.monitor.explain()} There is no checkpoint from before step {first} to roll back to."
            )
        shards.load(path, self.tensors())
        self.monitor.restore_statistics(folders.read_state(path)["monitor"])
        self.line["rolled_back_to"] = folders.read_state(path)["step"]
        self.say(f"Step {self.done}: rolled back to the weights of {path.name}; the data go on.")

    def give_up(self, explanation: str) -> NoReturn:
        """Log the last step and end the run."""
        self.log.line(self.line | self.throughput.figures())
        raise Stop(explanation, UNSTABLE)

    def after_step(self, sums: StepSums) -> None:
        """Log, validate and save where it is time to, and end if someone asked."""
        recipe, done, last = self.recipe, self.done, self.done == self.steps
        if recipe.validation.every and (done % recipe.validation.every == 0 or last):
            self.line |= self.validator.validate(done, self.log)
            self.logged = True
        if self.logged:
            self.log.line(self.line | self.throughput.figures())
        stopping = sums.interrupted > 0 and not last
        best = self.keeper.consider(done, self.line.get("validation_loss"))
        if done % recipe.checkpoint.every == 0 or last or stopping or best:
            self.log.flush()
            self.keeper.finish()  # which one is the best depends on it
            self.keeper.save(done, self.tensors(), self.state(), final=last or stopping)
        if stopping:
            raise Stop(
                f"Asked to stop: saved after step {done} of {self.steps}; the same command goes on there.",
                INTERRUPTED,
            )

    def say_alone(self, error: Exception) -> None:
        """Print what ends this process and no other; of the first process the command does it."""
        if not self.accelerator.is_main_process:
            # on a line of its own: the first process's bar may stand there
            print(f"\ntbac-uniimage, process {self.accelerator.process_index}: {error}", file=sys.stderr)

    def say(self, sentence: str) -> None:
        """Print above the progress bar, once."""
        if self.accelerator.is_main_process:
            tqdm.write(sentence)


def position_seed(seed: int, stage: str, position: int) -> int:
    """Seed of torch's generators while the micro-batch that begins at a position is computed."""
    return generator(seed, stage, position, "layers").initial_seed()


def fingerprints(dataset: MicroBatches) -> list[str]:
    """What tells whether data sets are the same."""
    return [data.index.fingerprint for data in dataset.sets]
