"""Streams of live estimates, whichever engine runs the network: NumPy and OpenCV only.

Bad input never becomes a silent guess:

    what arrives                                 what it gets
    -------------------------------------------  -----------------------------------------------------------
    irregular intervals, gaps                    valid; attention and fusion count seconds, not moments
    a stamp that is not after the last (late,    invalid: "stamp S is not after L"; the stream stays as it
    out of order, a duplicate)                   was
    no image of any camera (None: of that one)   invalid: "no camera frame"; the stream stays as it was
    some training cameras missing                valid, band wider by what their absence cost in calibration
    a camera that the model was not trained on   looked through only at moments without one that it was
    another size than in training                valid: resized
    another aspect than that of the camera's     that camera is left out, with a note; invalid where it was
    first image                                  the only one
    not uint8[h, w, 3], or empty                 invalid, with camera, dtype and shape; the stream stays as
                                                 it was
    the same image of a camera STUCK_AFTER       that camera is left out, with a note, until it moves; band
    times while another camera moves (more       as for a missing camera
    often where recordings had more: see
    `robo_reward.intake.Repeats`)
    a scene unlike calibration's                 valid, band wider in proportion, with a note
    NaN or infinity in proprioception            proprioception counts as missing
    a network output that is not finite          invalid: "the network's output is not finite"; it enters
                                                 neither the cache nor the fusion
    a bad moment of one stream of a batch        as above, for that stream; the others do not notice
    not one entry for each stream, images that   ConfigError, before anything changes
    are no mapping by camera, stamps that are
    no whole numbers, another length of
    proprioception
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from robo_reward.errors import ConfigError
from robo_reward.intake import Given, Images, Watchdog, sort_images
from robo_reward.model.config import ModelConfig
from robo_reward.readout import STRANGE, Estimates
from robo_reward.schema import ProgressEstimate

__all__ = ["Arrived", "Engine", "LiveBatch", "LiveStream", "Said"]


@dataclass(frozen=True)
class Arrived:
    """One moment of n streams, sorted.

    views     for each stream, images u8[h, w, 3] at the model's size by camera; {} where it has none
    counts    i64[n] how many cameras each stream has
    live      bool[n] where there is something to say;  fresh  bool[n] where an episode begins
    seconds   f64[n] since the episode's first moment
    body      f32[n, p] proprioception, NaN where missing; None where the model takes none
    reasons   why a stream is not live, or ""
    """

    views: Sequence[Mapping[str, np.ndarray]]
    counts: Int64[np.ndarray, " n"]
    live: Bool[np.ndarray, " n"]
    fresh: Bool[np.ndarray, " n"]
    seconds: Float64[np.ndarray, " n"]
    body: Float32[np.ndarray, "n p"] | None
    reasons: Sequence[str]


@dataclass(frozen=True)
class Said:
    """What an engine says of one moment of n streams.

    state   f32[n, d] fused embeddings;  share  f32[n, v] each view's share, in the order of `Arrived.views`
    maps    by training camera, f32[n, c, i, j], and bool[n] where it was seen; {} from an engine that was not
            asked for them
    """

    estimates: Estimates
    state: Float32[np.ndarray, "n d"]
    share: Float32[np.ndarray, "n v"]
    maps: Mapping[str, tuple[Float32[np.ndarray, "n c i j"], Bool[np.ndarray, " n"]]] = field(
        default_factory=dict
    )


@runtime_checkable
class Engine(Protocol):
    """The network of n streams and what it remembers of them."""

    @property
    def config(self) -> ModelConfig:
        """Architecture and vocabulary of its model."""
        ...

    @property
    def version(self) -> str:
        """Of its model."""
        ...

    @property
    def tasks(self) -> Sequence[int]:
        """Index of each stream's task."""
        ...

    def say(self, arrived: Arrived) -> Said:
        """Estimates of one moment; live and finite ones are remembered."""
        ...

    def forget(self, index: int) -> None:
        """Stream `index` starts anew."""
        ...

    def set_goal(self, index: int, views: Mapping[str, np.ndarray]) -> None:
        """Stream `index` has begun and is shown a picture of its goal."""
        ...


