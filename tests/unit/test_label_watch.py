"""Watching long episodes in small pieces says what looking at them whole says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import Checkpoint
from robo_reward.errors import DataError
from robo_reward.fusion import PERSPECTIVES, FusionParameters
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import encode_episode, estimate_episode
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward_data.label.watch import WatchedEpisode, watch

TASKS = (
    TaskConfig(("fill the bar",), ("red", "green"), (0.3, 0.7)),
    TaskConfig(("empty the bar",), ("a", "b", "c"), (0.2, 0.3, 0.5)),
)

CALIBRATION = Calibration(fusion=FusionParameters(active=PERSPECTIVES))  # which has a memory of its own


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [4, 8, 8, 8],
            "bottleneck": 8,
        },
        tasks=TASKS,
        cameras=("front", "wrist"),
        image_size=(32, 32),
        period_s=0.1,
        width=16,
        heads=2,
        window=3,
        proprio_dim=2,
    )
    return Checkpoint(ProgressModel(config).eval().requires_grad_(False), CALIBRATION)


def offered(readers: list[MemoryReader]) -> Iterator[WatchedEpisode]:
    for key, reader in enumerate(readers):
        yield WatchedEpisode(
            key=key,
            frames={
                c: (lambda r=reader, c=c: iter(r.read_frames(c, np.arange(r.info.length))))
                for c in reader.info.cameras
            },
            stamp_ns=reader.info.stamp_ns,
            instruction=reader.info.instruction,
            proprio=reader.read_proprio(),
        )


@pytest.mark.parametrize(("lanes", "chunk"), [(1, 64), (2, 1), (3, 5)])
def test_watching_in_pieces_is_looking_at_the_whole(checkpoint: Checkpoint, lanes: int, chunk: int) -> None:
    lengths = (1, 23, 9, 17)
    episodes = [
        toy_episode(i, length, instruction=TASKS[i % 2].instructions[0]) for i, length in enumerate(lengths)
    ]
    front = episodes[1].frames["front"]
    front[5:20] = front[5]  # stuck from its eighth repeat on, while the other camera moves
    readers = [MemoryReader(episode) for episode in episodes]
    seen: list[int] = []
    watched = {w.key: w for w in watch(checkpoint, offered(readers), lanes, chunk, seen.append)}
    assert sum(seen) == sum(lengths)
    assert sorted(watched) == [0, 1, 2, 3]
    for key, reader in enumerate(readers):
        encoded = encode_episode(checkpoint.model, reader)
        assert (~encoded.used()).sum() == (7 if key == 1 else 0)
        whole = estimate_episode(checkpoint.model, encoded, CALIBRATION)
        for name in ("progress", "std", "success_prob"):
            np.testing.assert_allclose(getattr(watched[key], name), getattr(whole, name), atol=2e-6)
        np.testing.assert_array_equal(watched[key].stage, whole.stage)
        assert watched[key].valid.all()


def test_memory_does_not_grow_with_the_episode(checkpoint: Checkpoint) -> None:
    """Of 3000 frames, no more than the trunk's reach is kept: images are asked for as they are looked at."""
    asked: list[int] = []

    def images() -> Iterator[np.ndarray]:
        for index in range(3000):
            asked.append(index)
            yield np.full((16, 16, 3), index % 256, np.uint8)

    ahead: list[int] = []
    episode = WatchedEpisode(0, {"front": images}, np.arange(3000) * 100_000_000, TASKS[0].instructions[0])
    done = 0

    def advance(frames: int) -> None:
        nonlocal done
        done += frames
        ahead.append(len(asked) - done)

    (found,) = watch(checkpoint, iter([episode]), chunk=50, advance=advance)
    assert len(found.progress) == 3000
    assert max(ahead) == 0


def test_a_camera_that_ends_early_is_told(checkpoint: Checkpoint) -> None:
    short = [np.zeros((16, 16, 3), np.uint8)] * 3
    episode = WatchedEpisode(
        7, {"front": lambda: iter(short)}, np.arange(5) * 100_000_000, TASKS[0].instructions[0]
    )
    with pytest.raises(DataError, match="episode 7: camera 'front' ends before the episode does"):
        list(watch(checkpoint, iter([episode])))
