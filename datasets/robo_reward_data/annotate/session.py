"""What the page does to the store: one session, however many tabs look at it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int64

from robo_reward.errors import DataError, RoboRewardError
from robo_reward.schema import EpisodeInfo, EpisodeReader, Outcome
from robo_reward_data._validate import check_info
from robo_reward_data.annotate.auto import FoundStages
from robo_reward_data.annotate.features import told_length
from robo_reward_data.annotate.journal import Entry, Journal, Marks
from robo_reward_data.annotate.spread import spread_marks
from robo_reward_data.store import EpisodeStore, StoredEpisode

__all__ = ["ConflictError", "Finder", "Session", "check_marks", "default_names"]

type Finder = Callable[[Sequence[EpisodeReader]], FoundStages]

_STRIP_PIXELS = 6000  # height of a strip of frames: JPEG ends at 65535, and decoding should not stutter
_STRIP_FRAMES = 24
_QUALITY = 90  # of JPEG: at 84 pixels, artifacts are larger than the contact one looks for


class ConflictError(RoboRewardError):
    """A change that was made without knowing of a later one; `state` is what the episode says now."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        """Carry the state that won."""
        super().__init__("the episode was changed elsewhere in the meantime")
        self.state = state


class Session:
    """Marks of a store's episodes: in the journal at once, in the store as soon as they are an annotation."""

    def __init__(
        self, store: EpisodeStore, model: Any = None, names: Sequence[str] = (), finder: Finder | None = None
    ) -> None:
        """Open the journal, and bring into the store what a killed session did not get there.

        Args:
            store: Where the episodes are.
            model: A loaded reward model whose progress is shown, or None.
            names: Names to offer for the stages.
            finder: Finds the stages of demonstrations of a task of which none is marked, or None.
        """
        self._store = store
        self._model = model
        self._names = tuple(names)
        self._finder = finder
        self._lock = threading.RLock()
        self._journal = Journal(store.path / ".annotate")
        self._readers = {episode.name: episode for episode in store.episodes}
        self._revisions = dict.fromkeys(self._readers, 0)
        self._curves: dict[str, dict[str, Any]] = {}
        self._curve_lock = threading.Lock()
        self._drafts: dict[str, Marks] = {}
        self.recovered, self.refused = self._recover()

    @property
    def path(self) -> Path:
        """Folder of the store."""
        return self._store.path

    def overview(self) -> dict[str, Any]:
        """Everything but images: the store and every episode's state."""
        with self._lock:
            self._look_again()
            return {
                "store": self._store.path.name,
                "model": self._model is not None,
                "names": list(self._names),
                "finds": self._finder is not None,
                "episodes": [self._state(name) for name in sorted(self._readers)],
            }

    def state(self, name: str) -> dict[str, Any]:
        """One episode: what it is, its marks, and the revision that the next change must name.

        Raises:
            DataError: there is no such episode.
        """
        with self._lock:
            self._look_again(name)
            return self._state(name)

    def _state(self, name: str) -> dict[str, Any]:
        with self._lock:
            info = self._reader(name).info
            marks = self._marks(name)
            step = strip_frames(max(size[0] for size in info.image_sizes.values()))
            seconds = (info.stamp_ns - info.stamp_ns[0]) / 1e9
            return {
                "name": name,
                "instruction": info.instruction,
                "kind": info.kind,
                "outcome": str(info.outcome),
                "length": info.length,
                "seconds": round(float(seconds[-1]), 3),
                "cameras": [{"name": c, "size": list(info.image_sizes[c])} for c in info.cameras],
                "strip": step,
                "locked": info.truth is not None,
                "revision": self._revisions[name],
                **asdict(marks),
            }

    def save(self, name: str, revision: int, marks: Marks) -> dict[str, Any]:
        """Take the marks of an episode; when this returns they survive anything. Returns the new state.

        Raises:
            ConflictError: the episode has been changed since `revision`.
            DataError: no such episode, one that knows its truth, or marks that do not fit it.
        """
        with self._lock:
            self._look_again(name)
            info = self._reader(name).info
            if info.truth is not None:
                raise DataError(f"episode '{name}' knows its stage at every frame: annotate a copy (out=...)")
            if revision != self._revisions[name]:
                raise ConflictError(self._state(name))
            _check(info, marks, self._marks(name))
            check_marks(info, marks)
            self._journal.append(Entry(name, marks, _stored(info)))
            self._apply(name, marks)
            return self._state(name)

    def spread(self, name: str) -> dict[str, Any]:
        """Mark what is unmarked of the task of `name` from what is marked; see `spread_marks`.

        Where nothing is marked, the session's finder says where stages end, if it has one. Episodes that
        failed, know their truth or have a mark of their own stay as they are.

        Returns:
            `episodes`, new states of those that were marked, `agreement` as of `SpreadMarks`, None where it
            is unknown, and `left_out`, those that are too short for so many stages, with their lengths.

        Raises:
            DataError: nothing of that task is marked and there is no finder, or all of it is, or what is not
                is too short, or the marks do not fit together.
        """
        with self._lock:
            self._look_again()
            instruction = self._reader(name).info.instruction
            same = [
                reader
                for reader in self._readers.values()
                if reader.info.instruction == instruction
                and reader.info.truth is None
                and reader.info.outcome is not Outcome.FAILURE
            ]
            marked = [reader for reader in same if reader.info.boundaries is not None]
            others = [reader for reader in same if not self._marks(reader.name).boundaries]
            revisions = dict(self._revisions)
        if not others or not (marked or self._finder):
            raise DataError(
                f"'{instruction}' has {len(marked)} marked and {len(others)} unmarked demonstrations: "
                "one or more of each are needed"
            )
        found, agreement = self._suggested(marked, others)
        short = [told_length(reader.info) for reader in others if reader.name not in found]
        if not found:
            raise DataError(
                f"every demonstration of '{instruction}' that is not marked is too short for its stages: "
                f"{', '.join(short)}"
            )
        with self._lock:
            self._look_again()
            # Whoever has marked one in the meantime knew better.
            fresh = [other for other in found if self._revisions[other] == revisions[other]]
            for other in fresh:
                self._journal.append(Entry(other, found[other], _stored(self._reader(other).info)))
                self._apply(other, found[other])
            return {
                "episodes": [self._state(other) for other in fresh],
                "agreement": round(agreement, 3) if np.isfinite(agreement) else None,
                "left_out": short,
            }

    def _suggested(
        self, marked: Sequence[StoredEpisode], others: Sequence[StoredEpisode]
    ) -> tuple[dict[str, Marks], float]:
        """Marks of those of `others` that can hold them, by name, and the agreement as of `SpreadMarks`."""
        if marked:
            told = spread_marks(marked, others, model=self._model)
            names, boundaries, agreement = _stored(marked[0].info).names, told.boundaries, told.agreement
        else:
            assert self._finder is not None
            boundaries, agreement = self._finder(others).boundaries, float("nan")
            count = next((len(bounds) - 1 for bounds in boundaries if bounds is not None), 0)
            names = default_names(count, self._names)
        found: dict[str, Marks] = {}
        for reader, bounds in zip(others, boundaries, strict=True):
            if bounds is not None:
                found[reader.name] = Marks(names, tuple(bounds.tolist()))
                check_marks(reader.info, found[reader.name])
        return found, agreement

    def strip(self, name: str, camera: str, start: int) -> bytes:
        """A JPEG of consecutive frames below each other, from `start` on.

        Raises:
            DataError: no such episode, camera or frame.
        """
        reader = self._reader(name)
        if camera not in reader.info.cameras or not 0 <= start < reader.info.length:
            raise DataError(f"episode '{name}' has no frame {start} of camera '{camera}'")
        step = strip_frames(max(size[0] for size in reader.info.image_sizes.values()))
        frames = reader.read_frames(camera, np.arange(start, min(start + step, reader.info.length)))
        tall = frames.reshape(-1, frames.shape[2], 3)
        done, data = cv2.imencode(".jpg", tall[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))
        if not done:
            raise DataError(f"episode '{name}', camera '{camera}': frames {start}.. cannot be encoded")
        return data.tobytes()

    def curve(self, name: str) -> dict[str, Any]:
        """What the model says of an episode: progress by frame, None where invalid, or why there is none."""
        reader = self._reader(name)
        # One at a time: several episodes at once would only make each of them later.
        with self._curve_lock:
            if name not in self._curves:
                self._curves[name] = _curve(self._model, reader)
            return self._curves[name]

    def close(self) -> None:
        """Free the journal."""
        self._journal.close()

    def _reader(self, name: str) -> StoredEpisode:
        if name not in self._readers:
            raise DataError(f"no episode '{name}' in {self._store.path}")
        return self._readers[name]

    def _marks(self, name: str) -> Marks:
        """What an episode is marked with, be it the beginning of an annotation only."""
        return self._drafts.get(name) or _stored(self._reader(name).info)

    def _look_again(self, name: str | None = None) -> None:
        """Take every episode again (or the one named) that another process changed, as a later revision.

        `mode=spread`, `auto` and `read` write into the store while a page is open: what they wrote must be
        seen before anything is put over it.
        """
        now = {episode.name: episode for episode in self._store.episodes}
        for gone in self._readers.keys() - now.keys():
            del self._readers[gone]
            self._drafts.pop(gone, None)
        for other in now if name is None else now.keys() & {name}:
            old, new = self._readers.get(other), now[other]
            if new is old:
                continue
            stored = _stored(new.info)
            overtaken = old is not None and stored != _whole(self._marks(other))
            if old is None or overtaken or old.attributes != new.attributes:
                self._revisions[other] = self._revisions.get(other, -1) + 1
            if overtaken:
                self._drafts.pop(other, None)
                if other in self._journal.last:
                    # Else a later session would take the mark in the journal for one that was lost.
                    self._journal.append(Entry(other, stored, stored))
            self._readers[other] = new

    def _apply(self, name: str, marks: Marks) -> None:
        """Put marks into the store; fewer than two boundaries are none to it."""
        whole = _whole(marks)
        if _stored(self._readers[name].info) != whole:
            self._readers[name] = self._store.annotate(name, whole.names, _bounds(whole))
        self._drafts[name] = marks
        self._revisions[name] += 1

    def _recover(self) -> tuple[list[str], list[str]]:
        """Apply the journal's last entries that did not reach the store; forget those that it overtook.

        Returns:
            The episodes that got their marks, and why others did not.
        """
        applied: list[str] = []
        refused: list[str] = []
        for name, entry in list(self._journal.last.items()):
            if name not in self._readers:
                continue
            stored = _stored(self._readers[name].info)
            if stored == _whole(entry.marks):
                self._drafts[name] = entry.marks
            elif stored == entry.before:
                try:
                    self._apply(name, entry.marks)
                except DataError as error:
                    self._journal.forget(name)
                    refused.append(str(error))
                else:
                    applied.append(name)
            else:
                self._journal.forget(name)
        return applied, refused


