"""Schedulers: those of the recipe, and what a call makes of whichever one a pipeline has."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from diffusers.schedulers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)

FLOW_SHIFT = 3.0


def recipe_scheduler(shift: float = FLOW_SHIFT) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M on flow sigmas with shift 3 (DESIGN "sampling")."""
    return DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
    )


def euler_scheduler(shift: float = FLOW_SHIFT) -> FlowMatchEulerDiscreteScheduler:
    """Euler on the same flow, for comparison and for few steps."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def step_levels(steps: int, shift: float = FLOW_SHIFT) -> list[float]:
    """Noise levels that so many steps go along, from 1 to 0: even ones, moved towards noise.

    They are those of ComfyUI's scheduler *simple* with the same shift.
    """
    even = [1 - i / steps for i in range(steps + 1)]
    return [shift * level / (1 + (shift - 1) * level) for level in even]


def check_flow(scheduler: SchedulerMixin) -> None:
    """Raise ValueError if a scheduler takes the model's velocities for something else.

    Schedulers that can predict several things say so in ``prediction_type``; those of flows alone have none.
    What a class does not know stays in its configuration when it is made of another's, so the class is asked.
    """
    known = inspect.signature(type(scheduler).__init__).parameters
    if "prediction_type" not in known:
        return
    config = scheduler.config
    flows = "use_flow_sigmas" in known and config.use_flow_sigmas
    if not flows or config.prediction_type != "flow_prediction":
        raise ValueError(
            f"{type(scheduler).__name__} with prediction_type {config.prediction_type!r} is no scheduler of "
            "a flow; take one that is, as DPMSolverMultistepScheduler or UniPCMultistepScheduler with "
            'prediction_type="flow_prediction" and use_flow_sigmas=True, or FlowMatchEulerDiscreteScheduler.'
        )


def scheduler_for_call(
    scheduler: SchedulerMixin, steps: int, device: torch.device, strength: float = 1.0
) -> SchedulerMixin:
    """A copy of a scheduler, ready for its first step: calls at the same time do not count each other's.

    The first step is told by its place and not found by its timestep, of which there are two alike where
    steps are many.

    Args:
        strength: share of the steps that are made, the last ones, as in image to image of diffusers.

    Raises:
        ValueError: see :func:`check_flow`, and what the scheduler says of that number of steps.
    """
    check_flow(scheduler)
    own = copy.deepcopy(scheduler)
    if type(own) is FlowMatchEulerDiscreteScheduler:  # by itself it would end at the last training level
        own.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device=device)
    else:
        own.set_timesteps(steps, device=device)
    begin = (steps - int(steps * strength)) * own.order
    own.set_begin_index(min(begin, len(own.timesteps)))
    return own


def step_options(
    scheduler: SchedulerMixin, generator: torch.Generator | list[torch.Generator] | None
) -> dict[str, Any]:
    """What a step takes besides sample and velocity: stochastic solvers draw from the call's generators."""
    takes = inspect.signature(scheduler.step).parameters
    return {"generator": generator} if "generator" in takes else {}
