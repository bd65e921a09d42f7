"""True stage and in-stage progress of each task, computed from simulator state.

Each task has a potential in [0, k]: the sum of k terms in [0, 1], one a stage, where the term of a stage
counts only as far as the stages before it are done. Its integer part is the stage, its fraction is tau. So
progress is a continuous function of the state: it rises when the scene gets nearer to the goal, falls when
the scene goes back, and stays where nothing moves. Distances are relative to those of the first moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float64

__all__ = [
    "OracleReading",
    "PegOracle",
    "PegScene",
    "StageOracle",
    "box_distance",
    "chain",
    "finger_opening",
    "peg_potential",
    "ramp",
    "reading",
    "staying",
]


@dataclass(frozen=True, slots=True)
class OracleReading:
    """The truth about one moment.

    stage     index of the stage that the task is in, 0..k-1
    tau       progress within that stage, in [0, 1]
    success   True while the simulator calls the task done; then stage is the last and tau is 1
    progress  (stage + tau) / k: every stage counts the same
    """

    stage: int
    tau: float
    success: bool
    progress: float


class StageOracle(Protocol):
    """Reads the truth off one simulated scene. Remembers the first moment of the episode, nothing else."""

    def begin(self, sim: Any) -> None:
        """Take the scene as the first moment of an episode. `sim` is a Meta-World environment after reset."""
        ...

    def potential(self, sim: Any) -> float:
        """The potential of the scene, in [0, k]."""
        ...


def reading(potential: float, stages: int, success: bool, before: int = 0) -> OracleReading:
    """The potential, in [0, stages], as a stage and the progress within it.

    Args:
        potential: of the scene.
        stages: how many there are.
        success: the simulator calls the task done.
        before: the stage of the moment before. A potential that has slipped back below its beginning by
            less than 0.02 stays in it, with tau 0, so that a hand that trembles there makes no stage flicker.
    """
    if success:
        return OracleReading(stage=stages - 1, tau=1.0, success=True, progress=1.0)
    value = min(max(potential, 0.0), float(stages))
    if 0.0 < before - value < _TREMBLE:
        value = float(before)
    stage = min(int(value), stages - 1)
    return OracleReading(stage=stage, tau=value - stage, success=False, progress=value / stages)


_TREMBLE = 0.02


def chain(terms: Sequence[float], gates: Sequence[float]) -> float:
    """Sum of terms in [0, 1], each times the product of the gates in [0, 1] that stand before it.

    `gates[i]` says how far the stages up to `i` are done, so it has one entry fewer than `terms`.
    """
    total, open_ = terms[0], 1.0
    for term, gate in zip(terms[1:], gates, strict=True):
        open_ *= gate
        total += open_ * term
    return total


def staying(way: float, done: float, last: int) -> float:
    """Potential in [0, last + 1] of a task whose last stage leaves something that stays: a drawer stays open.

    The way to it counts only as far as there is something left to do. So at `done` 0 this is `way`, at the
    end of the way `last + done`, and at `done` 1 it is `last + 1` wherever the hand may be.

    Args:
        way: how far the stages before the last are done, in [0, last].
        done: how far the last stage is done, in [0, 1].
        last: index of the last stage.
    """
    return last + done - (last - way) * (1.0 - done)


def ramp(value: float, zero_at: float, one_at: float) -> float:
    """0 at `zero_at`, 1 at `one_at`, linear between and constant beyond (either may be the larger)."""
    return min(max((value - zero_at) / (one_at - zero_at), 0.0), 1.0)


def box_distance(offset: Float64[np.ndarray, " 3"], half: Float64[np.ndarray, " 3"]) -> float:
    """Distance of a point to a box, 0 inside: `offset` from its middle, `half` its extent."""
    return float(np.linalg.norm(np.maximum(np.abs(offset) - half, 0.0)))


def finger_opening(sim: Any) -> float:
    """Distance of the fingers over its maximum, in [0, 1], in a Meta-World environment."""
    right, left = sim.data.body("rightclaw").xpos, sim.data.body("leftclaw").xpos
    return float(min(np.linalg.norm(right - left) / 0.1, 1.0))


@dataclass(frozen=True, slots=True)
class PegScene:
    """What the peg-insertion oracle looks at. Positions in meters, in the world's frame.

    fingers  f64[3] point between the finger tips
    grasp    f64[3] point of the peg that is to be grasped
    axis     f64[3] unit vector along the peg, away from its head
    head     f64[3] head of the peg
    target   f64[3] where the head is to go, inside the hole; the hole opens towards +x
    opening  distance of the fingers over its maximum, in [0, 1]
    """

    fingers: Float64[np.ndarray, " 3"]
    grasp: Float64[np.ndarray, " 3"]
    axis: Float64[np.ndarray, " 3"]
    head: Float64[np.ndarray, " 3"]
    target: Float64[np.ndarray, " 3"]
    opening: float

    @classmethod
    def of(cls, sim: Any) -> PegScene:
        """The scene as it is now in a Meta-World peg-insert-side environment."""
        data = sim.data
        return cls(
            fingers=sim.tcp_center.copy(),
            grasp=data.site("pegGrasp").xpos.copy(),
            axis=data.body("peg").xmat.reshape(3, 3)[:, 0].copy(),
            head=data.site("pegHead").xpos.copy(),
            target=np.asarray(sim._target_pos, np.float64).copy(),
            opening=finger_opening(sim),
        )


_REST_HEIGHT = 0.025  # of the grasp point while the peg lies on the table
_LIFT = 0.04  # the peg counts as lifted this far above the table
_HELD_OPENING = 0.34  # fingers that hold the peg stand 0.30 apart; some play
_NEAR = 0.02  # the fingers are around the peg within this distance
_STANDOFF = 0.08  # the head stands this far before the mouth of the hole when insertion begins
_MOUTH = 0.066  # the mouth is this far before the target
_SUCCESS = 0.07  # the simulator's own radius, with the lateral offset counted twice
_STAYS_IN = 0.080  # a peg that is let go with its head this far before the target stays in the hole,
_FALLS_OUT = 0.092  # one this far before it falls out
_SAG = 0.020  # in the hole it lies this far beside the axis, at most
_LATERAL = 0.012  # the head is on the axis of the hole within this distance


def peg_potential(scene: PegScene, first: PegScene) -> float:
    """Potential of a scene of peg insertion, in [0, 4]: reach, grasp, align, insert.

    reach   the fingers come to the peg (any grasp within 3 cm along it will do)
    grasp   the fingers close on it, then it leaves the table
    align   its head comes to the line of the hole, a hand's breadth before the mouth
    insert  its head moves along that line to where the simulator calls it inserted; in the hole it stays
            where it is when the hand goes

    Args:
        scene: the scene now.
        first: the scene at the first moment of the episode, to which distances are relative.
    """
    distance = _grasp_distance(scene)
    reach = 1.0 - max(distance - _NEAR, 0.0) / max(_grasp_distance(first) - _NEAR, 0.03)
    around = ramp(distance, 0.05, _NEAR)

    closed = ramp(scene.opening, 1.0, _HELD_OPENING) * ramp(scene.opening, 0.15, 0.25)
    lifted = ramp(scene.grasp[2], _REST_HEIGHT, _REST_HEIGHT + _LIFT)
    grasp = 0.5 * closed + 0.5 * closed * lifted

    raised = first.head.copy()
    raised[2] = _REST_HEIGHT - 0.01 + _LIFT
    align = 1.0 - _way_to_axis(scene.head, scene) / max(_way_to_axis(raised, first), 0.03)

    insert = ramp(_depth_distance(scene), _MOUTH + _STANDOFF, _SUCCESS)
    on_axis = ramp(_lateral(scene.head, scene), 0.035, 0.015)

    held = chain(
        (max(reach, 0.0), grasp, max(align, 0.0), insert),
        (around, ramp(grasp, 0.8, 1.0), on_axis),
    )
    # What is in the hole stays there when the hand lets go, a little lower: it needs a push and no new grasp.
    in_hole = ramp(float((scene.head - scene.target)[0]), _FALLS_OUT, _STAYS_IN) * ramp(
        _lateral(scene.head, scene), 0.034, _SAG
    )
    return max(held, in_hole * (3.0 + insert))


class PegOracle:
    """Truth for peg insertion."""

    def begin(self, sim: Any) -> None:
        """Remember where everything was at first."""
        self._first = PegScene.of(sim)

    def potential(self, sim: Any) -> float:
        """See `peg_potential`."""
        return peg_potential(PegScene.of(sim), self._first)


def _grasp_distance(scene: PegScene) -> float:
    offset = scene.fingers - scene.grasp
    along = float(offset @ scene.axis)
    across = offset - along * scene.axis
    # Finger tips that stand below the grasp point are around the peg; it is 3 cm thick.
    across[2] = max(across[2], 0.0) if across[2] > -0.04 else across[2] + 0.04
    return float(np.hypot(np.linalg.norm(across), max(abs(along) - 0.03, 0.0)))


def _lateral(head: Float64[np.ndarray, " 3"], scene: PegScene) -> float:
    return float(np.linalg.norm((head - scene.target)[1:]))


def _way_to_axis(head: Float64[np.ndarray, " 3"], scene: PegScene) -> float:
    before = max(float((head - scene.target)[0]) - _MOUTH - _STANDOFF, 0.0)
    return max(float(np.hypot(_lateral(head, scene), before)) - _LATERAL, 0.0)


def _depth_distance(scene: PegScene) -> float:
    return float(np.linalg.norm((scene.head - scene.target) * (1.0, 2.0, 2.0)))
