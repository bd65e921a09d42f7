"""Shaping worked out by hand: the rules that keep it honest, one by one."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from robo_reward.errors import ConfigError, DataError
from robo_reward.schema import ProgressEstimate
from robo_reward.shaping import (
    AbsoluteProgress,
    Faded,
    Gated,
    NaiveDifference,
    Pessimistic,
    Shaper,
    ShapingConfig,
    potentials,
    shaping_terms,
    time_discounts,
)

SECOND = 1_000_000_000


def estimate(
    progress: float, at_s: float = 0.0, std: float = 0.0, reason: str = "", version: str = "v1"
) -> ProgressEstimate:
    nan = float("nan")
    return ProgressEstimate(
        stage_probs=np.ones(1, np.float32),
        tau=nan if reason else progress,
        progress=nan if reason else progress,
        std=nan if reason else std,
        interval=(nan, nan),
        success_prob=0.0,
        per_view={},
        valid=not reason,
        reason=reason,
        stamp_ns=round(at_s * SECOND),
        model_version=version,
    )


def test_quitting_at_high_progress_earns_nothing() -> None:
    """gamma .98: but for the terminal potential, stopping at t=20 with Phi=.9 beats success at t=100."""
    rising = np.linspace(0.0, 0.9, 21)
    discount = np.full(20, 0.98)
    running = 0.98 ** np.arange(20)
    kept = float(running @ shaping_terms(rising, discount))
    assert kept == pytest.approx(0.98**20 * 0.9, abs=1e-9)
    assert kept == pytest.approx(0.60, abs=0.005)
    assert kept > 2 * 0.98**99
    discount[-1] = 0.0
    assert float(running @ shaping_terms(rising, discount)) == pytest.approx(0.0, abs=1e-12)
    slow = np.linspace(0.0, 1.0, 101)
    finish = np.full(100, 0.98)
    finish[-1] = 0.0
    paid = shaping_terms(slow, finish)
    assert paid[-1] == -slow[-2]
    paid[-1] += 2.0  # the task reward pays success
    assert float(0.98 ** np.arange(100) @ paid) == pytest.approx(2 * 0.98**99)


def test_the_terminal_potential_is_zero_and_a_truncated_one_is_kept() -> None:
    paid = {}
    for how in ("terminated", "truncated"):
        shaper = Shaper(discount=0.9)
        shaper.start(0.2)
        paid[how] = shaper.push(0.8, **{how: True})
        assert not shaper.started
    assert (paid["terminated"].discount, paid["terminated"].next_potential) == (0.0, 0.0)
    assert paid["terminated"].shaping == -0.2
    assert (paid["truncated"].discount, paid["truncated"].next_potential) == (0.9, 0.8)
    assert paid["truncated"].shaping == pytest.approx(0.9 * 0.8 - 0.2)


def test_a_gap_is_settled_after_it() -> None:
    """b --x--x--c d: nothing over the gap, then gamma d - b / gamma^3 in place of gamma d - c."""
    phi = np.array([0.2, 0.5, np.nan, np.nan, 0.6, 0.7])
    terms = shaping_terms(phi, np.full(5, 0.9))
    assert terms[0] == pytest.approx(0.9 * 0.5 - 0.2)
    assert np.isnan(terms[1:4]).all()
    assert terms[4] == pytest.approx(0.9 * 0.7 - 0.5 / 0.9**3)
    assert shaping_terms(phi, np.full(5, 0.9), carry_limit=1.2)[4] == pytest.approx(0.9 * 0.7 - 0.6)


def test_going_blind_and_then_ending_is_charged() -> None:
    shaper = Shaper(discount=0.9)
    shaper.start(estimate(0.0))
    shaper.push(estimate(0.8, 1))
    dark = shaper.push(estimate(0.0, 2, reason="no camera frame"), 0.5)
    assert (dark.valid, dark.reason, dark.value) == (False, "no camera frame", 0.5)
    assert math.isnan(dark.shaping)
    end = shaper.push(estimate(0.0, 3, reason="no camera frame"), terminated=True)
    assert end.valid
    assert end.shaping == pytest.approx(-0.8 / 0.9)
    assert 0.9 * 0.8 + 0.9**2 * end.shaping == pytest.approx(0.0)


def test_a_held_estimate_pays_over_k_steps_what_one_step_of_k_pays() -> None:
    often, seldom = Shaper(discount=0.9), Shaper(discount=0.9)
    for shaper in (often, seldom):
        shaper.start(estimate(0.2, 0))
    singles = [often.push(None, stamp_ns=SECOND * t) for t in (1, 2)]
    singles.append(often.push(estimate(0.7, 3)))
    at_once = seldom.push(estimate(0.7, 3), steps=3)
    assert at_once.shaping == pytest.approx(0.9**3 * 0.7 - 0.2)
    assert sum(0.9**i * s.shaping for i, s in enumerate(singles)) == pytest.approx(at_once.shaping)
    assert singles[0].shaping == pytest.approx(-0.1 * 0.2)


def test_time_counts_where_a_reference_says_so() -> None:
    shaper = Shaper(discount=0.9, reference_s=0.5, kappa=2.0)
    shaper.start(estimate(0.1, 0))
    step = shaper.push(estimate(0.4, 1))
    assert step.discount == pytest.approx(0.81)
    assert step.interval_s == pytest.approx(1.0)
    assert step.shaping == pytest.approx(2 * (0.81 * 0.4 - 0.1))
    ends = np.array([False, True])
    np.testing.assert_allclose(time_discounts(0.9, np.array([1.0, 1.0]), 0.5, ends), [0.81, 0.0])


def test_old_estimates_and_other_models_do_not_shape() -> None:
    shaper = Shaper(stale_s=0.5)
    shaper.start(estimate(0.1, 0))
    assert shaper.push(None, stamp_ns=SECOND // 2).valid
    old = shaper.push(None, stamp_ns=SECOND)
    assert old.reason == "the estimate is 1 s old, stale_s=0.5"
    late = shaper.push(estimate(0.5, 1.2), stamp_ns=2 * SECOND)
    assert "0.8 s old" in late.reason
    shaper.start(estimate(0.1, 0, version="a"))
    mixed = shaper.push(estimate(0.2, 1, version="b"), 1.0)
    assert (mixed.valid, mixed.value) == (False, 1.0)
    assert mixed.reason == "the model changed from a to b: relabel whole episodes"
    assert shaper.push(estimate(0.4, 1.3, version="b")).shaping == pytest.approx(0.99 * 0.4 - 0.2)


def test_doubt_inside_the_potential() -> None:
    progress, std = np.array([0.2, 0.8, 0.8]), np.array([0.0, 0.2, 0.4])
    np.testing.assert_allclose(potentials(Faded(0.1, 0.3), progress, std), [0.2, 0.4, 0.0])
    np.testing.assert_allclose(potentials(Pessimistic(2.5), progress, std), [0.2, 0.3, 0.0])
    gate = math.exp(-((0.2 / 0.2) ** 2))
    expected = [0.2, 0.2 + gate * 0.6, 0.0]
    expected[2] = expected[1] + math.exp(-4) * (0.8 - expected[1])
    np.testing.assert_allclose(potentials(Gated(0.2), progress, std), expected)
    # A model that trusts itself nowhere leaves the task reward alone.
    shaper = Shaper(potential=Faded(0.1, 0.3))
    shaper.start(0.5, std=0.5)
    assert [shaper.push(p, 1.0, std=0.4).value for p in (0.1, 0.9)] == [1.0, 1.0]


def test_the_baselines_pay_what_they_are_named_for() -> None:
    paid = {}
    for rule in (NaiveDifference(), AbsoluteProgress()):
        shaper = Shaper(discount=0.9, rule=rule)
        shaper.start(0.2)
        paid[type(rule)] = [shaper.push(0.9).shaping, shaper.push(1.0, terminated=True).shaping]
    assert paid[NaiveDifference] == pytest.approx([0.7, 0.1])
    assert paid[AbsoluteProgress] == pytest.approx([0.9, 1.0])


def test_a_scale_of_zero_is_the_task_reward_by_the_same_path() -> None:
    shaper = ShapingConfig(kappa=0.0).build()
    shaper.start(0.2)
    step = shaper.push(0.9, 0.3)
    assert (step.value, step.shaping, step.valid, step.potential) == (0.3, 0.0, True, 0.2)


def test_misuse_is_named() -> None:
    shaper = Shaper()
    with pytest.raises(ConfigError, match=r"no episode is under way: call start\(\)"):
        shaper.push(0.1)
    shaper.start(estimate(0.1, 1))
    with pytest.raises(DataError, match="stamp 1000000000 is not after 1000000000"):
        shaper.push(estimate(0.1, 1))
    shaper.push(estimate(0.2, 2), truncated=True)
    assert not shaper.started
    with pytest.raises(ConfigError, match=r"discount=1\.5"):
        Shaper(discount=1.5)
    with pytest.raises(ConfigError, match="needs 0 <= full_below < none_above"):
        Faded(0.3, 0.3)
    with pytest.raises(ConfigError, match="does not take these arguments"):
        ShapingConfig(potential={"_target_": "robo_reward.shaping.Gated", "width": 1}).build()


def test_weights_rules_and_shaping_need_no_torch() -> None:
    code = (
        "import sys, robo_reward.shaping, robo_reward.rabc, robo_reward.abort; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