def strip_frames(height: int) -> int:
    """How many frames of this height, in pixels, are sent in one image."""
    return max(1, min(_STRIP_FRAMES, _STRIP_PIXELS // height))


def default_names(count: int, offered: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of stages that nobody named: those offered, where there are as many."""
    return tuple(offered) if len(offered) == count else tuple(f"stage_{i + 1}" for i in range(count))


def check_marks(info: EpisodeInfo, marks: Marks) -> None:
    """Refuse marks that the store would not take for this episode.

    Raises:
        DataError: saying why.
    """
    whole = _whole(marks)
    if whole != _stored(info):
        check_info(replace(info, stage_names=whole.names, boundaries=_bounds(whole)))


def _whole(marks: Marks) -> Marks:
    """What the store is told: fewer than two boundaries are none to it."""
    return marks if len(marks.boundaries) > 1 else Marks()


def _bounds(marks: Marks) -> Int64[np.ndarray, " n"] | None:
    return np.array(marks.boundaries, np.int64) if marks.boundaries else None


def _stored(info: EpisodeInfo) -> Marks:
    if info.boundaries is None:
        return Marks()
    bounds = tuple(info.boundaries.tolist())
    return Marks(info.stage_names or default_names(len(bounds) - 1), bounds)


def _check(info: EpisodeInfo, marks: Marks, before: Marks) -> None:
    who, bounds = f"episode '{info.name}'", marks.boundaries
    if any(after <= before for before, after in itertools.pairwise(bounds)):
        raise DataError(f"{who}: boundaries must increase, got {list(bounds)}")
    if bounds and (bounds[0] < 0 or bounds[-1] > info.length):
        raise DataError(f"{who}: boundaries {list(bounds)} leave its frames 0..{info.length}")
    if len(marks.names) != max(len(bounds) - 1, 0) or not all(name.strip() for name in marks.names):
        raise DataError(
            f"{who}: {len(bounds)} boundaries need a name for each stage, got {list(marks.names)}"
        )
    # Keyframe files may repeat a name: such an episode can still be worked on, one name after the other.
    if _repeated(marks) > _repeated(before):
        raise DataError(f"{who}: each stage needs a name of its own, got {list(marks.names)}: rename one")


def _repeated(marks: Marks) -> int:
    """How many stages have the name of one before them."""
    return len(marks.names) - len({name.strip() for name in marks.names})


def _curve(model: Any, reader: StoredEpisode) -> dict[str, Any]:
    if model is None:
        return {"progress": None, "reason": "no model: start with model=RUN"}
    from robo_reward.offline import encode_episode, estimate_episode

    checkpoint = model.checkpoint
    try:
        found = estimate_episode(
            checkpoint.model, encode_episode(checkpoint.model, reader), checkpoint.calibration
        )
    except RoboRewardError as error:
        return {"progress": None, "reason": str(error)}
    values = np.asarray(found.progress, np.float64).tolist()
    return {"progress": [round(v, 4) if np.isfinite(v) else None for v in values], "reason": ""}
