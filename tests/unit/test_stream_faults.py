"""What cameras and networks do wrong, and what a stream answers: see the table of `robo_reward.stream`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import Checkpoint
from robo_reward.errors import ConfigError
from robo_reward.estimate import Estimates
from robo_reward.fusion import PERSPECTIVES, FusionParameters
from robo_reward.intake import Repeats
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import encode_episode, encode_goal, estimate_episode
from robo_reward.schema import Episode, Frame, ProgressEstimate
from robo_reward.stream import STUCK_AFTER, BatchStream, Stream
from robo_reward.testing import MemoryReader, toy_episode

CALIBRATION = Calibration(
    fitted=True,
    fusion=FusionParameters(active=PERSPECTIVES),
    novelty_limit=1e9,
    absent=(1.5,),
)
TASK = "fill the bar"


def build() -> ProgressModel:
    """Random weights, whose embeddings are as familiar as those of a ball around 0."""
    torch.manual_seed(3)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [8, 8, 16, 16],
            "bottleneck": 8,
        },
        tasks=(TaskConfig((TASK,), ("red", "green"), (0.4, 0.6)),),
        cameras=("front", "wrist"),
        image_size=(32, 32),
        period_s=0.1,
        width=32,
        window=5,
        ensemble=3,
    )
    model = ProgressModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.familiar_whiten.copy_(torch.eye(32))
    return model.eval().requires_grad_(False)


MODEL = build()
CHECKPOINT = Checkpoint(model=MODEL, calibration=CALIBRATION, version="test")


def moments(episode: Episode) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    for index, stamp in enumerate(episode.info.stamp_ns):
        yield {name: rgb[index] for name, rgb in episode.frames.items()}, int(stamp)


def numbers(found: list[ProgressEstimate]) -> np.ndarray:
    return np.array([[e.progress, e.std, e.tau, e.success_prob, e.novelty] for e in found])


def whole(found: Estimates) -> np.ndarray:
    return np.stack([found.progress, found.std, found.tau, found.success_prob, found.novelty], axis=1)


def moving(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_fused_streams_say_what_the_offline_path_says(seed: int) -> None:
    """Irregular intervals, all perspectives but the goal's, and an ensemble."""
    episode = toy_episode(seed, length=17)
    steps = np.random.default_rng(seed).uniform(0.01, 0.9, 17)
    info = replace(episode.info, stamp_ns=(1.7e18 + np.cumsum(steps) * 1e9).astype(np.int64))
    episode = replace(episode, info=info)
    found = estimate_episode(MODEL, encode_episode(MODEL, MemoryReader(episode)), CALIBRATION)
    stream = Stream(CHECKPOINT, TASK)
    live = [stream.push(images, stamp) for images, stamp in moments(episode)]
    np.testing.assert_allclose(numbers(live), whole(found), atol=1e-5)
    assert np.isfinite(found.perspectives[1:, :3]).all()
    assert not np.allclose(found.progress, found.perspectives[:, 0], atol=1e-3)


def test_a_camera_that_training_left_out_is_left_out_live_as_it_is_offline() -> None:
    """It is looked through where there is no other; its images may be anything where there is one."""
    episode = toy_episode(0, length=9)
    episode.frames["overhead"] = moving(9, 4)
    cameras = (*episode.info.cameras, "overhead")
    info = replace(episode.info, cameras=cameras, image_sizes=dict.fromkeys(cameras, (32, 32)))
    episode = replace(episode, info=info)
    found = estimate_episode(MODEL, encode_episode(MODEL, MemoryReader(episode)), CALIBRATION)
    batch = BatchStream(CHECKPOINT, [TASK, TASK])
    live: list[list[ProgressEstimate]] = []
    for images, stamp in moments(episode):
        known = {name: rgb for name, rgb in images.items() if name != "overhead"}
        live.append(batch.push([images, {"overhead": np.zeros(3), **known}], [stamp, stamp]))
        if len(live) == 5:
            assert batch.states[0] == pytest.approx(batch.states[1], abs=1e-6)
    for stream in zip(*live, strict=True):
        np.testing.assert_allclose(numbers(list(stream)), whole(found), atol=1e-5)
        assert all(set(said.per_view) == {"front", "wrist"} for said in stream)
    alone = Stream(CHECKPOINT, TASK).push({"front": None, "overhead": moving(1, 4)[0]}, 0)
    assert (alone.valid, set(alone.per_view)) == (True, {"overhead"})


