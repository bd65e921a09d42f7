"""Random access equals NumPy's, whatever the indices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robo_reward.schema import Episode, EpisodeInfo
from robo_reward_data.store import EpisodeStore, StoredEpisode

LENGTH = 230  # three shards, the last one short


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredEpisode, np.ndarray]:
    path: Path = tmp_path_factory.mktemp("store") / "s"
    frames = np.random.default_rng(0).integers(0, 256, (LENGTH, 6, 5, 3), np.uint8)
    frames[150:] = 0
    info = EpisodeInfo("e", "u", ("c",), {"c": (6, 5)}, np.arange(LENGTH), "do")
    return EpisodeStore.create(path).write(Episode(info, {"c": frames})), frames


@given(indices=st.lists(st.integers(0, LENGTH - 1), max_size=40))
def test_any_indices_any_order(pair: tuple[StoredEpisode, np.ndarray], indices: list[int]) -> None:
    stored, frames = pair
    read = stored.read_frames("c", np.array(indices, np.int64))
    np.testing.assert_array_equal(read, frames[np.array(indices, np.int64)])
