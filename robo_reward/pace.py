"""How fast frames follow each other, and the steps of an environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64

from robo_reward.errors import ConfigError

__all__ = ["check_same_pace", "step_ns", "typical_step"]

_TOLERANCE = 0.1
"""Share of a step by which recordings may be faster or slower."""


def typical_step(*stamps_ns: Int64[np.ndarray, " _t"]) -> float:
    """Nanoseconds between two frames of recordings with these stamps, NaN where none has two frames.

    The mean, for frames that were chosen from others at 24 a second are now two, now three of theirs apart,
    and their median is neither; but without gaps, which are more than 2.5 times the median (those at 12 a
    second are one or two of theirs apart).
    """
    steps = np.concatenate([np.diff(stamps) for stamps in stamps_ns] or [np.empty(0)])
    if not len(steps):
        return float("nan")
    return float(steps[steps <= 2.5 * np.median(steps)].mean())


def step_ns(env: Any, step_s: float | None = None) -> int:
    """Nanoseconds of one step of a gymnasium environment, single or vectorized.

    As given in seconds; else its `decision_ns`, else what the `render_fps` of its metadata says.

    Raises:
        ConfigError: nothing says it, or a step that takes no time.
    """
    if step_s is not None:
        if not 0 < step_s < float("inf"):
            raise ConfigError(f"step_s={step_s}: a step takes time")
        return round(step_s * 1e9)
    known = getattr(env.unwrapped, "decision_ns", None)
    if known is not None:
        return int(known)
    rate = env.metadata.get("render_fps")
    if not rate:
        raise ConfigError(
            "the environment does not say how long a step takes (it has no decision_ns, and no render_fps in "
            "its metadata): give step_s="
        )
    return round(1e9 / float(rate))


def check_same_pace(who: str, period_ns: float, name: str, taken_ns: int, way_out: str) -> None:
    """Refuse an environment, called `name`, whose steps are longer or shorter than those that `who` has.

    Args:
        who: what was recorded, as the message calls it.
        period_ns: between two of its actions; NaN where that is not known.
        name: of the environment.
        taken_ns: by one of its steps.
        way_out: what the message says at its end.

    Raises:
        ConfigError: they differ by more than 10 % of a step.
    """
    if abs(period_ns - taken_ns) > _TOLERANCE * taken_ns:
        raise ConfigError(
            f"{who} has an action every {period_ns * 1e-9:.3f} s, {name} every {taken_ns * 1e-9:.3f} s: "
            + way_out
        )
