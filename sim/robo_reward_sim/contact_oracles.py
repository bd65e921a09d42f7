"""Truth for tasks in which the hand moves something by contact: button, drawer, door, window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64

from robo_reward_sim.oracles import ramp, staying

__all__ = [
    "ContactOracle",
    "approach_distance",
    "contact_potential",
    "distance_along",
    "distance_left",
    "door_angle_left",
]


def contact_potential(distance: float, first_distance: float, left: float, first_left: float) -> float:
    """Potential in [0, 2]: reach, move.

    reach  the finger tips come into the zone from which the hand acts on the object
    move   the object covers what was left to success at first; it stays where it is when the hand goes

    Args:
        distance: of the finger tips from that zone now, in meters; `first_distance` at first.
        left: what is left to success now, in meters or radians, 0 or less once done; `first_left` at first.
    """
    reach = max(1.0 - distance / max(first_distance, 0.03), 0.0)
    move = ramp(left, max(first_left, 1e-3), 0.0)
    return staying(reach, move, last=1)


def approach_distance(
    offset: Float64[np.ndarray, " 3"], half: Float64[np.ndarray, " 3"], above: float
) -> float:
    """Meters to a box that is to be entered from `above` meters over it, 0 inside.

    Args:
        offset: from the middle of the box, in meters.
        half: half the extent of the box, in meters.
        above: as in `ContactOracle`; with 0 this is the plain distance.
    """
    x, y, height = np.maximum(np.abs(offset) - half, 0.0)
    aside = float(np.hypot(x, y))
    return float(np.hypot(aside, max(float(height), min(above, 3.0 * aside))))


class ContactOracle:
    """Its stages are two: reach, and move."""

    def __init__(
        self,
        contact: tuple[float, float, float],
        half: tuple[float, float, float],
        left: Callable[[Any], float],
        above: float = 0.0,
    ) -> None:
        """Describe the task.

        Args:
            contact: middle of the zone in which the finger tips act on the object, relative to it, in meters.
            half: half the extent of that box, in meters. A hand that drags a handle slides along it.
            left: what is left to success, in meters or radians, 0 or less once done.
            above: height over that box, in meters, up to which a hand that is aside may rise at no loss:
                it has to come from above, so it has that much to go down anyway.
        """
        self._contact, self._half, self._left = np.array(contact), np.array(half), left
        self._above = above

    def begin(self, sim: Any) -> None:
        """Remember how far everything was at first."""
        self._first = (self._distance(sim), self._left(sim))

    def potential(self, sim: Any) -> float:
        """See `contact_potential`."""
        return contact_potential(self._distance(sim), self._first[0], self._left(sim), self._first[1])

    def _distance(self, sim: Any) -> float:
        offset = sim.tcp_center - sim._get_pos_objects() - self._contact
        return approach_distance(offset, self._half, self._above)


def distance_left(sim: Any, *, done: float) -> float:
    """Meters from the object to its goal, less the radius `done` within which the simulator is content."""
    return float(np.linalg.norm(sim._get_pos_objects() - sim._target_pos)) - done


def distance_along(sim: Any, *, axis: int, done: float) -> float:
    """The same along one axis of the world."""
    return abs(float(sim._get_pos_objects()[axis] - sim._target_pos[axis])) - done


def door_angle_left(sim: Any, *, done: float) -> float:
    """Radians through which the door has yet to swing until its handle is within `done` meters along x.

    The handle moves on an arc: along x it stands nearly still at first, so the distance that the simulator
    looks at says little about how far the door is open. The angle says it evenly.
    """
    hinge = sim.data.joint("doorjoint").xanchor
    arm = (sim._get_pos_objects() - hinge)[:2]
    goal = (float(sim._target_pos[0]) + done - float(hinge[0])) / float(np.linalg.norm(arm))
    # Opening, the handle turns clockwise as seen from above: from its angle now to -arccos(goal).
    return float(np.arccos(np.clip(goal, -1.0, 1.0)) + np.arctan2(arm[1], arm[0]))
