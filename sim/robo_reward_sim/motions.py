"""How each task is done: the scripted expert of a task, and motions with another aim in the same scene."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from robo_reward_sim.experts import CarryExpert, ContactExpert, Expert, Point, State, Vector, limited

__all__ = [
    "HAMMER_FACE",
    "assemble",
    "carry_hammer",
    "carry_peg",
    "carry_puck",
    "carry_ring",
    "close_window",
    "hammer",
    "hover_over",
    "open_door",
    "open_drawer",
    "open_window",
    "pick_place",
    "press",
    "press_top",
    "push",
    "push_door_shut",
    "push_shut",
    "shelf",
]

_UP, _FRONT = (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)
_FINGERS = 0.045  # the finger tips are this far below the hand


def press() -> Expert:
    """Press the button: a closed hand comes from the front, at the button's height."""
    contact = np.array((0.0, -0.05, _FINGERS))
    return ContactExpert(lambda _: contact, _FRONT, lambda _: np.array((0.0, 0.03, 0.0)), grip=1.0)


def open_drawer() -> Expert:
    """Open the drawer: open fingers come from above, one on each side of the bar, and pull."""
    contact = np.array((0.0, -0.015, -0.02))
    return ContactExpert(lambda _: contact, _UP, lambda _: np.array((0.0, -0.03, 0.0)), grip=-1.0)


def open_window() -> Expert:
    """Open the window: a closed hand comes to the left of the handle and pushes it to the right."""
    contact = np.array((-0.02, 0.0, _FINGERS))
    return ContactExpert(lambda _: contact, _FRONT, lambda _: np.array((0.03, 0.0, 0.0)), grip=1.0)


def open_door() -> Expert:
    """Open the door: a closed hand comes down behind the handle and pulls it along its arc."""

    def contact(state: State) -> Point:
        outward, along = _door_frame(state)
        return -0.02 * outward - 0.035 * along - (0.0, 0.0, 0.01)

    return ContactExpert(
        contact,
        _UP,
        lambda state: 0.035 * _door_frame(state)[1],
        grip=1.0,
        clearance=0.09,
        play=0.045,
        first_away=3.0,
    )


def push() -> Expert:
    """Push the puck: fingers close around it and drag it over the table."""

    def path(state: State) -> Point:
        thing, goal = state[4:7], state[-3:]
        way = goal - thing
        way[2] = 0.02 - thing[2]
        return limited(way, 0.03)

    return CarryExpert((0.0, 0.0, 0.03), held=0.56, path=path)


def pick_place() -> Expert:
    """Lift the puck and carry it to the goal."""

    def path(state: State) -> Point:
        thing, goal = state[4:7], state[-3:]
        return _lift() if thing[2] < 0.05 and abs(goal - thing).max() > 0.03 else limited(goal - thing, 0.035)

    return CarryExpert((0.0, 0.0, 0.03), held=0.56, path=path)


def shelf() -> Expert:
    """Lift the block to the height of the board, before the shelf, then move it in."""

    def path(state: State) -> Point:
        thing, goal = state[4:7], state[-3:]
        way = goal - thing
        if thing[2] < 0.05:
            return _lift()
        if abs(way[0]) > 0.02 or thing[2] < goal[2] - 0.02:
            return limited(way * (1.0, 0.0, 1.0), 0.035)
        return limited(way, 0.03)

    return CarryExpert((0.0, 0.0, 0.033), held=0.48, path=path)


def assemble() -> Expert:
    """Lift the ring by its handle, bring it over the peg, and lower it."""

    def path(state: State) -> Point:
        thing = state[4:7]
        way = state[-3:] - (thing + _handle_to_center(state))
        aside = float(np.hypot(*way[:2]))
        if thing[2] < 0.05 and aside > 0.02:  # not one that is on its way down the peg
            return _lift()
        if aside < 0.012 or (aside < 0.02 and way[2] > -0.05):
            return np.array((0.5 * way[0], 0.5 * way[1], -0.025))
        return limited(0.6 * (way + np.array((0.0, 0.0, 0.07))), 0.035)

    return CarryExpert((-0.01, 0.0, 0.03), held=0.58, path=path)


