"""Other orders of the same work: composed pictures against the same scene painted in that order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from robo_reward.errors import ConfigError
from robo_reward.labels import label_episode, label_success
from robo_reward.schema import Episode, EpisodeInfo, Outcome
from robo_reward.train.config import ReorderConfig
from robo_reward.train.reorder import reordered

SIZE = (48, 64)
VIEWS = ("stand", "hand")
LONG = 20  # frames of a piece of work
PIECES = 3
COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))


def painted(order: tuple[int, ...]) -> np.ndarray:
    """Things that vanish from a table one after the other, each under a hand that comes and goes."""
    frames = [scene(()) for _ in range(2)]
    for at, piece in enumerate(order):
        for step in range(LONG):
            frame = scene(order[: at + (step >= LONG // 2)])
            if 6 <= step < 14:
                left = 8 + 18 * piece
                frame[:30, left : left + 10] = 0  # the hand, as dark as anything
            frames.append(frame)
    return np.stack([*frames, *(scene(order) for _ in range(6))])


def scene(done: tuple[int, ...]) -> np.ndarray:
    frame = np.full((*SIZE, 3), 120, dtype=np.uint8)
    for piece, color in enumerate(COLORS):
        if piece not in done:
            frame[20:28, 9 + 18 * piece : 17 + 18 * piece] = color
    return frame


class Reader:
    """Three pieces of work of two stages, seen by a camera on a stand and one on the hand."""

    def __init__(self) -> None:
        still = painted((0, 1, 2))
        rng = np.random.default_rng(0)
        moved = rng.integers(0, 255, still.shape).astype(np.uint8)
        length = len(still)
        self.episode = Episode(
            EpisodeInfo(
                name="one",
                uid="0" * 32,
                cameras=VIEWS,
                image_sizes={"stand": SIZE, "hand": SIZE},
                stamp_ns=np.arange(length, dtype=np.int64) * 100_000_000,
                instruction="clear the table",
                stage_names=tuple("abcdef"),
                boundaries=np.array([2, 10, 22, 32, 42, 50, 62], dtype=np.int64),
                success=np.arange(length) >= 62,
                outcome=Outcome.SUCCESS,
            ),
            {"stand": still, "hand": moved},
            proprio=np.arange(length, dtype=np.float32)[:, None],
        )
        self.info = self.episode.info

    def read_frames(self, camera: str, indices: np.ndarray) -> np.ndarray:
        return self.episode.frames[camera][indices]

    def read_proprio(self) -> np.ndarray | None:
        return self.episode.proprio

    def read_actions(self) -> np.ndarray | None:
        return None


def everything(reader: Reader) -> list[np.ndarray]:
    return [np.ones(reader.info.length, dtype=np.bool_)]


def test_composed_pictures_are_those_of_work_done_in_that_order() -> None:
    reader = Reader()
    group = reordered([reader], everything(reader), ReorderConfig(stages=2, orders=6), VIEWS, SIZE, seed=0)
    orders = set()
    for made in group.readers:
        assert list(made.info.image_sizes) == ["stand", "hand"]
        order = tuple(int(word) - 1 for word in made.info.name.split("order ")[1].split())
        orders.add(order)
        frames = np.arange(made.info.length)
        off = np.abs(made.read_frames("stand", frames).astype(int) - painted(order)).max(axis=-1) > 20
        assert off.mean() < 0.002, order  # edges of a soft mask, no thing and no hand
        source = made.source
        np.testing.assert_array_equal(made.read_frames("hand", frames), reader.episode.frames["hand"][source])
        proprio = made.read_proprio()
        assert proprio is not None
        np.testing.assert_array_equal(proprio[:, 0], source)
        np.testing.assert_array_equal(np.sort(source), frames)
    assert len(orders) > 2


def test_progress_counts_the_work_done_and_a_stage_keeps_its_length() -> None:
    reader = Reader()
    group = reordered([reader], everything(reader), ReorderConfig(stages=2, orders=4), VIEWS, SIZE, seed=1)
    made = next(r for r in group.readers if not r.info.name.endswith("1 2 3"))
    label = label_episode(made.info)
    original = label_episode(reader.info)
    assert label is not None
    assert original is not None
    assert made.info.uid != reader.info.uid
    progress = (label.stage + label.tau) / 6
    assert (np.diff(progress) >= 0).all()
    assert progress[0] == 0
    assert progress[-1] == 1
    np.testing.assert_array_equal(label.stage % 2, original.stage[made.source] % 2)  # reaching stays reaching
    np.testing.assert_array_equal(label.tau, original.tau[made.source])
    success = made.info.success
    assert success is not None
    np.testing.assert_array_equal(success, np.arange(made.info.length) >= 62)


def test_work_whose_last_stage_ends_the_recording_is_done_at_its_end() -> None:
    """Nothing is left after the last piece to show it done: composed episodes were never done at all."""
    reader = Reader()
    bounds = reader.info.boundaries
    assert bounds is not None
    reader.info = replace(reader.info, boundaries=np.append(bounds[:-1], reader.info.length))
    group = reordered([reader], everything(reader), ReorderConfig(stages=2, orders=3), VIEWS, SIZE, seed=1)
    for made in group.readers:
        success, known = label_success(made.info)
        assert (success[-1], known.all(), success[:-1].any()) == (True, True, False)


def test_nothing_of_held_out_frames_is_practised_or_painted() -> None:
    reader = Reader()
    seen = np.ones(reader.info.length, dtype=np.bool_)
    seen[24:34] = False
    reader.episode.frames["stand"][24:34] = 255
    config = ReorderConfig(stages=2, orders=4, cameras=("stand",))
    group = reordered([reader], [seen], config, VIEWS, SIZE, seed=0)
    assert group.train is not None
    for made, mask in zip(group.readers, group.train, strict=True):
        np.testing.assert_array_equal(mask, seen[made.source])
        assert made.read_frames("stand", np.flatnonzero(mask)).max() < 250


def test_what_cannot_be_reordered_is_refused() -> None:
    reader = Reader()
    seen = everything(reader)
    with pytest.raises(ConfigError, match="6 stages, which are not two or more pieces of 4"):
        reordered([reader], seen, ReorderConfig(stages=4), VIEWS, SIZE, seed=0)
    with pytest.raises(ConfigError, match=r"no camera 'top', but stand, hand"):
        reordered([reader], seen, ReorderConfig(stages=2, cameras=("top",)), VIEWS, SIZE, seed=0)
    reader.episode.frames["stand"][:] = reader.episode.frames["hand"]
    with pytest.raises(ConfigError, match=r"no camera of one seems to stand still .*stand: \d+%"):
        reordered([reader], seen, ReorderConfig(stages=2), VIEWS, SIZE, seed=0)
    reader.info = replace(reader.info, boundaries=None)
    with pytest.raises(ConfigError, match="annotate one first"):
        reordered([reader], seen, ReorderConfig(stages=2), VIEWS, SIZE, seed=0)
    with pytest.raises(ConfigError, match=r"reorder\.share=1\.0"):
        ReorderConfig(share=1.0)
