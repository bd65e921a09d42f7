"""Windows: whatever is done to them, labels are those of the images shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robo_reward import clips
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.heads import bootstrap_mask
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward.train.config import HoldoutConfig, WindowConfig
from robo_reward.train.data import WindowSampler
from robo_reward.train.split import make_split

TIMELINES: dict[str, Any] = {
    "splice": clips.Splice(0.5),
    "reverse": clips.Reverse(0.5),
    "rewind": clips.Rewind(0.5),
    "hold": clips.Hold(0.5),
    "clip": clips.TemporalClip(0.5),
    "speed": clips.Speed(0.5),
    "scatter": clips.Scatter(0.5),
}
EPISODES = [toy_episode(i, length=20 + i, reach=1.0 if i % 2 else 0.7) for i in range(4)]


def make_sampler(
    timeline: dict[str, Any], pixels: dict[str, Any], holdout: HoldoutConfig | None = None
) -> WindowSampler:
    readers = [MemoryReader(episode) for episode in EPISODES]
    config = ModelConfig(
        encoder={},
        tasks=(
            TaskConfig(("fill the bar",), ("red", "green"), (0.5, 0.5)),
            TaskConfig(("empty the bar",), ("a", "b", "c"), (0.2, 0.3, 0.5)),
        ),
        cameras=("front", "wrist"),
        image_size=(32, 32),
        period_s=0.1,
    )
    split = make_split([r.info for r in readers], holdout or HoldoutConfig(calibration=0.0, test=0.0), seed=1)
    return WindowSampler(
        readers, split, config, WindowConfig(frames=6), timeline, pixels, 1e9, [None] * len(readers)
    )


@pytest.mark.parametrize("name", [*TIMELINES, "all"])
def test_labels_are_those_of_the_state_shown(name: str) -> None:
    """Every toy frame carries (episode, frame) in its corner: read it back and look the label up."""
    sampler = make_sampler(TIMELINES if name == "all" else {name: TIMELINES[name]}, {})
    plain = make_sampler({}, {})
    changed = 0
    for step in range(6):
        batch = sampler.batch(8, seed=3, step=step)
        if name == "speed":  # the frames stay: their clock does not
            pace = batch.time_s[:, 1] / plain.batch(8, seed=3, step=step).time_s[:, 1]
            changed += int((abs(pace - 1) > 1e-6).sum())
        corner = batch.rgb[:, 0, : batch.stage.shape[1], 0, 0].astype(int)
        for row, column in np.argwhere(batch.moment_mask):
            episode, frame = corner[row, column, :2]
            truth = EPISODES[episode].info
            assert truth.truth is not None
            assert truth.success is not None
            assert batch.stage[row, column] == truth.truth.stage[frame]
            assert batch.tau[row, column] == truth.truth.tau[frame]
            assert batch.success[row, column] == truth.success[frame]
        assert (np.diff(batch.time_s, axis=1) > 0).all()
        shown = np.diff(corner[:, :, 1], axis=1)[batch.moment_mask[:, 1:]]
        changed += 0 if name == "speed" else int((shown != 1).sum())
    assert changed > 0, "the transform never did anything: the test proves nothing"


def test_the_same_seed_and_step_give_the_same_batch() -> None:
    pixels = {
        "drop": clips.DropView(0.3),
        "geometry": clips.Geometry(),
        "color": clips.ColorJitter(gamma=0.2),
    }
    first = make_sampler(TIMELINES, pixels).batch(6, seed=5, step=11)
    again = make_sampler(TIMELINES, pixels).batch(6, seed=5, step=11)
    other = make_sampler(TIMELINES, pixels).batch(6, seed=5, step=12)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.tau, again.tau)
    assert not np.array_equal(first.rgb, other.rgb)


def test_held_out_frames_are_never_shown() -> None:
    holdout = HoldoutConfig(calibration=0.2, test=0.2, segments=2)
    sampler = make_sampler(TIMELINES, {}, holdout)
    seen: set[tuple[int, int]] = set()
    for step in range(40):
        batch = sampler.batch(8, seed=0, step=step)
        corner = batch.rgb[:, 0, :, 0, 0]
        seen |= {(int(e), int(f)) for e, f, _ in corner[batch.mask[:, 0]].reshape(-1, 3)}
    for episode, track in enumerate(sampler.tracks):
        held = np.flatnonzero(~track.usable)
        assert len(held) >= 4
        assert not {(episode, int(f)) for f in held} & seen
    assert len(seen) > 0.9 * sum(track.usable.sum() for track in sampler.tracks)


def test_counterfactual_instruction_is_no_progress_on_the_other_task() -> None:
    swap = clips.CounterfactualInstruction(1.0, ("fill the bar", "empty the bar"))
    batch = make_sampler({"swap": swap}, {}).batch(8, seed=0, step=0)
    assert set(batch.texts) == {"empty the bar"}
    assert (batch.task == 1).all()
    assert batch.labelled[batch.moment_mask].all()
    assert not batch.stage.any()
    assert not batch.tau.any()
    assert not batch.success.any()


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_view_drop_out_always_leaves_a_camera(seed: int, probability: float) -> None:
    rng = np.random.default_rng(seed)
    given_mask = rng.random(4) < 0.6
    pixels = clips.Pixels(
        rgb=rng.integers(0, 256, (4, 3, 8, 8, 3), dtype=np.uint8),
        view_mask=given_mask,
        frame_mask=np.repeat(given_mask[:, None], 3, axis=1),
    )
    left = clips.DropView(probability)(pixels, rng).view_mask
    assert not (left & ~given_mask).any()
    assert left.any() == given_mask.any()


@given(st.integers(0, 2**32 - 1))
def test_pixel_transforms_leave_their_input_and_dead_views_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (3, 2, 12, 10, 3), dtype=np.uint8)
    pixels = clips.Pixels(rgb, np.array([True, True, False]), np.ones((3, 2), dtype=np.bool_))
    kept = rgb.copy()
    transforms = (
        clips.CorruptView(1.0),
        clips.Geometry(rotation=5.0),
        clips.ColorJitter(gamma=0.3),
    )
    for transform in transforms:
        out = transform(pixels, rng)
        np.testing.assert_array_equal(pixels.rgb, kept)
        np.testing.assert_array_equal(out.rgb[2], kept[2])
        assert out.rgb.shape == kept.shape


def test_a_mirrored_window_is_mirrored_as_a_whole_and_back_again() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (2, 3, 8, 6, 3), dtype=np.uint8)
    pixels = clips.Pixels(rgb, np.ones(2, dtype=np.bool_), np.ones((2, 3), dtype=np.bool_))
    once = clips.Mirror(1.0)(pixels, rng)
    np.testing.assert_array_equal(once.rgb[:, :, :, 0], rgb[:, :, :, -1])
    np.testing.assert_array_equal(clips.Mirror(1.0)(once, rng).rgb, rgb)
    np.testing.assert_array_equal(clips.Mirror(0.0)(pixels, rng).rgb, rgb)


def test_a_task_with_few_episodes_teaches_every_head() -> None:
    """One demonstration is the common case: no head of an ensemble may go without it."""
    batch = make_sampler({}, {}).batch(8, seed=0, step=0)
    assert (batch.episode[batch.moment_mask] == -1).all()
    assert bootstrap_mask(torch.from_numpy(batch.episode), 4)[torch.from_numpy(batch.moment_mask)].all()
    many = bootstrap_mask(torch.arange(400), 4).float()
    assert 0.7 < float(many.mean()) < 0.8
    assert float(many.all(dim=1).float().mean()) < 0.5
