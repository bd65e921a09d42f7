"""Where stages end, learned from other tasks: hand-worked numbers, and a habit carried over to a new task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robo_reward.boundaries import StageEnds
from robo_reward.errors import DataError


def ends(share: float, spread: float, later: float = 20.0) -> StageEnds:
    """Knows boundaries by the one feature itself: its log-odds are 20 times the feature less 10.

    Of a later boundary they are `later` times the feature less 10.
    """
    net = torch.nn.Linear(9, 2)
    with torch.no_grad():
        net.weight.zero_()[:, 4] = torch.tensor([20.0, later])
        net.bias.fill_(-10.0)
    return StageEnds((net,), np.zeros(9), np.ones(9), np.log(share), spread)


def pulses(length: int, *at: int, height: float = 1.0) -> np.ndarray:
    x = np.zeros((length, 1))
    x[list(at)] = height
    return x


def test_boundaries_lie_where_they_are_likely_and_stages_last_as_long_as_elsewhere() -> None:
    # Peaks at 10, 12 and 20 of 40: with stages of about a third, 10 and 20 are the better pair.
    x = pulses(40, 10, 12, 20)
    assert ends(1 / 3, 0.5).find([x], 3)[0].tolist() == [10, 20]
    # With nothing known of how long stages last, the two likeliest frames win, however near each other.
    x[20] = 0.6
    assert ends(1 / 3, 100.0).find([x], 3)[0].tolist() == [10, 12]
    assert ends(1 / 3, 0.5).find([x], 1)[0].tolist() == []
    # -log p is log(1 + e^-odds): of odds 10 next to nothing, of odds -10 about 10.
    first = ends(0.5, 1.0).log_probability(x)[0]
    assert first[[10, 30]] == pytest.approx([-4.54e-5, -10.0000454], rel=1e-3)


def test_the_first_boundary_is_told_by_other_signs_than_later_ones() -> None:
    x = pulses(40, 10, 30) - pulses(40, 20)
    assert ends(1 / 3, 0.5, later=-20.0).find([x], 3)[0].tolist() == [10, 20]
    assert ends(1 / 3, 0.5).find([x], 3)[0].tolist() == [10, 30]


def test_what_one_demonstration_leaves_open_the_others_decide() -> None:
    clear = [pulses(40, 12), pulses(44, 13), pulses(36, 11)]
    unsure = pulses(40, 12, 27)  # two peaks alike
    assert ends(0.7, 0.4).find([unsure], 2)[0].tolist() == [27]
    found = ends(0.7, 0.4).find([*clear, unsure], 2)
    assert [b.tolist() for b in found] == [[12], [13], [11], [12]]


def steps(rng: np.random.Generator, levels: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """A speed that takes these levels in turn, and the frames at which it changes."""
    lengths = rng.integers(8, 14, len(levels))
    x = np.repeat(levels, lengths)[:, None] + rng.normal(0, 0.05, (int(lengths.sum()), 1))
    return x, np.cumsum(lengths)[:-1]


def test_a_habit_of_marking_is_learned_from_other_tasks() -> None:
    """Whoever marked these tasks marks stops, two frames late, and no starts."""
    rng = np.random.default_rng(0)
    tasks = [[1.0, 0.0, 1.0, 0.0], [0.8, 0.0, 0.8]]
    shown = [steps(rng, tasks[i % 2]) for i in range(20)]
    marks = [changes[::2] + 2 for _, changes in shown]  # every other change is a stop
    learned = StageEnds.learn([x for x, _ in shown], marks, seed=3)
    new = [steps(rng, [0.9, 0.0, 1.0, 0.0, 0.9]) for _ in range(6)]
    found = learned.find([x for x, _ in new], 3)
    wanted = [changes[[0, 2]] + 2 for _, changes in new]
    assert np.abs(np.array(found) - np.array(wanted)).max() <= 1
    again = StageEnds.learn([x for x, _ in shown], marks, seed=3)
    assert again.log_probability(new[0][0]).tolist() == learned.log_probability(new[0][0]).tolist()


def test_nothing_marked_and_too_short_a_demonstration_are_refused() -> None:
    with pytest.raises(DataError, match="no stage boundary is marked"):
        StageEnds.learn([np.zeros((10, 1))], [np.empty(0, np.int64)], 0)
    with pytest.raises(DataError, match="5 frames cannot have 3 stages"):
        ends(0.5, 1.0).find([np.zeros((5, 1))], 3)
