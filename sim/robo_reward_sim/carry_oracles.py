"""Truth for tasks in which something is carried: push, pick-place, shelf-place, assembly, hammer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from robo_reward_sim.motions import HAMMER_FACE
from robo_reward_sim.oracles import box_distance, chain, finger_opening, ramp, staying

__all__ = [
    "CarryOracle",
    "CarryScene",
    "Grip",
    "assembly_potential",
    "hammer_potential",
    "hammer_scene",
    "object_scene",
    "pick_place_potential",
    "push_potential",
    "ring_scene",
    "shelf_potential",
]


@dataclass(frozen=True, slots=True)
class Grip:
    """How an object is held.

    half  half the extent in meters of the box around the object in which finger tips are around it
    held  fingers that hold it stand no further apart than this, in [0, 1], and
    empty no nearer than this
    rest  height of the object while it lies on the table, in meters
    lift  it counts as taken this far above that, in meters
    """

    half: tuple[float, float, float]
    held: float
    empty: float
    rest: float
    lift: float = 0.03


@dataclass(frozen=True, slots=True)
class CarryScene:
    """What these oracles look at. Positions in meters, in the world's frame.

    fingers  f64[3] point between the finger tips
    opening  distance of the fingers over its maximum, in [0, 1]
    thing    f64[3] where the object is to be grasped
    part     f64[3] the part of the object that has to come to the goal (where that is the whole: `thing`)
    goal     f64[3] where it has to come
    depth    how far the nail is in, in [0, 1]; 0 where there is none
    """

    fingers: Float64[np.ndarray, " 3"]
    opening: float
    thing: Float64[np.ndarray, " 3"]
    part: Float64[np.ndarray, " 3"]
    goal: Float64[np.ndarray, " 3"]
    depth: float = 0.0


_FADE = 0.04  # fingers this far out of the box are not around the object, in meters


def _reach(now: CarryScene, first: CarryScene, grip: Grip) -> tuple[float, float]:
    """Progress of the finger tips to the object, and how far they are around it."""
    half = np.array(grip.half)
    distance = box_distance(now.fingers - now.thing, half)
    return max(1.0 - distance / max(box_distance(first.fingers - first.thing, half), 0.03), 0.0), ramp(
        distance, _FADE, 0.0
    )


def _grasp(now: CarryScene, grip: Grip, taken: float) -> float:
    """Half for fingers closed on it, half for having taken it off its place."""
    closed = ramp(now.opening, 1.0, grip.held) * ramp(now.opening, grip.empty - 0.1, grip.empty)
    return 0.5 * closed + 0.5 * closed * taken


def _taken(now: CarryScene, grip: Grip) -> float:
    return ramp(float(now.thing[2]), grip.rest, grip.rest + grip.lift)


def push_potential(now: CarryScene, first: CarryScene, done: float = 0.05) -> float:
    """Potential in [0, 2] of pushing a puck: reach it, push it to within `done` meters of the goal."""
    reach, _ = _reach(now, first, PUSH_GRIP)
    left = max(float(np.linalg.norm(first.part - first.goal)) - done, 0.03)
    push = ramp(float(np.linalg.norm(now.part - now.goal)) - done, left, 0.0)
    return staying(reach, push, last=1)


def pick_place_potential(now: CarryScene, first: CarryScene, done: float = 0.07) -> float:
    """Potential in [0, 3] of bringing a puck to a point: reach, grasp, carry to within `done` meters."""
    reach, around = _reach(now, first, PUCK_GRIP)
    # Not the height alone: a low goal can be reached with next to no lift.
    moved = float(np.linalg.norm(now.thing - first.thing))
    grasp = _grasp(now, PUCK_GRIP, max(_taken(now, PUCK_GRIP), ramp(moved, 0.01, 0.04)))
    left = max(float(np.linalg.norm(first.part - first.goal)) - done, 0.03)
    carry = ramp(float(np.linalg.norm(now.part - now.goal)) - done, left, 0.0)
    return chain((reach, grasp, carry), (around, ramp(grasp, 0.8, 1.0)))


def shelf_potential(now: CarryScene, first: CarryScene, done: float = 0.07) -> float:
    """Potential in [0, 4] of putting a block on a shelf: reach, grasp, lift before the shelf, place on it."""
    reach, around = _reach(now, first, BLOCK_GRIP)
    grasp = _grasp(now, BLOCK_GRIP, _taken(now, BLOCK_GRIP))
    lifted = first.part * (1.0, 1.0, 0.0) + (0.0, 0.0, BLOCK_GRIP.rest + BLOCK_GRIP.lift)
    level = _to_shelf_level(now.part, now.goal)
    lift = ramp(level, max(_to_shelf_level(lifted, first.goal), 0.03), 0.0)
    left = max(float(np.linalg.norm((first.part - first.goal) * (0.0, 1.0, 0.0))) - done, 0.03)
    place = ramp(float(np.linalg.norm(now.part - now.goal)) - done, left, 0.0)
    return chain((reach, grasp, lift, place), (around, ramp(grasp, 0.8, 1.0), ramp(level, 0.03, 0.0)))


def _to_shelf_level(block: Float64[np.ndarray, " 3"], goal: Float64[np.ndarray, " 3"]) -> float:
    """Meters to where the block can be moved straight in: the shelf is 18 cm wide, the board 5 cm below."""
    return box_distance((block - goal) * (1.0, 0.0, 1.0), np.array((0.04, 0.0, 0.035)))


def assembly_potential(now: CarryScene, first: CarryScene) -> float:
    """Potential in [0, 4] of putting a ring on a peg: reach, grasp, carry it over the peg, lower it.

    The simulator calls it done where the ring's center is below the top of the peg and within 2 cm of its
    axis, so the height counts only as far as the ring is over the peg.
    """
    reach, around = _reach(now, first, NUT_GRIP)
    grasp = _grasp(now, NUT_GRIP, _taken(now, NUT_GRIP))
    above = first.part * (1.0, 1.0, 0.0) + (0.0, 0.0, NUT_GRIP.rest + NUT_GRIP.lift)
    way = _way_over_peg(now.part, now.goal)
    carry = ramp(way, max(_way_over_peg(above, first.goal), 0.03), 0.0)
    lower = ramp(float((now.part - now.goal)[2]), _OVER, 0.0)
    return chain((reach, grasp, carry, lower), (around, ramp(grasp, 0.8, 1.0), ramp(way, 0.015, 0.0)))


_OVER = 0.06  # of the ring above the top of the peg when it is to be lowered


def _way_over_peg(center: Float64[np.ndarray, " 3"], goal: Float64[np.ndarray, " 3"]) -> float:
    """Meters to where the ring can be lowered: beside the peg it has to rise, over it any height will do."""
    aside = max(float(np.hypot(*(center - goal)[:2])) - 0.02, 0.0)
    below = max(_OVER - float((center - goal)[2]), 0.0)
    return aside + min(below, 2.0 * aside)


def hammer_potential(now: CarryScene, first: CarryScene) -> float:
    """Potential in [0, 4] of driving a nail: reach the hammer, grasp it, align its face, drive the nail.

    `part` is the hammer's face and `goal` the head of the nail.
    A face at the nail is in the air, so it is held, whatever the fingers look like: a hammer that turns or
    slips in the hand is no step back. And a nail that is in stays in, whatever drove it and whatever becomes
    of the hammer. A potential without these two takes back what was won in the blow that wins it.
    """
    reach, around = _reach(now, first, HAMMER_GRIP)
    grasp = _grasp(now, HAMMER_GRIP, _taken(now, HAMMER_GRIP))
    raised = first.part.copy()
    raised[2] = HAMMER_GRIP.rest + HAMMER_GRIP.lift
    way = _way_to_nail(now.part, now.goal)
    align = ramp(way, max(_way_to_nail(raised, first.goal), 0.05), 0.0)
    held = chain((reach, grasp, align), (around, ramp(grasp, 0.8, 1.0)))
    return staying(max(held, 3.0 * ramp(way, 0.05, 0.0)), now.depth, last=3)


def _way_to_nail(face: Float64[np.ndarray, " 3"], nail: Float64[np.ndarray, " 3"]) -> float:
    """Meters to where the face strikes: before the nail's head and within its radius."""
    return box_distance(face - nail, np.array((0.025, 0.02, 0.025)))


