"""A few marked demonstrations of a task, and the boundaries of all others from them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from robo_reward.errors import DataError
from robo_reward.landmarks import Landmarks
from robo_reward.schema import EpisodeReader
from robo_reward.stages import boundary_matches
from robo_reward_data._files import read_json, replace_file
from robo_reward_data.annotate.auto import aligned, check_cameras
from robo_reward_data.annotate.features import Moments, looked_at, stage_features
from robo_reward_data.annotate.journal import Marks
from robo_reward_data.store import EpisodeStore

__all__ = ["SpreadMarks", "note_spread", "spread_before", "spread_marks"]


@dataclass(frozen=True, slots=True)
class SpreadMarks:
    """Boundaries of demonstrations that had none.

    boundaries  i64[k+1] for each of them; None for one that is too short for so many
    agreement   share of the marked boundaries that the other marked demonstrations put within 5 % of the
                episode of where they are; NaN where only one is marked, or nothing had to be found
    """

    boundaries: tuple[Int64[np.ndarray, " n"] | None, ...]
    agreement: float


def spread_marks(
    marked: Sequence[EpisodeReader],
    others: Sequence[EpisodeReader],
    most_frames: int = 120,
    model: Any = None,
    proprio: bool = True,
) -> SpreadMarks:
    """The boundaries of `others`, from those of `marked`.

    A boundary that is the first frame of every marked demonstration, or the end of every one, is so in the
    others.

    Args:
        marked: Demonstrations with boundaries, as many in each.
        others: Demonstrations of the same task and cameras, from start to success.
        most_frames: Longer episodes are thinned evenly to at most so many.
        model: A loaded reward model whose embedding is looked at too, or None.
        proprio: Whether to look at proprioception where every episode has it.

    Raises:
        DataError: marks of different numbers, or other cameras.
    """
    known = [_marks(reader) for reader in marked]
    counts = {len(marks): r.info.name for r, marks in zip(marked, known, strict=True)}
    if len(counts) > 1:
        (few, first), (many, second), *_ = sorted(counts.items())
        raise DataError(
            f"'{first}' has {few - 1} stages, '{second}' {many - 1}: mark them alike, or give them different "
            "instructions"
        )
    ends = np.array([[0, reader.info.length] for reader in marked])
    table = np.array(known)
    starts, stops = (table == ends[:, :1]).all(axis=0), (table == ends[:, 1:]).all(axis=0)
    looked = ~(starts | stops)

    def holds(reader: EpisodeReader) -> bool:
        """Whether each boundary can have a frame of its own there, and each stage one."""
        return (
            looked_at(reader.info, most_frames) >= looked.sum() and reader.info.length >= table.shape[1] - 1
        )

    # A recording that was stopped at once keeps no other one from being marked.
    held = [holds(reader) for reader in others]
    followers = list(itertools.compress(others, held))
    readers = [*marked, *followers]
    check_cameras(readers)
    if not looked.any():
        plain = [np.where(stops, reader.info.length, 0).astype(np.int64) for reader in followers]
        return SpreadMarks(aligned(held, plain), float("nan"))
    moments = stage_features(readers, most_frames, model, proprio)
    own = [_thinned(marks[looked], m) for marks, m in zip(known, moments[: len(marked)], strict=True)]
    features = [m.features for m in moments]

    def found(landmarks: Landmarks, index: int) -> Int64[np.ndarray, " n"]:
        length = readers[index].info.length
        boundaries = np.where(stops, length, 0)
        boundaries[looked] = moments[index].frames[landmarks.find(features[index])]
        return _in_order(boundaries, length)

    everything = Landmarks.of(features[: len(marked)], own)
    boundaries = aligned(held, [found(everything, index) for index in range(len(marked), len(readers))])
    hits = total = 0
    for index in range(len(marked) if len(marked) > 1 else 0):
        if not holds(readers[index]):
            continue  # marked beyond where its work ends: nothing can be told of it
        rest = [i for i in range(len(marked)) if i != index]
        told = found(Landmarks.of([features[i] for i in rest], [own[i] for i in rest]), index)
        length = readers[index].info.length
        # Ends of an episode that are no landmarks are no evidence: only what was looked for is compared.
        bounds = [np.concatenate([[-1], b[looked], [length + 1]]) for b in (told, known[index])]
        hits += boundary_matches(bounds[0], bounds[1], length)
        total += int(looked.sum())
    return SpreadMarks(boundaries, hits / total if total else float("nan"))


def note_spread(store: EpisodeStore, marks: Mapping[str, Marks]) -> None:
    """Note which marks are no person's; before they are written, so that none of them ever passes for one."""
    path = _notes_path(store)
    path.parent.mkdir(exist_ok=True)
    said = _notes(store) | marks
    replace_file(path, json.dumps({name: asdict(noted) for name, noted in said.items()}))


def spread_before(store: EpisodeStore) -> set[str]:
    """The episodes whose stages are still as they were spread: what a person changed is a person's."""
    notes = _notes(store)
    noted = [episode.info for episode in store.episodes if episode.name in notes]
    return {
        info.name
        for info in noted
        if info.boundaries is not None
        and notes[info.name] == Marks(info.stage_names, tuple(info.boundaries.tolist()))
    }


def _notes_path(store: EpisodeStore) -> Path:
    return store.path / ".annotate" / "spread.json"


def _notes(store: EpisodeStore) -> dict[str, Marks]:
    path = _notes_path(store)
    found = read_json(path, "notes on marks that were spread") if path.exists() else {}
    return {str(name): Marks.of(noted) for name, noted in found.items()}


def _marks(reader: EpisodeReader) -> Int64[np.ndarray, " n"]:
    marks = reader.info.boundaries
    if marks is None:
        raise DataError(f"'{reader.info.name}' has no stage boundaries")
    return marks


def _thinned(marks: Int64[np.ndarray, " n"], moments: Moments) -> Int64[np.ndarray, " n"]:
    """Frames of an episode as places among those that are looked at."""
    return np.minimum(np.searchsorted(moments.frames, marks), len(moments.frames) - 1).astype(np.int64)


def _in_order(boundaries: Int64[np.ndarray, " n"], length: int) -> Int64[np.ndarray, " n"]:
    """Strictly in order, within the episode: boundaries next to an end may have met it."""
    kept = boundaries.astype(np.int64)
    for index in range(1, len(kept)):
        kept[index] = max(kept[index], kept[index - 1] + 1)
    for index in range(len(kept) - 1, -1, -1):
        kept[index] = min(kept[index], length - (len(kept) - 1 - index))
    return kept
