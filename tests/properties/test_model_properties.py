"""What makes the model usable live: causal, blind to what is masked, and the same live as offline."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import Checkpoint
from robo_reward.errors import ConfigError
from robo_reward.model import trunk
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.fusion import AttentionFusion
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import encode_episode, estimate_episode
from robo_reward.schema import Episode, ProgressEstimate
from robo_reward.stream import BatchStream, Stream
from robo_reward.testing import MemoryReader, toy_episode

TINY = {"_target_": "robo_reward.model.encoders.TinyEncoder", "channels": [8, 8, 16, 16], "bottleneck": 8}


def make_model(seed: int = 0, proprio: int = 0) -> ProgressModel:
    """A random model with random biases everywhere, so that nothing is zero by initialization."""
    torch.manual_seed(seed)
    model = ProgressModel(
        ModelConfig(
            encoder=TINY,
            tasks=(
                TaskConfig(("fill the bar", "make it full"), ("red", "green"), (0.4, 0.6)),
                TaskConfig(("empty the bar",), ("a", "b", "c"), (0.2, 0.3, 0.5)),
            ),
            cameras=("front", "wrist"),
            image_size=(32, 32),
            period_s=0.1,
            width=32,
            window=5,
            proprio_dim=proprio,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


MODEL = make_model()
CALIBRATION = Calibration(
    fitted=True, stage_temperature=1.3, success_scale=0.8, success_bias=-0.2, std_scale=1.1
)
CHECKPOINT = Checkpoint(model=MODEL, calibration=CALIBRATION, version="test")


def offline(episode: Episode, model: ProgressModel = MODEL) -> np.ndarray:
    found = estimate_episode(model, encode_episode(model, MemoryReader(episode)), CALIBRATION)
    return np.stack([found.progress, found.std, found.tau, found.success_prob], axis=1)


def changed_after(episode: Episode, frame: int, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    frames = {name: rgb.copy() for name, rgb in episode.frames.items()}
    for rgb in frames.values():
        rgb[frame + 1 :] = rng.integers(0, 256, rgb[frame + 1 :].shape, dtype=np.uint8)
    return dataclasses.replace(episode, frames=frames)


@settings(max_examples=15)
@given(st.integers(0, 17), st.integers(0, 2**32 - 1))
def test_changing_any_later_frame_changes_nothing_bitwise(frame: int, seed: int) -> None:
    episode = toy_episode(1, length=19)
    before, after = offline(episode), offline(changed_after(episode, frame, seed))
    np.testing.assert_array_equal(before[: frame + 1], after[: frame + 1])
    assert not np.array_equal(before[frame + 1 :], after[frame + 1 :])


def test_attention_reaches_back_a_window_per_layer_and_no_further() -> None:
    """The ring cache relies on it: with 2 layers of window 5, a frame matters for 8 moments more."""
    state = torch.randn(1, 30, 32)
    time_s = torch.arange(30, dtype=torch.float64)[None] * 0.1
    seen = torch.ones(1, 30, dtype=torch.bool)
    other = state.clone()
    other[0, 10] += 1.0
    difference = (MODEL.trunk(state, time_s, seen) - MODEL.trunk(other, time_s, seen)).abs().amax(-1)[0]
    np.testing.assert_array_equal(difference.nonzero()[:, 0], np.arange(10, 19))


@pytest.mark.parametrize("window", [5, 150])
def test_a_long_sequence_attends_as_in_one_piece(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences at irregular times with moments that saw nothing; the last block is not full."""
    torch.manual_seed(4)
    attention = trunk.CausalTrunk(32, 2, 4, window, 0.1).eval()
    x = torch.randn(2, 700, 32, requires_grad=True)
    time_s = torch.rand(2, 700, dtype=torch.float64).cumsum(dim=1)
    seen = torch.rand(2, 700) < 0.8
    weight = torch.randn(2, 700, 32)
    found = attention(x, time_s, seen)
    (slope,) = torch.autograd.grad((found * weight).sum(), x)
    monkeypatch.setattr(trunk, "_WHOLE", 10**6)
    whole = attention(x, time_s, seen)
    (whole_slope,) = torch.autograd.grad((whole * weight).sum(), x)
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(slope, whole_slope, atol=1e-5, rtol=1e-5)


def test_a_later_moment_of_a_long_sequence_changes_nothing_bitwise() -> None:
    state = torch.randn(1, 600, 32, generator=torch.Generator().manual_seed(5))
    time_s = torch.arange(600, dtype=torch.float64)[None] * 0.1
    seen = torch.ones(1, 600, dtype=torch.bool)
    before = MODEL.trunk(state, time_s, seen)
    for moment in (127, 128, 300, 599):
        other = state.clone()
        other[0, moment] += 1.0
        difference = (MODEL.trunk(other, time_s, seen) - before).abs().amax(-1)[0]
        np.testing.assert_array_equal(difference.nonzero()[:, 0], np.arange(moment, min(moment + 9, 600)))


