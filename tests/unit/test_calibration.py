"""Calibration against distributions whose answer is known."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robo_reward.calibration import (
    LEVELS,
    Calibration,
    SuccessDetector,
    SuccessWatch,
    fit_detector,
    fit_platt,
    fit_quantiles,
    half_trusted,
)
from robo_reward.errors import ConfigError
from robo_reward.fusion import FusionParameters
from robo_reward.metrics import detect_success
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.schema import ProgressEstimate
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward.train import calibrate as fitting
from robo_reward.train.split import Split


def test_conformal_bands_cover_new_data_whatever_its_shape() -> None:
    """Heavy-tailed residuals with a spread that is wrong by 3: bands still cover as they say."""
    rng = np.random.default_rng(0)
    std = rng.uniform(0.5, 2, 8000)
    residual = 3 * std * rng.standard_t(3, 8000)
    quantiles, scale = fit_quantiles([residual[:4000]], [std[:4000]])
    covered = [(np.abs(residual[4000:]) <= q * std[4000:]).mean() for q in quantiles]
    np.testing.assert_allclose(covered, LEVELS, atol=0.03)
    assert scale == pytest.approx(np.sqrt(np.mean((residual[:4000] / std[:4000]) ** 2)))
    calibration = Calibration(fitted=True, quantiles=quantiles)
    assert calibration.quantile(0.9) == quantiles[17]
    assert [calibration.quantile(float(level)) for level in LEVELS] == list(quantiles)
    for level in (0.99, 0.0, np.nan):  # a band of 95 % is none of 99
        with pytest.raises(ConfigError, match=rf"level={level}: .* from 0.05 to 0.95"):
            calibration.quantile(level)


def test_bands_of_segments_are_half_trusted_but_never_narrowed() -> None:
    narrow = Calibration(fitted=True, quantiles=tuple(0.25 * LEVELS), std_scale=0.25)
    wide = half_trusted(narrow)
    assert wide.quantile(0.9) == pytest.approx(np.sqrt(0.25 * 0.9 * 1.6449))
    assert wide.std_scale == 0.5
    careful = Calibration(fitted=True, quantiles=tuple(9.0 * LEVELS), std_scale=2.0)
    assert half_trusted(careful).quantiles == pytest.approx(careful.quantiles)
    assert half_trusted(careful).std_scale == 2.0


def test_few_residuals_give_the_largest_for_the_highest_level() -> None:
    quantiles, _ = fit_quantiles([np.array([0.1, -0.3, 0.2])], [np.ones(3)])
    assert quantiles[-1] == 0.3
    assert quantiles[0] == 0.1


def test_bands_cover_moments_of_new_episodes_whose_errors_differ() -> None:
    """Episodes of 5 or 500 moments with a level of error each: every episode counts once."""
    rng = np.random.default_rng(2)

    def draw(episodes: int) -> list[np.ndarray]:
        return [rng.exponential() * np.abs(rng.normal(size=rng.choice([5, 500]))) for _ in range(episodes)]

    covered, pooled = [], []
    for _ in range(60):
        known = draw(19)
        by_episode = fit_quantiles(known, [np.ones(len(r)) for r in known])[0][17]
        by_moment = np.quantile(np.concatenate(known), 0.9)
        new = draw(40)
        covered.append(np.mean([(r <= by_episode).mean() for r in new]))
        pooled.append(np.mean([(r <= by_moment).mean() for r in new]))
    assert np.mean(covered) == pytest.approx(0.9, abs=0.05)
    assert np.mean(pooled) < np.mean(covered)
    # Two episodes, by hand: masses 1/2 each, of the first split over its two moments. An empty one is none.
    residual = [np.array([1.0, 2.0]), np.array([]), np.array([3.0])]
    quantiles, scale = fit_quantiles(residual, [np.ones(2), np.ones(0), np.ones(1)])
    assert [quantiles[i] for i in (2, 5, 12, 18)] == [1.0, 2.0, 3.0, 3.0]  # at .15, .30, .65, .95
    assert scale == pytest.approx(np.sqrt((2.5 + 9.0) / 2))


def test_platt_finds_scale_and_bias_and_survives_perfect_separation() -> None:
    rng = np.random.default_rng(1)
    logit = rng.normal(0, 3, 20000)
    label = rng.random(20000) < 1 / (1 + np.exp(-(0.5 * logit - 1.0)))
    scale, bias = fit_platt(logit, label)
    assert scale == pytest.approx(0.5, abs=0.03)
    assert bias == pytest.approx(-1.0, abs=0.06)
    scale, bias = fit_platt(np.array([-4.0, -3.0, 3.0, 4.0]), np.array([False, False, True, True]))
    assert np.isfinite([scale, bias]).all()
    assert scale > 0
    assert fit_platt(logit, np.zeros(20000, dtype=np.bool_)) == (1.0, 0.0)


def test_the_detector_prefers_late_over_false() -> None:
    """A spike to .9 before the task is done: one frame may not be enough, or .9 not high enough."""
    done = np.array([False] * 6 + [True] * 4)
    spike = np.array([0, 0, 0.9, 0, 0, 0, 0.8, 0.8, 0.8, 0.8])
    quiet = np.where(done, 0.85, 0.1)
    never = np.zeros(10, dtype=np.bool_)
    detector = fit_detector(
        [(spike, done * 1.0, done), (quiet, done * 1.0, done), (np.full(10, 0.2), never * 1.0, never)]
    )
    assert detector.debounce == 4, "success lasts four moments: more would miss it"
    assert 0.2 < detector.threshold < 0.8
    assert fit_detector([]) == SuccessDetector()


@pytest.mark.parametrize("frames", [1, 3, 4, 9])
@pytest.mark.parametrize("failures", [0, 1])
def test_one_success_is_called_and_never_calling_is_not_as_good(frames: int, failures: int) -> None:
    """A perfect head: that one mistake more cannot be told from none is no reason to miss all there is."""
    done = np.arange(20) >= 20 - frames
    prob, progress = np.where(done, 0.95, 0.02), np.where(done, 1.0, 0.5)
    never = np.zeros(20, dtype=np.bool_)
    lost = (np.full(20, 0.02), np.full(20, 0.5), never)
    detector = fit_detector([(prob, progress, done), *[lost] * failures])
    found = detector.detect(prob, progress)
    assert found is not None
    assert done[found]
    assert detector.debounce == min(frames, 5)
    assert detector.detect(*lost[:2]) is None


def test_where_nothing_is_better_than_never_calling_the_detector_is_still_a_careful_one() -> None:
    done = np.arange(20) >= 18
    deaf = (np.full(20, 0.02), np.linspace(0, 1, 20), done)
    assert fit_detector([deaf]) == SuccessDetector(0.53, 5, 0.9)


def test_the_detector_keeps_away_from_the_edge_of_mistakes() -> None:
    """No frame above .76 is false here, but many are nearly so: several in a row leave room on all sides."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(20):
        done = np.arange(40) >= 34
        prob = np.where(done, 0.97, 0.01)
        prob[rng.choice(np.arange(2, 32, 2), 5, replace=False)] = 0.75
        episodes.append((prob, np.ones(40), done))
    detector = fit_detector(episodes)
    assert detector.debounce == 5, "success lasts six moments, and five is the most"
    assert 0.4 < detector.threshold < 0.65