def test_a_goal_picture_adds_the_backward_perspective_live_and_offline() -> None:
    episode, other = toy_episode(0, length=9), toy_episode(1, length=9)
    reader = MemoryReader(episode)
    goal = encode_goal(MODEL, reader, MemoryReader(other), 8, episode.info.cameras)
    found = estimate_episode(MODEL, encode_episode(MODEL, reader), CALIBRATION, goal=goal)
    stream = Stream(CHECKPOINT, TASK)
    live = []
    for index, (images, stamp) in enumerate(moments(episode)):
        live.append(stream.push(images, stamp))
        if index == 0:
            stream.set_goal({name: rgb[8] for name, rgb in other.frames.items()})
    assert np.isfinite(found.perspectives[:, 3]).all()
    without = estimate_episode(MODEL, encode_episode(MODEL, reader), CALIBRATION)
    assert np.isnan(without.perspectives[:, 3]).all()
    # The stream saw its first moment without the goal; what that did to the filter fades.
    assert abs(live[-1].progress - found.progress[-1]) < abs(live[-1].progress - without.progress[-1])


def test_a_goal_is_of_its_episode_alone() -> None:
    """Where the next one has none, the stream is as one that never had any."""
    episode, other = toy_episode(0, length=9), toy_episode(1, length=9)
    used, fresh = Stream(CHECKPOINT, TASK), Stream(CHECKPOINT, TASK)
    for index, (images, stamp) in enumerate(moments(episode)):
        used.push(images, stamp)
        if index == 0:
            used.set_goal({name: rgb[8] for name, rgb in other.frames.items()})
    used.reset()
    for images, stamp in moments(other):
        said, expected = used.push(images, stamp), fresh.push(images, stamp)
        np.testing.assert_allclose(numbers([said]), numbers([expected]), atol=1e-6)


def test_a_stuck_camera_is_left_out_and_comes_back() -> None:
    front, wrist = moving(40, 0), moving(40, 1)
    front[10:30] = front[10]
    stream, alone = Stream(CHECKPOINT, TASK), Stream(CHECKPOINT, TASK)
    live = [stream.push({"front": front[i], "wrist": wrist[i]}, i * 10**8) for i in range(40)]
    assert all(e.valid for e in live)
    noted = [i for i, e in enumerate(live) if e.note]
    assert noted == list(range(10 + STUCK_AFTER, 30))
    assert "camera 'front' is stuck: 8 times the same image" in live[18].note
    assert set(live[18].per_view) == {"wrist"}
    assert set(live[30].per_view) == {"front", "wrist"}
    # From then on it is a stream that is given the other camera alone, whose band is wider.
    for i in range(30):
        gone = i >= 18
        given = {"wrist": wrist[i]} if gone else {"front": front[i], "wrist": wrist[i]}
        expected = alone.push(given, i * 10**8)
        np.testing.assert_allclose(numbers([live[i]]), numbers([expected]), atol=1e-6)