def hammer() -> Expert:
    """Lift the hammer, bring its head before the nail, and drive the nail in."""

    def path(state: State) -> Point:
        thing, nail = state[4:7], state[11:14]
        way = nail - (thing + HAMMER_FACE)
        if thing[2] < 0.06:
            return _lift()
        if np.hypot(way[0], way[2]) > 0.015:
            return limited(way * (1.0, 0.0, 1.0), 0.035)
        return np.array((way[0], 0.045, way[2]))

    return CarryExpert((-0.035, 0.0, 0.025), held=0.60, path=path)


def press_top() -> Expert:
    """Press on the top of the box instead of its button."""
    contact = np.array((0.0, 0.16, 0.16))
    return ContactExpert(lambda _: contact, _UP, lambda _: np.array((0.0, 0.0, -0.01)), grip=1.0)


def push_shut() -> Expert:
    """Push what should be pulled: the drawer, by its bar."""
    contact = np.array((0.0, -0.05, _FINGERS))
    return ContactExpert(lambda _: contact, _FRONT, lambda _: np.array((0.0, 0.02, 0.0)), grip=1.0)


def push_door_shut() -> Expert:
    """Push against the door, beside its handle."""
    contact = np.array((-0.10, -0.01, _FINGERS))
    return ContactExpert(lambda _: contact, _FRONT, lambda _: np.array((0.0, 0.02, 0.0)), grip=1.0)


def close_window() -> Expert:
    """Push the handle of the window to the left, where it is already."""
    contact = np.array((0.07, 0.0, _FINGERS))
    return ContactExpert(lambda _: contact, _FRONT, lambda _: np.array((-0.02, 0.0, 0.0)), grip=1.0)


def hover_over() -> Expert:
    """Hold the hand still above the object."""
    contact = np.array((0.0, 0.0, 0.20))
    return ContactExpert(lambda _: contact, _UP, lambda _: np.zeros(3), grip=-1.0)


def carry_peg(place: Vector) -> Expert:
    """Carry the peg to `place`, in meters."""
    return CarryExpert((0.0, 0.0, 0.024), held=0.36, path=_to(place))


def carry_puck(place: Vector) -> Expert:
    """Carry the puck, or the block, to `place`, in meters."""
    return CarryExpert((0.0, 0.0, 0.03), held=0.56, path=_to(place))


def carry_ring(place: Vector) -> Expert:
    """Carry the ring to `place`, in meters."""
    return CarryExpert((-0.01, 0.0, 0.03), held=0.58, path=_to(place))


def carry_hammer(place: Vector) -> Expert:
    """Carry the hammer to `place`, in meters."""
    return CarryExpert((-0.035, 0.0, 0.025), held=0.60, path=_to(place))


def _to(place: Vector) -> Callable[[State], Point]:
    """Lift what lies on the table, and go to a place."""
    target = np.array(place)

    def path(state: State) -> Point:
        way = target - state[4:7]
        far = float(np.hypot(*way[:2])) > 0.03
        return _lift() if state[6] < 0.06 and far else limited(way, 0.035)

    return path


HAMMER_FACE = np.array((0.16, 0.072, 0.0))
"""From the hammer's middle to the face that strikes, in the hammer's frame, in meters."""


_GOAL_TO_HINGE = np.array((0.115, 0.35, 0.0))


def _lift() -> Point:
    return np.array((0.0, 0.0, 0.025))


def _door_frame(state: State) -> tuple[Point, Point]:
    """Unit vectors at the handle: outward from the hinge, and the way in which the door opens."""
    hinge = state[-3:] + _GOAL_TO_HINGE
    outward = (state[4:7] - hinge) * (1.0, 1.0, 0.0)
    outward /= max(float(np.linalg.norm(outward)), 1e-9)
    return outward, np.array((outward[1], -outward[0], 0.0))


def _handle_to_center(state: State) -> Point:
    """From the ring's handle to its center, from the ring's orientation (a quaternion, w first)."""
    w, x, y, z = state[7:11]
    return 0.13 * np.array((2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x)))