class LiveBatch:
    """n episodes at once, in step. Cameras, sizes and gaps may differ between them and over time."""

    def __init__(self, engine: Engine, map_shapes: Mapping[str, tuple[int, int, int]] | None = None) -> None:
        """Start the streams of an engine, which gives maps of these shapes by camera."""
        self._engine = engine
        streams = len(engine.tasks)
        self._maps = {
            camera: np.zeros((streams, *shape), np.float32) for camera, shape in (map_shapes or {}).items()
        }
        self._states = np.full((streams, engine.config.width), np.nan, dtype=np.float32)
        self._watchdogs = [Watchdog(engine.config.still) for _ in range(streams)]
        self._start_ns: list[int | None] = [None] * streams
        self._last_ns: list[int | None] = [None] * streams

    def __len__(self) -> int:
        """Number of streams."""
        return len(self._start_ns)

    @property
    def states(self) -> Float32[np.ndarray, "n d"]:
        """The fused embedding of each stream's last moment, NaN where it had no image.

        It depends on the images and the episode's first ones alone: a policy that reads it costs no second
        encoder pass.
        """
        return self._states.copy()

    @property
    def maps(self) -> dict[str, Float32[np.ndarray, "n c i j"]]:
        """The encoder's map of each training camera's last image in the episode, zero before there was one.

        Empty where the streams were not begun with `maps=True`.
        """
        return {camera: maps.copy() for camera, maps in self._maps.items()}

    def reset(self, index: int) -> None:
        """Forget stream `index`: its next frame starts a new episode."""
        for maps in self._maps.values():
            maps[index] = 0.0
        self._engine.forget(index)
        self._watchdogs[index] = Watchdog(self._engine.config.still)
        self._start_ns[index] = self._last_ns[index] = None

    def set_goal(self, index: int, images: Images) -> None:
        """Show stream `index` a picture of its goal, after its first frame (it is seen beside that).

        Raises:
            ConfigError: images that cannot be used, or an episode that has not begun.
        """
        if self._start_ns[index] is None:
            raise ConfigError("a goal is seen beside the episode's first images: push these first")
        _check_images("the goal's images", images)
        given = sort_images(self._trained(images), self._engine.config.image_size, None)
        if given.reason:
            raise ConfigError(f"goal picture: {given.reason}")
        self._engine.set_goal(index, given.views)

    def push(
        self,
        images: Sequence[Images],
        stamps_ns: Sequence[int],
        proprio: Sequence[Float32[np.ndarray, " p"] | None] | None = None,
    ) -> list[ProgressEstimate]:
        """One moment of every stream; an empty mapping for a stream that saw nothing.

        Raises:
            ConfigError: not one entry for each stream, images that are no mapping by camera, stamps that are
                no whole numbers, or proprioception of another length than in training.
        """
        if len(images) != len(self) or len(stamps_ns) != len(self):
            raise ConfigError(f"{len(self)} streams, but {len(images)} images and {len(stamps_ns)} stamps")
        for index, each in enumerate(images):
            _check_images(f"the images of stream {index}", each)
        body = self._proprio(proprio)  # refused before anything of the stream changes
        _check_stamps(stamps_ns)
        late = [self._stamp_reason(i, stamp) for i, stamp in enumerate(stamps_ns)]
        size = self._engine.config.image_size
        given = [
            sort_images(self._trained(each), size, None if reason else dog)
            for each, dog, reason in zip(images, self._watchdogs, late, strict=True)
        ]
        reasons = [g.reason or reason for g, reason in zip(given, late, strict=True)]
        self._states.fill(np.nan)
        if all(reasons):
            return [self._invalid(reason, stamp) for reason, stamp in zip(reasons, stamps_ns, strict=True)]
        arrived = self._arrived(given, reasons, stamps_ns, body)
        said = self._engine.say(arrived)
        self._end(given, said, stamps_ns, arrived.live)
        return [
            self._result(said, i, arrived.views[i], int(stamps_ns[i]), given[i].note)
            for i in range(len(self))
        ]

    def _trained(self, images: Images) -> Images:
        """Those of a moment's images that are looked through: see `ModelConfig.trained`."""
        there = [name for name, image in images.items() if image is not None]
        return {name: images[name] for name in self._engine.config.trained(there)}

    def _stamp_reason(self, index: int, stamp: int) -> str:
        last = self._last_ns[index]
        return f"stamp {stamp} is not after {last}" if last is not None and stamp <= last else ""

    def _arrived(
        self,
        given: Sequence[Given],
        reasons: Sequence[str],
        stamps_ns: Sequence[int],
        body: Float32[np.ndarray, "n p"] | None,
    ) -> Arrived:
        live = np.array([not reason for reason in reasons])
        begun = np.array([start is not None for start in self._start_ns])
        views = [g.views if not reason else {} for g, reason in zip(given, reasons, strict=True)]
        return Arrived(
            views=views,
            counts=np.array([len(v) for v in views], dtype=np.int64),
            live=live,
            fresh=live & ~begun,
            seconds=np.array(
                [(t - (t if s is None else s)) * 1e-9 for t, s in zip(stamps_ns, self._start_ns, strict=True)]
            ),
            body=body,
            reasons=reasons,
        )

    def _end(
        self, given: Sequence[Given], said: Said, stamps_ns: Sequence[int], live: Bool[np.ndarray, " n"]
    ) -> None:
        """Streams with a good moment go on; one whose very first was none has not begun."""
        for index in np.flatnonzero(live):
            if said.estimates.valid[index]:
                self._states[index] = said.state[index]
                for camera, (seen, there) in said.maps.items():
                    if there[index]:
                        self._maps[camera][index] = seen[index]
                self._watchdogs[index].keep(given[index].seen, given[index].sizes)
                self._last_ns[index] = int(stamps_ns[index])
                if self._start_ns[index] is None:
                    self._start_ns[index] = int(stamps_ns[index])
            elif self._start_ns[index] is None:
                self._engine.forget(int(index))

    def _proprio(
        self, proprio: Sequence[Float32[np.ndarray, " p"] | None] | None
    ) -> Float32[np.ndarray, "n p"] | None:
        size = self._engine.config.proprio_dim
        if proprio is not None and len(proprio) != len(self):
            raise ConfigError(f"{len(self)} streams, but {len(proprio)} entries of proprioception")
        if not size or proprio is None:
            return None
        rows = [
            np.full(size, np.nan, np.float32) if p is None else np.asarray(p, np.float32) for p in proprio
        ]
        if wrong := next((row.shape for row in rows if row.shape != (size,)), None):
            raise ConfigError(f"proprioception has shape {wrong}, the model was trained on ({size},)")
        return np.stack(rows)

    def _result(
        self, said: Said, index: int, views: Mapping[str, np.ndarray], stamp: int, note: str
    ) -> ProgressEstimate:
        found = said.estimates
        if not found.valid[index]:
            return self._invalid(found.reason[index], stamp)
        task = self._engine.config.tasks[self._engine.tasks[index]]
        novelty = float(found.novelty[index])
        if novelty > STRANGE:
            unlike = f"the scene is unlike what calibration saw (novelty {novelty:.1f})"
            note = f"{note}; {unlike}" if note else unlike
        return ProgressEstimate(
            stage_probs=found.stage_probs[index, : len(task.stage_names)],
            tau=float(found.tau[index]),
            progress=float(found.progress[index]),
            std=float(found.std[index]),
            interval=(float(found.low[index]), float(found.high[index])),
            success_prob=float(found.success_prob[index]),
            per_view={
                name: float(value) for name, value in zip(views, said.share[index].tolist(), strict=False)
            },
            valid=True,
            reason="",
            stamp_ns=stamp,
            model_version=self._engine.version,
            note=note,
            novelty=novelty,
        )

    def _invalid(self, reason: str, stamp: int) -> ProgressEstimate:
        engine = self._engine
        return ProgressEstimate.invalid(reason, engine.config.max_stages, int(stamp), engine.version)