PUSH_GRIP = Grip(half=(0.035, 0.035, 0.03), held=0.52, empty=0.3, rest=0.02)
PUCK_GRIP = Grip(half=(0.025, 0.025, 0.03), held=0.52, empty=0.3, rest=0.02)
BLOCK_GRIP = Grip(half=(0.025, 0.025, 0.03), held=0.46, empty=0.2, rest=0.02)
NUT_GRIP = Grip(half=(0.035, 0.025, 0.03), held=0.55, empty=0.35, rest=0.02)
HAMMER_GRIP = Grip(half=(0.08, 0.025, 0.03), held=0.57, empty=0.35, rest=0.03)


class CarryOracle:
    """Reads the scene, remembers the first one, and asks a potential about the two."""

    def __init__(
        self, potential: Callable[[CarryScene, CarryScene], float], scene: Callable[[Any], CarryScene]
    ) -> None:
        """`potential` of the scene now and the first one; `scene` reads it off a Meta-World environment."""
        self._potential, self._scene = potential, scene

    def begin(self, sim: Any) -> None:
        """Remember where everything was at first."""
        self._first = self._scene(sim)

    def potential(self, sim: Any) -> float:
        """The potential of the scene, in [0, k]."""
        return self._potential(self._scene(sim), self._first)


def object_scene(sim: Any) -> CarryScene:
    """A scene in which the object itself has to come to the goal."""
    thing = sim._get_pos_objects()[:3].copy()
    goal = np.asarray(sim._target_pos, np.float64).copy()
    return CarryScene(sim.tcp_center.copy(), finger_opening(sim), thing, thing, goal)


def ring_scene(sim: Any) -> CarryScene:
    """The scene of assembly: the ring is held by its handle, and its center has to come over the peg."""
    return replace(object_scene(sim), part=sim.data.site("RoundNut").xpos.copy())


def hammer_scene(sim: Any) -> CarryScene:
    """The scene of hammering: the hammer's face has to come to the nail's head, and the nail to go in."""
    turn = sim.data.body("hammer").xmat.reshape(3, 3)
    scene = object_scene(sim)
    return replace(
        scene,
        part=scene.thing + turn @ HAMMER_FACE,
        goal=sim.data.body("nail_link").xpos.copy(),
        depth=min(max(float(sim.data.joint("NailSlideJoint").qpos[0]) / _NAIL_IN, 0.0), 1.0),
    )


_NAIL_IN = 0.09  # the simulator calls the nail driven in at this depth, in meters
