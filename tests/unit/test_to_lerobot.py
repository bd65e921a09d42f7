"""What of a store becomes a LeRobot dataset, and what is refused before LeRobot is asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from robo_reward.cli.main import main
from robo_reward.pace import typical_step
from robo_reward.schema import Outcome
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward_data.importers.lerobot import _shown, _thinned
from robo_reward_data.importers.resample import select_frames
from robo_reward_data.store import EpisodeStore
from robo_reward_data.to_lerobot import ToLeRobotConfig, _features, _led_to_success, _rate


def test_success_is_what_the_action_led_to() -> None:
    info = toy_episode(0, length=5).info
    by_frame = dataclasses.replace(info, success=np.array([False, False, True, False, True]))
    assert _led_to_success(by_frame).tolist() == [False, True, False, True, True]
    said = {
        outcome: _led_to_success(dataclasses.replace(info, success=None, outcome=outcome))
        for outcome in Outcome
    }
    assert said[Outcome.SUCCESS].tolist() == [False] * 4 + [True]
    assert said[Outcome.FAILURE].tolist() == [False] * 5
    assert said[Outcome.UNKNOWN] is None
    marked = dataclasses.replace(
        info, success=None, truth=None, boundaries=np.array([0, 1, 3]), outcome=Outcome.SUCCESS
    )
    assert _led_to_success(marked).tolist() == [False, False, True, True, True]


def test_one_episode_of_unknown_outcome_leaves_the_column_out() -> None:
    episodes = [toy_episode(index, length=5) for index in range(2)]
    config = ToLeRobotConfig(data="", out="")
    known = _features([MemoryReader(episode) for episode in episodes], config)
    height, width = episodes[0].info.image_sizes["front"]
    assert known["observation.images.front"]["shape"] == (height, width, 3)
    assert "next.success" in known
    info = dataclasses.replace(episodes[1].info, success=None, outcome=Outcome.UNKNOWN)
    mixed = [MemoryReader(episodes[0]), MemoryReader(dataclasses.replace(episodes[1], info=info))]
    assert "next.success" not in _features(mixed, config)


def test_numbers_keep_their_names_where_every_episode_has_the_same() -> None:
    config, episodes = ToLeRobotConfig(data="", out=""), [toy_episode(index, length=5) for index in range(2)]
    width = episodes[0].proprio.shape[1]

    def names(*given: tuple[str, ...], of: str = "proprio", column: str = "observation.state") -> object:
        named = zip(episodes, given, strict=True)
        infos = [dataclasses.replace(e.info, **{f"{of}_names": n}) for e, n in named]
        readers = [MemoryReader(dataclasses.replace(e, info=i)) for e, i in zip(episodes, infos, strict=True)]
        return _features(readers, config)[column]["names"]

    joints = tuple(f"j{index}" for index in range(width))
    assert names(joints, joints) == list(joints)
    assert names(joints, joints[::-1]) is names((), ()) is None
    moved = tuple(f"m{index}" for index in range(episodes[0].actions.shape[1]))
    assert names(moved, moved, of="action", column="action") == list(moved)


def test_what_does_not_fit_one_dataset_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = EpisodeStore.create(tmp_path / "store")
    first, second = toy_episode(0, length=6), toy_episode(1, length=6)
    store.write(first)
    half = dataclasses.replace(second.info, cameras=("front",), image_sizes={"front": (32, 32)})
    store.write(dataclasses.replace(second, info=half, frames={"front": second.frames["front"]}))
    command = ["to_lerobot", f"data={tmp_path / 'store'}", f"out={tmp_path / 'set'}"]
    assert main(command) == 1
    assert "toy_001 has observation.images.wrist None, toy_000 (32, 32, 3)" in capsys.readouterr().err
    assert main([*command, "fps=0"]) == 1
    assert "fps=0: must be 1 or more" in capsys.readouterr().err
    (tmp_path / "set").mkdir()
    assert main(command) == 1
    assert "exists: choose another out=" in capsys.readouterr().err
    slow = dataclasses.replace(second.info, stamp_ns=first.info.stamp_ns * 3)
    readers = [MemoryReader(first), MemoryReader(first), MemoryReader(dataclasses.replace(second, info=slow))]
    with pytest.raises(
        Exception, match=r"toy_001 has .* frames a second, the dataset would have .*: say fps="
    ):
        _rate(readers)


def test_frames_that_were_thinned_unevenly_have_the_rate_that_they_have() -> None:
    """24 frames a second at 10: two, now three of theirs apart, so that their median is 12 a second."""
    stamps = (np.arange(120) * 1e9 / 24).astype(np.int64)
    kept = stamps[select_frames(stamps, 10.0)]
    assert np.median(np.diff(kept)) < 84e6
    info = dataclasses.replace(toy_episode(0, length=len(kept)).info, stamp_ns=kept)
    reader = MemoryReader(dataclasses.replace(toy_episode(0, length=len(kept)), info=info))
    assert _rate([reader]) == 10
    assert 1e9 / typical_step(np.append(kept, kept[-1] + 10**10)) == pytest.approx(10, rel=0.01), "a gap"
    twelve = np.cumsum([0, *[83_333_000, 83_333_000, 83_333_000, 83_333_000, 166_667_000] * 20])
    assert typical_step(twelve) == pytest.approx(1e8, rel=0.01), "one or two of its frames apart"
    assert np.isnan(typical_step(kept[:1]))


def test_success_comes_back_as_it_went_and_is_not_thinned_away() -> None:
    """Many datasets have next.success at the last frame alone, which a lower frame rate may leave out."""
    info = toy_episode(0).info
    assert info.success is not None
    assert info.success.any()
    led = _led_to_success(info)
    assert led is not None
    np.testing.assert_array_equal(_shown(led), info.success)
    alone = _shown(np.arange(30) == 29)
    thinned = _thinned(alone, select_frames((np.arange(30) * 1e9 / 30).astype(np.int64), 10.0))
    np.testing.assert_array_equal(thinned, np.arange(10) == 9)
    assert not _thinned(np.zeros(30, np.bool_), np.arange(0, 30, 3)).any()