class Largest(TorchDispatchMode):
    """The most bytes that one operation made, in any tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, torch.Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return made


def test_memory_grows_with_the_length_of_an_episode_and_not_with_its_square() -> None:
    """An hour at 10 images a second took 18 GB."""

    def largest(length: int) -> int:
        time_s = torch.arange(length, dtype=torch.float64)[None] * 0.1
        with Largest() as mode:
            MODEL.trunk(torch.zeros(1, length, 32), time_s, torch.ones(1, length, dtype=torch.bool))
        return mode.bytes

    assert largest(4096) == 2 * largest(2048)


@pytest.mark.parametrize("poison", [0.0, 1e30, float("nan"), float("inf")])
def test_a_masked_view_never_matters(poison: float) -> None:
    torch.manual_seed(1)
    fusion = AttentionFusion(16, 4).eval()
    views, camera = torch.randn(6, 3, 16), torch.randn(6, 3, 4)
    mask = torch.tensor([[True, False, True]] * 5 + [[False] * 3])
    spoiled = views.clone()
    spoiled[~mask] = poison
    fused, share = fusion(views, camera, mask)
    again, share_again = fusion(spoiled, camera, mask)
    assert torch.equal(fused, again)
    assert torch.equal(share, share_again)
    torch.testing.assert_close(share.sum(-1), torch.tensor([1.0] * 5 + [0.0]))
    assert (share[~mask] == 0).all()


def test_fusion_does_not_depend_on_the_order_of_views() -> None:
    torch.manual_seed(2)
    fusion = AttentionFusion(16, 4).eval()
    views, camera, mask = torch.randn(4, 5, 16), torch.randn(4, 5, 4), torch.rand(4, 5) < 0.7
    order = torch.tensor([3, 0, 4, 1, 2])
    fused, share = fusion(views, camera, mask)
    moved, moved_share = fusion(views[:, order], camera[:, order], mask[:, order])
    torch.testing.assert_close(fused, moved, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(share[:, order], moved_share, atol=1e-6, rtol=1e-5)


def columns(found: list[ProgressEstimate]) -> np.ndarray:
    return np.array([[e.progress, e.std, e.tau, e.success_prob] for e in found])


@pytest.mark.parametrize("gaps", ["regular", "irregular"])
def test_a_stream_says_what_the_offline_path_says(gaps: str) -> None:
    """More frames than the ring has slots, so that it wraps; 1e-5 as promised."""
    episode = toy_episode(2, length=23)
    steps = np.full(23, 0.1) if gaps == "regular" else np.random.default_rng(0).uniform(0.01, 0.9, 23)
    stamps = (1.7e18 + np.cumsum(steps) * 1e9).astype(np.int64)
    episode = dataclasses.replace(episode, info=dataclasses.replace(episode.info, stamp_ns=stamps))
    stream = Stream(CHECKPOINT, "fill the bar")
    live = [stream.push({n: f[i] for n, f in episode.frames.items()}, int(stamps[i])) for i in range(23)]
    np.testing.assert_allclose(columns(live), offline(episode), atol=1e-5)


def test_streams_in_a_batch_do_not_touch_each_other() -> None:
    """Three episodes, one late by four moments, one with a camera gone and moments without any frame."""
    episodes = [toy_episode(i, length=16) for i in range(3)]
    batch = BatchStream(CHECKPOINT, ["fill the bar", "empty the bar", "make it full"])
    alone = [Stream(CHECKPOINT, text) for text in ("fill the bar", "empty the bar")]
    for step in range(16):
        images = [{n: f[step] for n, f in e.frames.items()} for e in episodes]
        if step < 4:
            images[1] = {}
        images[2] = {} if step in (5, 6) else {"wrist": images[2]["wrist"]}
        stamps = [step * 100_000_000] * 3
        together = batch.push(images, stamps)
        np.testing.assert_allclose(
            columns(together[:1]), columns([alone[0].push(images[0], stamps[0])]), atol=1e-5
        )
        assert together[1].valid == (step >= 4)
        if step >= 4:
            np.testing.assert_allclose(
                columns(together[1:2]), columns([alone[1].push(images[1], stamps[1])]), atol=1e-5
            )
            assert len(together[1].stage_probs) == 3
        assert together[2].valid == bool(images[2])
        assert together[2].reason == ("" if images[2] else "no camera frame")


def test_a_reset_stream_is_a_new_stream() -> None:
    first, second = toy_episode(0, length=9), toy_episode(1, length=9)
    used, fresh = Stream(CHECKPOINT, "fill the bar"), Stream(CHECKPOINT, "fill the bar")
    for i in range(9):
        used.push({n: f[i] for n, f in first.frames.items()}, 10**12 + i)
    used.reset()
    for i in range(9):
        images = {n: f[i] for n, f in second.frames.items()}
        np.testing.assert_allclose(
            columns([used.push(images, i + 1)]), columns([fresh.push(images, i + 1)]), atol=1e-5
        )


def test_bad_pushes_are_invalid_with_a_reason_and_leave_no_trace() -> None:
    episode = toy_episode(0, length=8)
    clean, disturbed = Stream(CHECKPOINT, "fill the bar"), Stream(CHECKPOINT, "fill the bar")
    front = episode.frames["front"][0]
    bad = [
        ({}, 10**9, "no camera frame"),
        ({"front": front.astype(np.float32)}, 10**9, "camera 'front' gave float32"),
        ({"front": front[..., :1]}, 10**9, "needs uint8[h, w, 3]"),
        ({"front": front[:0]}, 10**9, "needs uint8[h, w, 3]"),
        ({"front": front}, -1, "is not after"),
    ]
    for i in range(8):
        images = {n: f[i] for n, f in episode.frames.items()}
        stamp = (i + 1) * 100_000_000
        expected, got = clean.push(images, stamp), disturbed.push(images, stamp)
        np.testing.assert_allclose(columns([got]), columns([expected]), atol=1e-6)
        for images, when, message in bad:
            answer = disturbed.push(images, when if when < 0 else stamp + 1)
            assert not answer.valid
            assert message in answer.reason
            assert np.isnan([answer.progress, answer.std, answer.success_prob, *answer.stage_probs]).all()
            assert answer.stage == -1


def test_an_output_that_is_not_finite_is_invalid() -> None:
    model = make_model()
    with torch.no_grad():
        model.success_head[0].bias.fill_(float("nan"))
    stream = Stream(Checkpoint(model=model, calibration=CALIBRATION), "fill the bar")
    answer = stream.push({"front": toy_episode(0).frames["front"][0]}, 0)
    assert (answer.valid, answer.reason) == (False, "the network's output is not finite")


def test_unknown_cameras_sizes_and_missing_proprioception_are_taken() -> None:
    model = make_model(proprio=2)
    stream = Stream(Checkpoint(model=model, calibration=CALIBRATION), "fill the bar")
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    answer = stream.push({"never seen": rgb, "too": rgb[:20]}, 0)
    assert answer.valid
    assert set(answer.per_view) == {"never seen", "too"}
    assert sum(answer.per_view.values()) == pytest.approx(1.0, abs=1e-5)
    with_state = stream.push({"too": rgb[:20]}, 1, np.array([0.1, 0.2], np.float32))
    assert with_state.valid


def test_proprioception_of_a_wrong_length_is_refused_and_leaves_no_trace() -> None:
    checkpoint = Checkpoint(model=make_model(proprio=2), calibration=CALIBRATION)
    clean, disturbed = Stream(checkpoint, "fill the bar"), Stream(checkpoint, "fill the bar")
    episode = toy_episode(0, length=4)
    for i in range(4):
        images, body = {"front": episode.frames["front"][i]}, np.array([0.1, 0.2], np.float32)
        with pytest.raises(ConfigError, match=r"shape \(3,\), the model was trained on \(2,\)"):
            disturbed.push(images, i, np.zeros(3, np.float32))
        np.testing.assert_allclose(
            columns([disturbed.push(images, i, body)]), columns([clean.push(images, i, body)]), atol=1e-6
        )


def test_progress_is_the_mean_of_the_joint_distribution() -> None:
    """By hand: p(stage) = (1/4, 3/4), tau certain at 0.5 and 0.25, weights (.4, .6)."""
    from robo_reward.estimate import raw_progress
    from robo_reward.model.progress_model import Prediction

    stage = torch.log(torch.tensor([[[0.25, 0.75, 0.0]]]))
    tau = torch.full((1, 1, 3, MODEL.config.tau_bins), -1e4)
    tau[0, 0, 0, 10] = tau[0, 0, 1, 5] = tau[0, 0, 2, 0] = 0.0
    said = Prediction(stage, tau, torch.zeros(1))
    stage_probs, stage_tau, found, std = raw_progress(MODEL, said, torch.tensor([0]), temperature=1.0)
    low, high = 0.4 * 0.5, 0.4 + 0.6 * 0.25
    mean = 0.25 * low + 0.75 * high
    spread = np.sqrt(0.25 * (low - mean) ** 2 + 0.75 * (high - mean) ** 2)
    assert found[0].item() == pytest.approx(mean, abs=1e-6)
    assert std[0].item() == pytest.approx(spread, rel=1e-3)
    assert stage_probs[0].tolist() == pytest.approx([0.25, 0.75, 0.0], abs=1e-6)
    assert stage_tau[0, :2].tolist() == pytest.approx([0.5, 0.25], abs=1e-6)
