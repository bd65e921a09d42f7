"""Readouts of the hop model against numbers worked out by hand, and how its training pairs are drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robo_reward.clips import Timeline, Track
from robo_reward.compare.hop import HopModel, HopPairs, read_out
from robo_reward.errors import ConfigError, DataError
from robo_reward.labels import hop


def once(readout: str, step: float, forward: float, backward: float) -> float:
    """The second of two frames, the first at 0."""
    values = (np.array([0.0, x], dtype=np.float32) for x in (step, forward, backward))
    steps, ahead, behind = values
    return float(read_out(readout, steps, np.array([0, 0]), ahead, behind)[1])


def test_readouts_by_hand() -> None:
    assert once("incremental", 0.3, 0.9, 0.9) == pytest.approx(0.3)
    assert once("incremental", -0.3, 0.9, 0.9) == 0  # there is nothing to lose at 0
    assert once("mean", 0.3, 0.6, 0.9) == pytest.approx(0.6)
    # Clamped: Phi_F reaches -1 and Phi_B reaches 2 as published.
    assert once("forward", 0.0, -0.4, 0.0) == 0
    assert once("backward", 0.0, 0.0, 1.7) == 1
    # Agreement: w = 1, m = .2, so 0 + 1/2 (.2 - 0 + .4 - 0).
    assert once("gate", 0.4, 0.2, 0.2) == pytest.approx(0.3)


def test_the_published_gate_freezes_early_progress() -> None:
    """m = .05 and |F - B| = .03: w = exp(-20 (.03 / .051)^2) = .00099, whatever the hop says."""
    weight = math.exp(-20 * (0.03 / 0.051) ** 2)
    assert weight < 0.001
    assert once("gate", 0.05, 0.065, 0.035) == pytest.approx(weight / 2 * (0.05 + 0.05), rel=1e-3)


def test_a_setback_is_relative_to_what_there_was() -> None:
    # 0 -> .5, then a hop of -.4 from .5: .5 - .5 * .4 = .3, then +.5 of the rest: .3 + .7 / 2 = .65.
    steps = np.float32([0, 0.5, -0.4, 0.5])
    nothing = np.zeros(4, dtype=np.float32)
    found = read_out("incremental", steps, np.array([0, 0, 1, 2]), nothing, nothing)
    assert found == pytest.approx([0, 0.5, 0.3, 0.65])


def tracks(progress: list[np.ndarray]) -> list[Track]:
    return [
        Track(np.zeros(len(p), np.int64), np.ones(len(p), np.bool_), np.zeros(len(p), np.bool_), 0)
        for p in progress
    ]


def test_pairs_are_even_over_hop_value_and_gap() -> None:
    """Progress that rests at the start and at the end makes nearly all hops tiny; drawn pairs are not."""
    rng = np.random.default_rng(0)
    resting = [
        np.clip(np.linspace(-2, 3, 60) + rng.normal(0, 0.02, 60), 0, 1).astype(np.float32) for _ in range(6)
    ]
    pairs = HopPairs(resting, ["rest"] * len(resting), seed=0, zeros=0.05)
    line = Timeline(np.zeros(5, np.int64), np.arange(5), np.arange(5.0), first=(0, 0))
    values, gaps, still = [], [], 0
    for _ in range(2500):
        drawn = pairs(line, tracks(resting), rng)
        assert set(drawn.episode) == {drawn.first[0] if drawn.first else -1}
        assert len(drawn.frame) == 5
        start, end = drawn.frame[0], drawn.frame[1]
        still += int(start == end)
        phi = resting[drawn.episode[0]].astype(float)
        if start != end:
            values.append(float(hop(phi[[start]], phi[[end]])[0]))
            gaps.append(abs(end - start))
    assert still / 2500 == pytest.approx(0.05, abs=0.02)
    share = np.histogram(values, bins=5, range=(-1, 1))[0] / len(values)
    assert share == pytest.approx(0.2, abs=0.04)
    # Hops from start to end take any time, mostly a long one: in pairs they take short and long times alike.
    whole = [gap for gap, value in zip(gaps, values, strict=True) if value > 1 - 2 / 25]
    share = np.histogram(whole, bins=4, range=(0, 60))[0] / len(whole)
    assert share == pytest.approx(0.25, abs=0.12)


def test_pairs_are_of_the_task_whose_instruction_and_goal_the_window_has() -> None:
    rng = np.random.default_rng(0)
    progress = [np.linspace(0, 1, 20).astype(np.float32)] * 6
    pairs = HopPairs(progress, ["open", "close"] * 3, seed=0)
    for episode in range(6):
        line = Timeline(np.full(4, episode), np.arange(4), np.arange(4.0), first=(episode, 0))
        drawn = {int(pairs(line, tracks(progress), rng).episode[0]) for _ in range(60)}
        assert drawn == set(range(episode % 2, 6, 2))


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(DataError, match="two frames with known progress"):
        HopPairs([np.array([np.nan, 0.5], dtype=np.float32)], ["a"], seed=0)
    with pytest.raises(DataError, match="episode of 'b' has two frames"):
        HopPairs([np.array(p, dtype=np.float32) for p in ([0.1, 0.5], [0.2, np.nan])], ["a", "b"], seed=0)
    with pytest.raises(ConfigError, match="readout='median'"):
        HopModel(readout="median")