def test_a_slow_cameras_image_that_is_given_again_is_no_repeat_and_a_frozen_cameras_is() -> None:
    """What tells them apart is when the image was taken: it was called stuck for being slow."""
    front, wrist = moving(60, 0), moving(60, 1)
    stream = Stream(CHECKPOINT, TASK)
    for i in range(60):
        slow = Frame(wrist[i // 20], i // 20)
        assert stream.push({"front": Frame(front[i], i), "wrist": slow}, i * 10**8).note == ""
    frozen = Stream(CHECKPOINT, TASK)
    notes = [
        frozen.push({"front": Frame(front[i], i), "wrist": Frame(wrist[0], i)}, i * 10**8).note
        for i in range(2 * STUCK_AFTER)
    ]
    assert [i for i, note in enumerate(notes) if "stuck" in note] == list(range(STUCK_AFTER, 2 * STUCK_AFTER))
    # And it stays stuck where its last image is given once more.
    again = {"front": Frame(front[20], 20), "wrist": Frame(wrist[0], 2 * STUCK_AFTER - 1)}
    assert "camera 'wrist' is stuck" in frozen.push(again, 20 * 10**8).note


@pytest.mark.parametrize(("still", "limit"), [(0, 8), (4, 8), (5, 10), (16, 32), (17, 32), (500, 32)])
def test_how_long_a_camera_stood_still_in_recordings_is_how_long_it_may(still: int, limit: int) -> None:
    repeats = Repeats({"front": still})
    stuck = [repeats.push({"front": False, "wrist": True}) for _ in range(40)]
    assert stuck == [set()] * (limit - 1) + [{"front"}] * (41 - limit)
    assert repeats.push({"front": None, "wrist": True}) == set()


@pytest.mark.parametrize(("still", "limit"), [(0, STUCK_AFTER), (6, 12)])
def test_whole_episodes_leave_a_stuck_camera_out_as_streams_do(
    monkeypatch: pytest.MonkeyPatch, still: int, limit: int
) -> None:
    monkeypatch.setattr(MODEL, "config", replace(MODEL.config, still={"front": still}))
    episode = toy_episode(0, length=40)
    front = episode.frames["front"].copy()
    front[10:30] = front[10]
    frozen = replace(episode, frames={**episode.frames, "front": front})
    stream = Stream(CHECKPOINT, TASK)
    live = [stream.push(images, stamp) for images, stamp in moments(frozen)]
    assert [i for i, e in enumerate(live) if "stuck" in e.note] == list(range(10 + limit, 30))
    encoded = encode_episode(MODEL, MemoryReader(frozen))
    assert encoded.longest_still() == {"front": 19, "wrist": 0}
    found = estimate_episode(MODEL, encoded, CALIBRATION)
    np.testing.assert_allclose(whole(found), numbers(live), atol=1e-5)
    # Nothing tells whether the only camera shown is stuck or looks at a scene at rest.
    alone = encoded.used(["front"])
    assert alone[:, encoded.cameras.index("front")].all()
    assert not alone[:, encoded.cameras.index("wrist")].any()


def test_maps_are_those_of_the_last_images_and_change_no_estimate() -> None:
    front, wrist = moving(6, 0), moving(6, 1)
    streams = BatchStream(CHECKPOINT, [TASK, TASK], maps=True)
    plain = BatchStream(CHECKPOINT, [TASK, TASK])
    assert plain.maps == {}
    assert set(streams.maps) == {"front", "wrist"}
    assert not any(maps.any() for maps in streams.maps.values())
    first = MODEL.encoder.remember(torch.from_numpy(front[:1]).permute(0, 3, 1, 2))
    for i in range(6):
        # The second stream has no wrist camera after its second moment, and nothing at all at the fifth.
        other = {"front": front[5 - i]} | ({"wrist": wrist[i]} if i < 2 else {})
        given = [{"front": front[i], "wrist": wrist[i]}, {} if i == 4 else other]
        found = [s.push(given, [i * 10**8] * 2) for s in (streams, plain)]
        np.testing.assert_allclose(numbers(found[0]), numbers(found[1]), atol=1e-6)
        named = torch.cat([MODEL.camera(MODEL.camera_ids(["front"])), torch.ones(1, 1)], dim=1)
        image = torch.from_numpy(front[i : i + 1]).permute(0, 3, 1, 2)
        expected = MODEL.encoder.look(image, first, named)[1][0].numpy()
        np.testing.assert_allclose(streams.maps["front"][0], expected, atol=1e-5)
        if i == 1:
            held = streams.maps["wrist"][1]
        if i == 3:
            seen = streams.maps["front"][1]
        if i == 4:
            np.testing.assert_array_equal(streams.maps["front"][1], seen)
    np.testing.assert_array_equal(streams.maps["wrist"][1], held)
    assert held.any()
    streams.reset(1)
    assert not streams.maps["front"][1].any()
    assert streams.maps["front"][0].any()


def test_a_scene_at_rest_is_no_stuck_camera() -> None:
    stream = Stream(CHECKPOINT, TASK)
    image = moving(2, 0)
    found = [stream.push({"front": image[0], "wrist": image[1]}, i) for i in range(3 * STUCK_AFTER)]
    assert not any(e.note for e in found)


@pytest.mark.usefixtures("_unchecked")
def test_seconds_are_no_stamps_and_a_camera_without_an_image_is_gone() -> None:
    stream, alone = Stream(CHECKPOINT, TASK), Stream(CHECKPOINT, TASK)
    front = moving(2, 0)
    with pytest.raises(ConfigError, match=r"stamp 1.7 is no whole number of nanoseconds"):
        stream.push({"front": front[0]}, 1.7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="push these first"):
        stream.set_goal({"front": front[1]})
    said = stream.push({"front": front[0], "wrist": None}, np.int64(5))
    np.testing.assert_allclose(numbers([said]), numbers([alone.push({"front": front[0]}, 5)]), atol=1e-6)
    assert stream.push({"front": None}, 6).reason == "no camera frame"


def test_a_camera_whose_aspect_changes_is_left_out() -> None:
    stream = Stream(CHECKPOINT, TASK)
    wide, square = np.zeros((48, 64, 3), np.uint8), np.zeros((48, 48, 3), np.uint8)
    stream.push({"front": wide, "wrist": square}, 0)
    found = stream.push({"front": square, "wrist": square}, 1)
    assert (found.valid, set(found.per_view)) == (True, {"wrist"})
    assert "camera 'front' changed its aspect from 1.33 to 1.00" in found.note
    only = stream.push({"front": square}, 2)
    assert (only.valid, only.reason) == (False, found.note)
    assert stream.push({"front": np.zeros((96, 128, 3), np.uint8)}, 3).valid


def test_missing_cameras_and_strange_scenes_widen_the_band() -> None:
    images = {"front": moving(1, 0)[0], "wrist": moving(1, 1)[0]}
    both = Stream(CHECKPOINT, TASK).push(images, 0)
    plain = replace(CHECKPOINT, calibration=replace(CALIBRATION, absent=()))
    one = Stream(CHECKPOINT, TASK).push({"front": images["front"]}, 0)
    unwidened = Stream(plain, TASK).push({"front": images["front"]}, 0)
    assert one.std == pytest.approx(1.5 * unwidened.std, rel=1e-5)
    assert both.note == one.note == ""
    # Another camera, of which the model knows nothing, does not stand in for one that is gone.
    strange = {"front": images["front"], "overhead": images["wrist"]}
    wide, narrow = (Stream(chosen, TASK).push(strange, 0).std for chosen in (CHECKPOINT, plain))
    assert wide == pytest.approx(1.5 * narrow, rel=1e-5)
    limit = both.novelty * 1e9 / 4.0  # this very scene is four times as strange as 1 % of calibration
    strange = replace(CHECKPOINT, calibration=replace(CALIBRATION, novelty_limit=limit))
    found = Stream(strange, TASK).push(images, 0)
    assert found.valid
    assert found.novelty == pytest.approx(4.0, rel=1e-4)
    assert found.std == pytest.approx(4.0 * both.std, rel=1e-4)
    assert found.note == "the scene is unlike what calibration saw (novelty 4.0)"
    # From where bands begin to widen on: states that fool a model lie not far above 1.
    for novelty, said in ((1.2, True), (0.8, False)):
        near = replace(CHECKPOINT, calibration=replace(CALIBRATION, novelty_limit=4.0 * limit / novelty))
        note = Stream(near, TASK).push(images, 0).note
        assert note == ("the scene is unlike what calibration saw (novelty 1.2)" if said else "")


def test_a_moment_that_the_network_cannot_take_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its embedding is NaN in the first moment and in a later one; the stream beside it is not touched."""
    episodes = [toy_episode(i, length=14) for i in range(2)]
    encode = MODEL.encode
    clean, alone = Stream(CHECKPOINT, TASK), Stream(CHECKPOINT, TASK)
    batch = BatchStream(CHECKPOINT, [TASK, TASK])
    for step in range(14):
        images = [{n: f[step] for n, f in e.frames.items()} for e in episodes]
        stamp = (step + 1) * 10**8
        expected = clean.push(images[0], stamp)
        poisoned = step in (0, 6)
        if poisoned:
            with monkeypatch.context() as patch:
                patch.setattr(
                    MODEL, "encode", lambda *a: encode(*a) * torch.tensor([1, np.nan])[:, None, None]
                )
                found = batch.push(images, [stamp, stamp])
        else:
            found = batch.push(images, [stamp, stamp])
            other = alone.push(images[1], stamp)
            np.testing.assert_allclose(numbers([found[1]]), numbers([other]), atol=1e-5)
        np.testing.assert_allclose(numbers([found[0]]), numbers([expected]), atol=1e-5)
        assert found[1].valid != poisoned
        assert found[1].reason == ("the network's output is not finite" if poisoned else "")


def test_a_bad_moment_takes_no_slot_of_its_streams_memory() -> None:
    """Bad pushes, more than the window, of one stream of two: it still says what it says alone."""
    batch, alone = BatchStream(CHECKPOINT, [TASK, TASK]), Stream(CHECKPOINT, TASK)
    front = moving(30, 2)
    for step in range(30):
        stamp = (step + 1) * 10**8
        bad = step % 8 >= 2
        late = [stamp, 1 if step > 8 and bad else stamp]
        found = batch.push(
            [{"front": front[step]}, {} if bad and step <= 8 else {"front": front[step]}], late
        )
        assert found[0].valid
        assert found[1].valid != bad
        if not bad:
            np.testing.assert_allclose(
                numbers([found[1]]), numbers([alone.push({"front": front[step]}, stamp)]), atol=1e-5
            )


def test_a_caller_may_reuse_its_buffer_and_count_is_checked() -> None:
    stream, buffer = Stream(CHECKPOINT, TASK), np.zeros((32, 32, 3), np.uint8)
    wrist = moving(12, 3)
    for step in range(12):
        buffer[:] = moving(1, 10 + step)[0]
        assert stream.push({"front": buffer, "wrist": wrist[step]}, step).note == ""
    with pytest.raises(ConfigError, match="2 streams, but 1 images"):
        BatchStream(CHECKPOINT, [TASK, TASK]).push([{}], [0])
    with pytest.raises(ConfigError, match="2 streams, but 1 entries of proprioception"):
        BatchStream(CHECKPOINT, [TASK, TASK]).push([{}, {}], [0, 0], [None])


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """As for users, whose annotations nobody checks at run time."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.usefixtures("_unchecked")
def test_images_without_a_camera_are_refused_in_words() -> None:
    stream, rgb = Stream(CHECKPOINT, TASK), moving(1, 0)[0]
    with pytest.raises(ConfigError, match=r"stream 0 are of type ndarray: name each camera, as in {'front'"):
        stream.push(rgb, 0)
    assert stream.push({"front": rgb}, 0).valid  # nothing had changed
    with pytest.raises(ConfigError, match="the goal's images are of type ndarray"):
        stream.set_goal(rgb)
    with pytest.raises(ConfigError, match="stream 1 are of type list"):
        BatchStream(CHECKPOINT, [TASK, TASK]).push([{}, [rgb]], [0, 0])


def test_an_episode_is_to_the_bit_what_it_would_be_as_the_first() -> None:
    """Wherever the one before it ended in the ring cache: a run that is taken up again goes on as it was."""
    shown = list(moments(toy_episode(3, length=2 * MODEL.config.window)))
    fresh, used = Stream(CHECKPOINT, TASK), Stream(CHECKPOINT, TASK)
    for images, stamp in list(moments(toy_episode(4, length=9)))[: MODEL.config.window - 1]:
        used.push(images, stamp)
    used.reset()
    for images, stamp in shown:
        first, again = fresh.push(images, stamp), used.push(images, stamp)
        np.testing.assert_array_equal(numbers([first]), numbers([again]))
        np.testing.assert_array_equal(fresh.state, used.state)