class LiveStream:
    """One episode, live: `est = stream.push({"front": rgb}, stamp_ns=t)`."""

    def __init__(self, batch: LiveBatch) -> None:
        """The one stream of `batch`."""
        self._batch = batch

    def push(
        self, images: Images, stamp_ns: int, proprio: Float32[np.ndarray, " p"] | None = None
    ) -> ProgressEstimate:
        """The estimate at `stamp_ns`, from everything up to it.

        Invalid input (no frame, a wrong shape or dtype, a stamp that is not after the last) gives an estimate
        with `valid=False` and its reason, and leaves the stream as it was.

        Raises:
            ConfigError: images that are no mapping by camera, or proprioception of another length than in
                training.
        """
        return self._batch.push([images], [stamp_ns], [proprio])[0]

    @property
    def state(self) -> Float32[np.ndarray, " d"]:
        """The fused embedding of the last moment; see `LiveBatch.states`."""
        return self._batch.states[0]

    @property
    def maps(self) -> dict[str, Float32[np.ndarray, "c i j"]]:
        """The encoder's map of each training camera; see `LiveBatch.maps`."""
        return {camera: maps[0] for camera, maps in self._batch.maps.items()}

    def set_goal(self, images: Images) -> None:
        """Show the stream a picture of its goal."""
        self._batch.set_goal(0, images)

    def reset(self) -> None:
        """The next frame starts a new episode."""
        self._batch.reset(0)


def _check_stamps(given: Sequence[object]) -> None:
    """Refuse seconds, which would put all moments into one nanosecond."""
    if wrong := [stamp for stamp in given if not isinstance(stamp, int | np.integer)]:
        raise ConfigError(
            f"stamp {wrong[0]!r} is no whole number of nanoseconds: give such as time.time_ns() gives"
        )


def _check_images(what: str, given: object) -> None:
    """Refuse what names no cameras, such as a bare array."""
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise ConfigError(f"{what} are of type {kind}: name each camera, as in {{'front': rgb}}")
