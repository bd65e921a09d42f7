"""Other looks of what is imitated: made once, stored with the rollout, sampled as rows of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float32

from robo_reward.improve.config import LooksConfig
from robo_reward.improve.looks import Looks
from robo_reward.improve.observer import Moment, Observer
from robo_reward.improve.replay import Replay, Shaping
from robo_reward.improve.rollouts import Rollout, load_rollout, save_rollout
from robo_reward.improve.sources import LearnedProgress
from robo_reward.shaping import PotentialBased, Standard

SHIFT = {"geometry": {"_target_": "robo_reward.clips.Geometry", "shift": 0.2, "keep": 0.0}}
NOTHING = np.empty(0, np.float32)


class Watcher(Observer):
    """An observer whose map is the mean column of every camera that it is shown."""

    def __init__(self, parts: tuple[str, ...] = ("proprio", "map")) -> None:
        self._parts, self.began = parts, 0

    def begin(self) -> None:
        self.began += 1

    def see(
        self, observation: Mapping[str, Any], stamp_ns: int, privileged: Float32[np.ndarray, " s"] | None
    ) -> Moment:
        images = observation["images"]
        columns = [images[c].mean((0, 2)) if c in images else np.zeros(12) for c in ("left", "right")]
        parts = {"proprio": observation["proprio"], "map": np.concatenate(columns).astype(np.float16)}
        parts |= {} if privileged is None else {"privileged": privileged}
        return Moment({n: parts[n] for n in self.parts}, None, images, NOTHING, NOTHING, parts["proprio"])


def lived(length: int, *, actions: float = 0.5) -> tuple[Rollout, list[dict[str, np.ndarray]]]:
    """An episode in which a bright column moves to the right; one camera is blind at first."""
    images = []
    for t in range(length):
        rgb = np.zeros((8, 12, 3), np.uint8)
        rgb[:, 3 + t] = 255
        images.append({"left": rgb, "right": rgb.copy()} if t else {"left": rgb})
    watcher, proprio = Watcher(), np.arange(length, dtype=np.float32)[:, None]
    maps = [
        watcher.see({"proprio": proprio[t], "images": images[t]}, 0, None).parts["map"] for t in range(length)
    ]
    success = np.zeros(length, np.bool_)
    success[-1] = True
    unknown = np.full(length, np.nan, np.float32)
    rollout = Rollout(
        parts={"proprio": proprio, "map": np.stack(maps)},
        actions=np.full((length - 1, 1), actions, np.float32),
        task_reward=success[1:].astype(np.float32),
        intervened=np.zeros(length - 1, np.bool_),
        progress=unknown,
        std=unknown,
        truth=unknown,
        embedding=np.empty((length, 0), np.float32),
        first=NOTHING,
        proprio=proprio,
        success=success,
        stamp_ns=np.arange(length, dtype=np.int64) * 100_000_000,
        terminated=True,
        demonstration=True,
        source={"index": 0, "started_after": 0},
    )
    return rollout, images


def test_a_look_is_one_for_the_whole_episode_and_each_camera_has_its_own() -> None:
    rollout, images = lived(4)
    watcher = Watcher()
    rng = np.random.default_rng(3)
    found = Looks(LooksConfig(5, SHIFT)).added(rollout, images, watcher, rng)
    assert watcher.began == len(found.looks) == 5
    assert all(set(look) == {"map"} for look in found.looks), "proprioception looks the same"
    np.testing.assert_array_equal(found.parts["map"], rollout.parts["map"])
    column = np.arange(12)
    shifts = set()
    for look in found.looks:
        left, right = look["map"][:, :12].astype(float), look["map"][:, 12:].astype(float)
        assert not right[0].any(), "a camera that was blind stays blind"
        place = (left * column).sum(1) / left.sum(1)
        np.testing.assert_allclose(np.diff(place), 1.0, atol=0.15)  # what moves, moves as it did
        shifts.add((round(place[1] - 4, 2), round((right[1] * column).sum() / right[1].sum() - 4, 2)))
    assert len(shifts) == 5
    assert any(abs(left - right) > 0.3 for left, right in shifts)


def test_there_are_none_where_nothing_that_is_observed_depends_on_them() -> None:
    rollout, images = lived(3)
    looks, rng = Looks(LooksConfig(2, SHIFT)), np.random.default_rng(0)
    assert not looks.added(rollout, images, Watcher(("proprio",)), rng).looks
    assert not looks.added(rollout, [{}, {}, {}], Watcher(), rng).looks
    assert not Looks(LooksConfig()).added(rollout, images, Watcher(), rng).looks


def test_they_are_stored_with_the_rollout(tmp_path: Path) -> None:
    rollout, images = lived(3)
    found = Looks(LooksConfig(12, SHIFT)).added(rollout, images, Watcher(), np.random.default_rng(0))
    save_rollout(tmp_path / "a.npz", found)
    again = load_rollout(tmp_path / "a.npz")
    assert len(again.looks) == 12
    for one, other in zip(again.looks, found.looks, strict=True):
        np.testing.assert_array_equal(one["map"], other["map"])


def test_transitions_stay_within_a_look() -> None:
    """Two episodes of two looks each: what comes before a step and after it has one and the same shift."""
    replay = Replay(Shaping(LearnedProgress(), Standard(), PotentialBased(), 0.0, 0.5), 1)
    for seed, action in ((0, 0.25), (1, -0.5)):
        rollout, images = lived(4, actions=action)
        rng = np.random.default_rng(seed)
        replay.add(Looks(LooksConfig(1, SHIFT)).added(rollout, images, Watcher(), rng))
    observed, actions = replay.decisions(replay.demonstrated())
    assert len(observed) == 2 * 2 * 3
    assert sorted(actions[:, 0].tolist()) == [-0.5] * 6 + [0.25] * 6
    assert [len(columns) for columns in replay.observations()] == [2 * 2 * 4]
    column = torch.arange(12.0)
    seen = set()
    for batch in replay.batches(20, 16, 1.0, torch.Generator().manual_seed(0)):
        before, after = batch.observation[:, 1:13], batch.next_observation[:, 1:13]
        moved = [((m * column).sum(1) / m.sum(1)) for m in (before, after)]
        torch.testing.assert_close(moved[1] - moved[0], torch.ones(16), atol=0.15, rtol=0)
        torch.testing.assert_close(batch.next_observation[:, 0], batch.observation[:, 0] + 1)
        seen |= {round(float(v), 1) for v in moved[0] - batch.observation[:, 0]}
    assert len(seen) >= 3, "the plain look and those of both episodes are drawn"


@pytest.mark.parametrize("copies", [-1, -7])
def test_fewer_than_none_is_refused(copies: int) -> None:
    from robo_reward.errors import ConfigError
    from robo_reward.improve.config import ImproveConfig, check_config

    with pytest.raises(ConfigError, match=r"looks\.copies"):
        check_config(ImproveConfig("env", "demos", "out", looks=LooksConfig(copies)))
