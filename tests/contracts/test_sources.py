"""Every source of episodes keeps the contract of `EpisodeSource`, and the check of it has teeth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from robo_reward.schema import Episode, EpisodeReader
from robo_reward.testing import MemoryReader, check_reader, check_source, toy_episode
from robo_reward_data.store import EpisodeStore

EPISODES = [
    toy_episode(0, length=7, cameras=("front", "wrist"), size=(12, 20)),
    toy_episode(1, length=11, cameras=("top",), size=(9, 8), reach=0.5),
]


class MemorySource:
    """Episodes in memory as a source; `fingerprint` is the names, or what a test says."""

    def __init__(self, readers: Sequence[EpisodeReader], fingerprints: Sequence[str] = ()) -> None:
        self.episodes = readers
        self._fingerprints = list(fingerprints)

    @property
    def fingerprint(self) -> str:
        return self._fingerprints.pop() if self._fingerprints else "-".join(r.info.uid for r in self.episodes)


def test_episodes_in_memory_conform() -> None:
    check_source(MemorySource([MemoryReader(episode) for episode in EPISODES]))


def test_the_episode_store_conforms(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "store")
    for episode in EPISODES:
        store.write(episode)
    check_source(EpisodeStore.open(tmp_path / "store"))


class Careless(MemoryReader):
    """A reader that forgets the order it was asked for."""

    def read_frames(self, camera: str, indices: np.ndarray) -> np.ndarray:
        return super().read_frames(camera, np.sort(indices))


class Short(MemoryReader):
    """A reader whose proprioception ends before its images do."""

    def read_proprio(self) -> np.ndarray:
        return np.zeros((3, 2), np.float32)


def changed(episode: Episode, **fields: object) -> MemoryReader:
    return MemoryReader(dataclasses.replace(episode, info=dataclasses.replace(episode.info, **fields)))


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (Careless(EPISODES[0]), "one frame read twice differs"),
        (changed(EPISODES[0], uid=""), "empty uid"),
        (changed(EPISODES[0], stamp_ns=np.zeros(7, np.int64)), "stamps do not increase"),
        (changed(EPISODES[0], image_sizes={"front": (8, 8), "wrist": (12, 20)}), "promised"),
        (Short(EPISODES[0]), "proprio does not cover the episode"),
    ],
    ids=["order", "uid", "stamps", "sizes", "proprio"],
)
def test_a_reader_that_breaks_the_contract_is_found(reader: EpisodeReader, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_reader(reader)


def test_a_source_that_breaks_the_contract_is_found() -> None:
    first, second = (MemoryReader(episode) for episode in EPISODES)
    with pytest.raises(AssertionError, match="two episodes have one name"):
        check_source(MemorySource([first, first]))
    with pytest.raises(AssertionError, match="two episodes have one uid"):
        check_source(MemorySource([first, changed(EPISODES[1], uid=EPISODES[0].info.uid)]))
    with pytest.raises(AssertionError, match="changes by itself"):
        check_source(MemorySource([first, second], ["c", "b", "a"]))