def test_what_is_not_nearly_complete_is_not_done_unless_the_model_never_claims_as_much() -> None:
    done = np.arange(20) >= 12
    prob = np.where(done, 0.9, 0.1)
    lost = np.where(np.arange(20) >= 12, 0.9, 0.1), np.full(20, 0.4), np.zeros(20, dtype=np.bool_)
    detector = fit_detector([(prob, np.where(done, 1.0, 0.5), done), lost] * 5)
    assert detector.least_progress == 0.9
    assert detector.detect(*lost[:2]) is None
    assert detector.detect(prob, np.where(done, 1.0, 0.5)) == 12 + detector.debounce - 1
    shy = fit_detector([(prob, np.where(done, 0.8, 0.5), done)] * 5)
    assert shy.least_progress == 0.0
    assert shy.detect(prob, np.where(done, 0.8, 0.5)) is not None


@given(st.data())
def test_on_a_stream_the_detector_calls_at_the_same_moment(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 12))
    # 32-bit floats next to .3 and .9 are above the one and below the other.
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    unit = arrays(np.float64, length, elements=st.sampled_from([np.nan, 0.2, 0.3, 0.6, 0.9, 1.0]))
    prob, progress = data.draw(unit).astype(dtype), data.draw(unit).astype(dtype)
    detector = SuccessDetector(
        data.draw(st.sampled_from([0.2, 0.3, 0.5, 0.9])),
        data.draw(st.integers(1, 4)),
        data.draw(st.sampled_from([0.0, 0.6, 0.9])),
    )
    watch, called = SuccessWatch(detector), []
    for p, g in zip(prob, progress, strict=True):
        valid = bool(np.isfinite(p) and np.isfinite(g))
        said = ProgressEstimate(
            np.ones(1, np.float32),
            0.0,
            float(g),
            0.0,
            (0.0, 1.0),
            float(p),
            {},
            valid,
            "" if valid else "blind",
            0,
            "v",
        )
        called.append(watch.push(said))
    assert (called.index(True) if True in called else None) == detector.detect(prob, progress)


