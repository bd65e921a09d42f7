"""What training may see: whole episodes kept back where there are enough, segments of each where not.

The last labelled episode of a task is never kept back whole: a model that claims a task has seen it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from robo_reward.labels import label_episode
from robo_reward.schema import EpisodeInfo, EpisodeReader
from robo_reward.train.config import HoldoutConfig
from robo_reward.train.vocabulary import number_tasks

__all__ = ["Beside", "Split", "learned_before", "make_split", "seen_frames", "with_beside"]


@dataclass(frozen=True)
class Split:
    """Disjoint masks over the frames of each episode: train, calibration, test; bool[t] each."""

    train: tuple[Bool[np.ndarray, " _t"], ...]
    calibration: tuple[Bool[np.ndarray, " _t"], ...]
    test: tuple[Bool[np.ndarray, " _t"], ...]

    def to_json(self, infos: Sequence[EpisodeInfo]) -> dict[str, dict[str, list[list[int]]]]:
        """By episode uid: the frame ranges [start, end) of each part."""
        return {
            info.uid: {
                "train": _ranges(self.train[index]),
                "calibration": _ranges(self.calibration[index]),
                "test": _ranges(self.test[index]),
            }
            for index, info in enumerate(infos)
        }


@dataclass(frozen=True)
class Beside:
    """Episodes practised beside those that a run is about.

    what         for people: "episodes of older tasks"
    share        of the windows, drawn from them
    fingerprint  which they are
    train        the frames of each that training may see, bool[t]; None: all
    copies       they are made of the run's own episodes, and are no further ones
    """

    what: str
    readers: Sequence[EpisodeReader]
    share: float
    fingerprint: str
    train: Sequence[Bool[np.ndarray, " _t"]] | None = None
    copies: bool = False


def make_split(infos: Sequence[EpisodeInfo], config: HoldoutConfig, seed: int) -> Split:
    """Draw the split, the same for the same seed."""
    rng = np.random.default_rng([seed, 0x5B117])
    tasks = set(number_tasks([info for info in infos if label_episode(info) is not None]))
    if len(infos) >= config.episodes and len(infos) > len(tasks):
        return _by_episode(infos, config, rng)
    return _by_segment(infos, config, rng)


def seen_frames(known: Mapping[str, Any], info: EpisodeInfo) -> Bool[np.ndarray, " t"]:
    """Frames of an episode that a model was trained or calibrated on, by the split in its checkpoint.

    A recording keeps its uid at any frame rate. Where its frames are not those of the split, which cover it
    from end to end, all of it counts as seen once any of it was.
    """
    seen = np.zeros(info.length, dtype=np.bool_)
    parts: Mapping[str, Any] = known.get(info.uid, {})
    for part in ("train", "calibration"):
        for start, end in parts.get(part, []):
            seen[start:end] = True
    ends = [end for ranges in parts.values() for _, end in ranges]
    if ends and max(ends) != info.length:
        seen[:] = bool(parts.get("train") or parts.get("calibration"))
    return seen


def learned_before(split: Split, infos: Sequence[EpisodeInfo], known: Mapping[str, Any]) -> Split:
    """The split with everything for training that the model, which goes on learning, has learned from before.

    What it says of those frames speaks of no new ones, whatever else is held out.
    """
    seen = [seen_frames(known, info) for info in infos]
    return Split(
        train=tuple(mask | old for mask, old in zip(split.train, seen, strict=True)),
        calibration=tuple(mask & ~old for mask, old in zip(split.calibration, seen, strict=True)),
        test=tuple(mask & ~old for mask, old in zip(split.test, seen, strict=True)),
    )


def with_beside(split: Split, beside: Sequence[Beside]) -> Split:
    """The split with more episodes at its end, none of whose frames are kept for judging."""
    seen = tuple(
        np.ones(reader.info.length, np.bool_) if group.train is None else group.train[index]
        for group in beside
        for index, reader in enumerate(group.readers)
    )
    nothing = tuple(np.zeros(len(mask), np.bool_) for mask in seen)
    return Split(split.train + seen, split.calibration + nothing, split.test + nothing)


def _by_episode(infos: Sequence[EpisodeInfo], config: HoldoutConfig, rng: np.random.Generator) -> Split:
    order = rng.permutation(len(infos))
    labelled = np.array([label_episode(info) is not None for info in infos])
    parts = np.zeros(len(infos), dtype=np.int64)
    marked, others = order[labelled[order]], order[~labelled[order]]
    # Each kind to its share: a few labelled ones among many others would else be held out by luck alone.
    for kind, spare, least in ((marked, _spare(infos, marked), 1), (others, others, 0)):
        rest = len(spare)
        test = min(max(least, round(config.test * len(kind))), rest) if config.test > 0 else 0
        rest -= test
        calibration = (
            min(max(least, round(config.calibration * len(kind))), rest) if config.calibration > 0 else 0
        )
        parts[spare[:test]] = 2
        parts[spare[test : test + calibration]] = 1
    masks = [tuple(np.full(i.length, parts[n] == p) for n, i in enumerate(infos)) for p in range(3)]
    return Split(train=masks[0], calibration=masks[1], test=masks[2])


def _spare(infos: Sequence[EpisodeInfo], order: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """These episodes in their order, but for the last one of each task."""
    tasks = number_tasks([infos[index] for index in order])
    last = {task: place for place, task in enumerate(tasks)}
    return np.delete(order, list(last.values()))


def _by_segment(infos: Sequence[EpisodeInfo], config: HoldoutConfig, rng: np.random.Generator) -> Split:
    train, calibration, test = [], [], []
    for info in infos:
        part = np.zeros(info.length, dtype=np.int64)
        wanted = [(1, config.calibration), (2, config.test)]
        blocks = [label for label, share in wanted if share > 0 for _ in range(config.segments)]
        order = rng.permutation(len(blocks))
        edges = np.linspace(0, info.length, len(blocks) + 1).astype(int)
        shares = dict(wanted)
        for place, which in enumerate(order):
            label = blocks[which]
            size = max(1, round(shares[label] * info.length / config.segments))
            low, high = edges[place], edges[place + 1] - size
            # The first frame (the anchor) and the last (what success looks like) stay with training.
            start = int(rng.integers(max(low, 1), max(min(high, info.length - 1 - size), low + 1) + 1))
            part[start : start + size] = label
        part[[0, -1]] = 0
        train.append(part == 0)
        calibration.append(part == 1)
        test.append(part == 2)
    return Split(train=tuple(train), calibration=tuple(calibration), test=tuple(test))


def _ranges(mask: Bool[np.ndarray, " t"]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [[int(start), int(end)] for start, end in edges.reshape(-1, 2)]
