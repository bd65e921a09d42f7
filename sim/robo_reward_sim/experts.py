"""Scripted experts: from the privileged state of a task to the next action.

An expert is a function of the state alone, so it recovers from whatever else has happened: it approaches
again after a drop. Actions are f32[4] in [-1, 1]: three hand displacements, where 1 asks for 5 cm in one
decision at the default action repeat, and the grip, where -1 opens and 1 closes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Float64

__all__ = ["CarryExpert", "ContactExpert", "Expert", "PegExpert"]

Vector = tuple[float, float, float]
Point = Float64[np.ndarray, " 3"]
State = Float64[np.ndarray, " 39"]

_CLOSE, _OPEN = 0.8, -1.0


class Expert(Protocol):
    """Says what an expert would do."""

    def act(self, state: State) -> Float32[np.ndarray, " 4"]:
        """The next action, from the privileged state (Meta-World's observation, goal included)."""
        ...

    def holds(self, state: State) -> bool:
        """Whether the hand is where it takes the object along."""
        ...


class PegExpert:
    """Reach, grasp, lift, align, insert: slower near contact, so that every stage can be seen.

    Meta-World's own expert closes the fingers while it descends and lifts while it moves aside, and at 16
    decisions a second it overshoots and starts over, so its stages run into each other.
    """

    def act(self, state: State) -> Float32[np.ndarray, " 4"]:
        """See `Expert.act`."""
        offset = self._offset(state)
        if self.holds(state):
            return action_of(self._carry(state[4:7], state[-3:]), grip=_CLOSE)
        if _around(offset, 0.02):
            return action_of(-offset * 0.3, grip=_CLOSE)
        return action_of(_approach_from_above(offset), grip=_OPEN)

    def holds(self, state: State) -> bool:
        """See `Expert.holds`."""
        return _around(self._offset(state), 0.02) and float(state[3]) < _HELD

    @staticmethod
    def _offset(state: State) -> Point:
        return state[:3] - state[4:7] - (0.0, 0.0, _GRIP_HEIGHT)

    @staticmethod
    def _carry(
        peg: Float64[np.ndarray, " 3"], target: Float64[np.ndarray, " 3"]
    ) -> Float64[np.ndarray, " 3"]:
        """The next displacement of the peg, in meters."""
        head = peg - (_GRASP_TO_HEAD, 0.0, _GRASP_ABOVE_AXIS)
        way = target - head
        aside = float(np.linalg.norm(way[1:]))
        if head[2] < 0.05:
            return np.array((0.0, 0.0, 0.025))
        if aside < 0.012 or (aside < 0.03 and way[0] > -_BEFORE_HOLE):
            return np.array((-0.016, way[1], way[2]))
        before = np.array((way[0] + _BEFORE_HOLE, way[1], way[2]))
        return limited(before, 0.035)


class ContactExpert:
    """Comes to an object along a line, then moves it by contact: button, drawer, door, window."""

    def __init__(
        self,
        contact: Callable[[State], Point],
        approach: Vector,
        way: Callable[[State], Point],
        grip: float,
        clearance: float = 0.10,
        play: float = 0.035,
        first_away: float = 1.0,
    ) -> None:
        """Describe the motion.

        Args:
            contact: from the state to where the hand stands, relative to the object, while it acts on it; in
                meters.
            approach: unit vector from the object to where the hand comes from.
            way: from the state to the next displacement of the object, in meters.
            grip: of every action.
            clearance: how far before the contact the hand moves sideways, in meters.
            first_away: above 1, the hand moves to its clearance first and aside later: for objects from which
                something sticks out that is not to be struck.
            play: a hand this far from the contact, in meters, still acts on the object.
        """
        self._contact, self._approach = contact, np.array(approach)
        self._way, self._grip, self._clearance, self._play = way, grip, clearance, play
        self._first_away = first_away

    def act(self, state: State) -> Float32[np.ndarray, " 4"]:
        """See `Expert.act`."""
        offset, along, aside = self._offset(state)
        if self.holds(state):
            way = self._way(state)
            ahead = way / max(float(np.linalg.norm(way)), 1e-9)
            return action_of(way - 0.5 * (offset - float(offset @ ahead) * ahead), grip=self._grip)
        hover = min(self._clearance, 4.0 * max(aside - 0.012, 0.0))
        away = (hover - along) * self._approach
        step = along * self._approach - offset + self._first_away * away
        return action_of(limited(step, 0.05), grip=self._grip)

    def holds(self, state: State) -> bool:
        """See `Expert.holds`."""
        _, along, aside = self._offset(state)
        return aside < self._play and abs(along) < self._play

    def _offset(self, state: State) -> tuple[Point, float, float]:
        """From where the hand acts on the object to the hand: whole, and its parts along and aside."""
        offset = state[:3] - state[4:7] - self._contact(state)
        along = float(offset @ self._approach)
        return offset, along, float(np.linalg.norm(offset - along * self._approach))


class CarryExpert:
    """Comes to an object from above, takes it, and carries it along a path: puck, block, nut, hammer."""

    def __init__(
        self,
        grip_at: Vector,
        held: float,
        path: Callable[[State], Point],
        close: float = _CLOSE,
    ) -> None:
        """Describe the motion.

        Args:
            grip_at: the hand relative to the object when it closes its fingers, in meters.
            held: fingers nearer than this, in [0, 1], around the object, hold it.
            path: from the state to the next displacement of the object, in meters.
            close: grip of the actions that hold it.
        """
        self._grip_at, self._held, self._path, self._close = np.array(grip_at), held, path, close

    def act(self, state: State) -> Float32[np.ndarray, " 4"]:
        """See `Expert.act`."""
        offset = self._offset(state)
        if self.holds(state):
            return action_of(self._path(state), grip=self._close)
        if _around(offset, 0.025):
            return action_of(-offset * 0.3, grip=self._close)
        return action_of(_approach_from_above(offset), grip=_OPEN)

    def holds(self, state: State) -> bool:
        """See `Expert.holds`."""
        return _around(self._offset(state), 0.025) and float(state[3]) < self._held

    def _offset(self, state: State) -> Point:
        return state[:3] - state[4:7] - self._grip_at


def _around(offset: Point, height: float) -> bool:
    """Whether a hand so far from its grip has the object between its fingers, up to `height` m up or down."""
    return float(np.linalg.norm(offset[:2])) < 0.03 and abs(offset[2]) < height


def _approach_from_above(offset: Point) -> Point:
    """The next displacement of a hand so far from its grip: sideways up high, then down."""
    aside = float(np.linalg.norm(offset[:2]))
    hover = min(0.10, 4.0 * max(aside - 0.012, 0.0))
    return limited(-offset + (0.0, 0.0, hover), 0.05)


_GRIP_HEIGHT = 0.024  # of the hand above the grasp point, with the fingers around the peg
_HELD = 0.36  # fingers nearer than this, around the peg, hold it
_GRASP_TO_HEAD = 0.13
_GRASP_ABOVE_AXIS = 0.01
_BEFORE_HOLE = 0.146  # of the head before the target, where insertion begins
_METERS_PER_DECISION = 0.05


def limited(step: Float64[np.ndarray, " 3"], length: float) -> Float64[np.ndarray, " 3"]:
    norm = float(np.linalg.norm(step))
    return step if norm <= length else step * (length / norm)


def action_of(step: Float64[np.ndarray, " 3"], grip: float) -> Float32[np.ndarray, " 4"]:
    move = np.clip(0.8 * step / _METERS_PER_DECISION, -1.0, 1.0)
    return np.append(move, grip).astype(np.float32)