@pytest.mark.parametrize(
    ("prob", "progress", "sure"),
    [(0.3, 1.0, True), (1.0, 0.9, False), (0.25, 1.0, False), (1.0, 0.95, True)],
)
def test_32_bit_floats_next_to_a_bound_are_on_one_side_of_it(
    prob: float, progress: float, sure: bool
) -> None:
    """As 64-bit ones they are .30000001 and .89999998: above .3, and below .9."""
    detector = SuccessDetector(0.3, 1, 0.9)
    p, g = np.array([prob], np.float32), np.array([progress], np.float32)
    assert detector.detect(p, g) == (0 if sure else None)
    assert detect_success(p, 0.3) == (0 if prob != 0.25 else None)
    estimate = ProgressEstimate(
        np.ones(1, np.float32), 0.0, float(g[0]), 0.0, (0.0, 1.0), float(p[0]), {}, True, "", 0, "v"
    )
    assert SuccessWatch(detector).push(estimate) is sure


def test_json_round_trip() -> None:
    calibration = Calibration(
        True,
        2.0,
        0.5,
        1.0,
        1.1,
        (0.5, 1.0),
        SuccessDetector(0.7, 3),
        12,
        3,
        FusionParameters(active=("direct", "forward"), drift=0.1),
        7.5,
        (1.2, 1.4),
    )
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration


def test_bands_widen_for_missing_cameras_and_beyond_novelty_one() -> None:
    calibration = Calibration(novelty_limit=2.0, absent=(1.5,))
    widening = calibration.widening(np.array([1.0, 3.0, 3.0, 1.0]), np.array([0, 0, 1, 4]))
    np.testing.assert_allclose(widening, [1.0, 1.5, 2.25, 1.5])
    plain = Calibration().widening(np.array([9.0]), np.array([1]))
    assert plain.tolist() == [1.0]
    assert np.isnan(Calibration().novelty(np.array([9.0]))).all()


def test_of_many_cameras_some_subsets_are_looked_through_and_of_few_all_of_them() -> None:
    """They double with every camera: thirty of them would never be done."""
    rng = np.random.default_rng(0)
    for count in range(1, 6):
        names = [f"c{i}" for i in range(count)]
        for size in range(1, count + 1):
            assert fitting._subsets(names, size, rng) == list(combinations(names, size))
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state, "nothing was drawn"
    names = [f"c{i}" for i in range(30)]
    for size in (2, 15, 28):
        found = fitting._subsets(names, size, np.random.default_rng(1))
        assert len(set(found)) == len(found) == 16
        assert all(
            len(set(chosen)) == size and list(chosen) == sorted(chosen, key=names.index) for chosen in found
        )
        assert found == fitting._subsets(names, size, np.random.default_rng(1))
        assert found != fitting._subsets(names, size, np.random.default_rng(2))


def test_the_work_of_calibration_grows_with_the_number_of_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine have 510 subsets; the same sixteen of a size are looked through every time."""
    cameras = tuple(f"c{i}" for i in range(9))
    torch.manual_seed(0)
    encoder = {
        "_target_": "robo_reward.model.encoders.TinyEncoder",
        "channels": [4, 4, 8, 8],
        "bottleneck": 4,
    }
    task = TaskConfig(("fill the bar",), ("red", "green"), (0.5, 0.5))
    model = ProgressModel(
        ModelConfig(encoder, (task,), cameras, image_size=(16, 16), period_s=0.1, width=16, heads=2, layers=1)
    )
    readers = [MemoryReader(toy_episode(i, length=6, cameras=cameras, size=(16, 16))) for i in range(2)]
    learned = tuple(np.full(6, index == 0) for index in range(2))
    split = Split(learned, tuple(~mask for mask in learned), tuple(np.zeros_like(mask) for mask in learned))
    asked: list[tuple[str, ...]] = []
    moments = fitting.episode_moments

    def counted(model, encoded, cameras=None, *rest, **named):
        asked.append(tuple(cameras or ()))
        return moments(model, encoded, cameras, *rest, **named)

    monkeypatch.setattr(fitting, "episode_moments", counted)
    first = fitting.calibrate(model, readers, split)
    subsets = [chosen for chosen in asked if chosen]
    assert len(first.absent) == 8
    assert [sum(len(chosen) == size for chosen in subsets) for size in range(1, 9)] == [9, *[16] * 6, 9]
    asked.clear()
    assert fitting.calibrate(model, readers, split) == first
    assert [chosen for chosen in asked if chosen] == subsets
