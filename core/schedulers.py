"""The two samplers, both diffusers' own: the recipe's DPM-Solver++ 2M, and Euler."""

from __future__ import annotations

from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

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
