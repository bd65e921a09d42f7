"""The oracle of peg insertion, at scenes whose potential is worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from robo_reward_sim.oracles import OracleReading, PegScene, chain, peg_potential, reading

TARGET = np.array((-0.25, 0.60, 0.13))
GRASP_TO_HEAD = np.array((-0.13, 0.0, -0.01))


def scene(grasp: tuple[float, float, float], fingers: tuple[float, float, float], opening: float) -> PegScene:
    """A peg that lies along x with its grasp point at `grasp`, fingers at `fingers`."""
    at = np.array(grasp)
    return PegScene(
        fingers=np.array(fingers),
        grasp=at,
        axis=np.array((1.0, 0.0, 0.0)),
        head=at + GRASP_TO_HEAD,
        target=TARGET,
        opening=opening,
    )


FIRST = scene((0.15, 0.70, 0.025), (0.15, 0.50, 0.025), opening=1.0)  # 20 cm to one side of the peg


def potential(
    grasp: tuple[float, float, float], fingers: tuple[float, float, float], opening: float
) -> float:
    return peg_potential(scene(grasp, fingers, opening), FIRST)


def test_reaching_counts_the_way_to_within_two_centimeters_of_the_peg() -> None:
    assert peg_potential(FIRST, FIRST) == 0.0
    # 11 cm away: 9 of the 18 cm that count are left.
    assert potential((0.15, 0.70, 0.025), (0.15, 0.59, 0.025), 1.0) == pytest.approx(0.5)
    assert potential((0.15, 0.70, 0.025), (0.15, 0.70, 0.005), 1.0) == pytest.approx(1.0)


def test_grasping_is_half_closing_and_half_lifting() -> None:
    around = (0.15, 0.70, 0.005)
    assert potential((0.15, 0.70, 0.025), around, 0.67) == pytest.approx(1.25)
    assert potential((0.15, 0.70, 0.025), around, 0.30) == pytest.approx(1.5)
    # Two of the four centimeters that count as lifted.
    assert potential((0.15, 0.70, 0.045), (0.15, 0.70, 0.025), 0.30) == pytest.approx(1.75)


def test_fingers_closed_on_nothing_hold_nothing() -> None:
    assert potential((0.15, 0.70, 0.025), (0.15, 0.70, 0.005), 0.0) == pytest.approx(1.0)


def test_aligning_counts_the_way_of_the_head_to_the_line_of_the_hole() -> None:
    # Lifted where it lay: the head is still as far from the hole as a lifted head was at first.
    assert potential((0.15, 0.70, 0.065), (0.15, 0.70, 0.045), 0.30) == pytest.approx(2.0)
    # On the line of the hole, at the stand-off: 8 cm before the mouth, which is 6.6 cm before the target.
    at_standoff = (-0.25 + 0.146 + 0.13, 0.60, 0.14)
    assert potential(at_standoff, (at_standoff[0], 0.60, 0.12), 0.30) == pytest.approx(3.0)


def test_inserting_counts_the_way_from_the_stand_off_to_success() -> None:
    half = (-0.25 + 0.108 + 0.13, 0.60, 0.14)  # halfway between .146 and .070 before the target
    assert potential(half, (half[0], 0.60, 0.12), 0.30) == pytest.approx(3.5)
    done = (-0.25 + 0.07 + 0.13, 0.60, 0.14)
    assert potential(done, (done[0], 0.60, 0.12), 0.30) == pytest.approx(4.0)


def test_a_dropped_peg_goes_back_to_reaching() -> None:
    held = potential((0.05, 0.60, 0.14), (0.05, 0.60, 0.12), 0.30)
    dropped = potential((0.05, 0.60, 0.025), (0.05, 0.60, 0.12), 1.0)
    assert held > 2.0
    # 9.5 cm below the fingers: 7.5 of the 18 cm that count are left.
    assert dropped == pytest.approx(1.0 - 0.075 / 0.18)


def test_a_head_beside_the_hole_does_not_insert() -> None:
    beside = (-0.25 + 0.09 + 0.13, 0.66, 0.14)
    assert 2.0 < potential(beside, (beside[0], 0.66, 0.12), 0.30) < 3.0


def test_a_peg_that_is_let_go_in_the_hole_stays_where_it_is() -> None:
    away = (-0.05, 0.60, 0.40)

    def left(before: float, sag: float) -> float:
        return potential((-0.25 + before + 0.13, 0.60, 0.14 - sag), away, 1.0)

    # .075 before the target and .016 too low: .0816 by the simulator's distance, of the way from .146 to .07.
    assert left(0.075, 0.016) == pytest.approx(3.0 + (0.146 - np.hypot(0.075, 0.032)) / 0.076)
    assert left(0.075, 0.115) < 1.0, "on the table before the hole"
    assert left(0.095, 0.016) < 1.0, "hardly in: it falls"
    assert 0.0 < left(0.086, 0.0) < 3.0


def test_any_grasp_along_the_peg_will_do() -> None:
    done = scene((-0.05, 0.60, 0.14), (-0.05, 0.60, 0.12), 0.30)
    slipped = replace(done, fingers=done.fingers + np.array((0.03, 0.0, 0.0)))
    assert peg_potential(slipped, FIRST) == pytest.approx(peg_potential(done, FIRST))


def test_chain_multiplies_gates() -> None:
    assert chain((1.0, 0.5, 0.8), (0.5, 0.25)) == pytest.approx(1.0 + 0.5 * 0.5 + 0.5 * 0.25 * 0.8)


def test_reading_splits_a_potential() -> None:
    assert reading(2.25, 4, success=False) == OracleReading(2, 0.25, False, 0.5625)
    assert reading(4.0, 4, success=False) == OracleReading(3, 1.0, False, 1.0)
    assert reading(0.3, 4, success=True) == OracleReading(3, 1.0, True, 1.0)
