"""Potentials of the tasks that touch and carry, at scenes whose values are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from robo_reward_sim.carry_oracles import (
    CarryScene,
    assembly_potential,
    hammer_potential,
    pick_place_potential,
    push_potential,
    shelf_potential,
)
from robo_reward_sim.contact_oracles import approach_distance, contact_potential, door_angle_left
from robo_reward_sim.oracles import box_distance, reading, staying

Vector = tuple[float, float, float]


def scene(
    fingers: Vector, opening: float, thing: Vector, goal: Vector, part: Vector | None = None
) -> CarryScene:
    return CarryScene(np.array(fingers), opening, np.array(thing), np.array(part or thing), np.array(goal))


def test_contact_is_reach_then_move() -> None:
    assert contact_potential(0.2, 0.2, 0.1, 0.1) == 0.0
    assert contact_potential(0.05, 0.2, 0.1, 0.1) == pytest.approx(0.75)
    assert contact_potential(0.0, 0.2, 0.025, 0.1) == pytest.approx(1.75)
    assert contact_potential(0.3, 0.2, 0.0, 0.1) == pytest.approx(2.0)


def test_what_stays_done_is_not_taken_back_when_the_hand_goes() -> None:
    # Three quarters open: with the hand at the handle 1.75; with it away a quarter of the reach is missing.
    assert staying(1.0, 0.75, last=1) == pytest.approx(1.75)
    assert staying(0.0, 0.75, last=1) == pytest.approx(1.5)
    assert staying(2.4, 0.0, last=3) == pytest.approx(2.4)
    assert staying(0.0, 1.0, last=3) == pytest.approx(4.0)


def test_a_hand_that_must_come_from_above_may_rise_first() -> None:
    half = np.array((0.05, 0.05, 0.05))
    offset = np.array((0.35, 0.0, 0.05))
    assert approach_distance(offset, half, above=0.0) == pytest.approx(0.3)
    low, high = (approach_distance(offset + np.array((0, 0, up)), half, above=0.06) for up in (0.0, 0.06))
    assert low == pytest.approx(high) == pytest.approx(np.hypot(0.3, 0.06))
    assert approach_distance(np.array((0.04, 0.0, 0.11)), half, above=0.06) == pytest.approx(0.06)
    assert box_distance(np.array((0.08, 0.09, 0.0)), half) == pytest.approx(0.05)


@pytest.mark.parametrize(("opened", "left"), [(0.0, 90.0), (45.0, 45.0), (90.0, 0.0), (120.0, -30.0)])
def test_the_door_counts_by_its_angle(opened: float, left: float) -> None:
    angle = np.deg2rad(opened)
    sim = SimpleNamespace(
        data=SimpleNamespace(joint=lambda _: SimpleNamespace(xanchor=np.array((-0.1, 0.8, 0.15)))),
        _get_pos_objects=lambda: np.array((-0.1 + 0.4 * np.cos(angle), 0.8 - 0.4 * np.sin(angle), 0.15)),
        _target_pos=np.array((-0.18, 0.4, 0.15)),
    )
    # Done within 8 cm of the target along x, which is where the handle stands straight before the hinge.
    assert np.rad2deg(door_angle_left(sim, done=0.08)) == pytest.approx(left, abs=1e-6)


PUCK, HIGH = (0.0, 0.6, 0.02), (0.0, 0.9, 0.22)
START = scene((0.0, 0.4, 0.02), 1.0, PUCK, HIGH)


def test_pick_place() -> None:
    assert pick_place_potential(START, START) == 0.0
    around = scene(PUCK, 1.0, PUCK, HIGH)
    assert pick_place_potential(around, START) == pytest.approx(1.0)
    closed = scene(PUCK, 0.45, PUCK, HIGH)
    assert pick_place_potential(closed, START) == pytest.approx(1.5)
    # Lifted by 5 cm and a third of the way; the goal is sqrt(.13) away at first, 7 cm of which do not count.
    held = scene((0.0, 0.7, 0.07), 0.45, (0.0, 0.7, 0.07), HIGH)
    first, now = np.hypot(0.3, 0.2) - 0.07, np.hypot(0.2, 0.15) - 0.07
    assert pick_place_potential(held, START) == pytest.approx(2.0 + 1.0 - now / first)
    assert pick_place_potential(replace(held, opening=0.1), START) == pytest.approx(1.0), "nothing held"
    dropped = scene((0.0, 0.8, 0.2), 1.0, (0.0, 0.8, 0.02), HIGH)
    assert pick_place_potential(dropped, START) < 1.0


def test_push_needs_no_grasp() -> None:
    flat = replace(START, goal=np.array((0.0, 0.95, 0.02)))
    half_way = replace(flat, fingers=np.array((0.0, 0.72, 0.02)), thing=np.array((0.0, 0.75, 0.02)))
    half_way = replace(half_way, part=half_way.thing)
    # 15 of the 30 cm that count (5 of the 35 do not), with a hand behind the puck.
    assert push_potential(half_way, flat) == pytest.approx(1.5)


def test_the_shelf_is_entered_at_its_height_only() -> None:
    goal = (0.1, 0.85, 0.30)
    first = scene((0.1, 0.4, 0.02), 1.0, (0.1, 0.55, 0.02), goal)
    level = scene((0.1, 0.55, 0.30), 0.35, (0.1, 0.55, 0.30), goal)
    assert shelf_potential(level, first) == pytest.approx(3.0)
    low = scene((0.1, 0.70, 0.07), 0.35, (0.1, 0.70, 0.07), goal)
    # 5 cm off the table counts 0 of the lift at 3 cm and all of it at 24.5 cm above: (.215 - .195) / .215.
    assert shelf_potential(low, first) == pytest.approx(2.0 + 0.02 / 0.215)
    inside = scene((0.1, 0.78, 0.30), 0.35, (0.1, 0.78, 0.30), goal)
    assert shelf_potential(inside, first) == pytest.approx(4.0)


def test_the_ring_goes_over_the_peg_from_above() -> None:
    top = (0.0, 0.8, 0.10)
    first = scene((0.13, 0.4, 0.02), 1.0, (0.13, 0.6, 0.02), top, part=(0.0, 0.6, 0.02))

    def held(center: Vector) -> CarryScene:
        at = (center[0] + 0.13, center[1], center[2])
        return scene(at, 0.48, at, top, part=center)

    assert assembly_potential(held((0.0, 0.8, 0.16)), first) == pytest.approx(3.0)
    assert assembly_potential(held((0.0, 0.8, 0.13)), first) == pytest.approx(3.5)
    assert assembly_potential(held((0.0, 0.8, 0.10)), first) == pytest.approx(4.0)
    beside = assembly_potential(held((0.0, 0.72, 0.10)), first)
    assert 2.0 < beside < 3.0, "low but beside the peg"


NAIL = (0.24, 0.64, 0.11)


def hammering(hammer: Vector, fingers: Vector, opening: float, depth: float = 0.0) -> CarryScene:
    face = (hammer[0] + 0.16, hammer[1] + 0.072, hammer[2])
    return replace(scene(fingers, opening, hammer, NAIL, part=face), depth=depth)


FIRST_HAMMER = hammering((0.0, 0.45, 0.03), (0.0, 0.4, 0.20), 1.0)
AT_NAIL = (0.08, 0.568, 0.11)


@pytest.mark.parametrize(
    ("now", "value"),
    [
        (FIRST_HAMMER, 0.0),
        (hammering((0.0, 0.45, 0.03), (-0.03, 0.45, 0.02), 1.0), 1.0),
        (hammering((0.0, 0.45, 0.03), (-0.03, 0.45, 0.02), 0.5), 1.5),
        (hammering(AT_NAIL, (0.05, 0.568, 0.10), 0.5), 3.0),
        (hammering(AT_NAIL, (0.05, 0.568, 0.10), 0.5, depth=0.4), 3.4),
        # It slips in the hand: no step back.
        (hammering(AT_NAIL, (-0.08, 0.568, 0.10), 0.9, depth=0.4), 3.4),
        (hammering(AT_NAIL, (0.05, 0.568, 0.10), 0.5, depth=1.0), 4.0),
        # Dropped where it was, with the nail half in: half of the way to the nail is left.
        (hammering((0.0, 0.45, 0.03), (0.0, 0.4, 0.20), 1.0, depth=0.5), 2.0),
    ],
)
def test_hammer(now: CarryScene, value: float) -> None:
    assert hammer_potential(now, FIRST_HAMMER) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("potential", "before", "stage", "tau"),
    [(0.99, 1, 1, 0.0), (0.97, 1, 0, 0.97), (1.01, 1, 1, 0.01), (0.99, 0, 0, 0.99), (0.99, 2, 0, 0.99)],
)
def test_a_stage_does_not_flicker(potential: float, before: int, stage: int, tau: float) -> None:
    read = reading(potential, 3, success=False, before=before)
    assert (read.stage, read.tau) == (stage, pytest.approx(tau))
    assert read.progress == pytest.approx((stage + tau) / 3)


@pytest.mark.parametrize(
    "potential",
    [pick_place_potential, push_potential, shelf_potential, assembly_potential, hammer_potential],
)
def test_a_first_moment_is_zero(potential: Callable[[CarryScene, CarryScene], float]) -> None:
    assert potential(START, START) == 0.0
