"""Estimates of many long episodes in bounded memory, equal to what `robo_reward.offline` says of each.

Several episodes are watched side by side, a few frames of each at a time, so that one encoder pass takes
images of all of them. The trunk looks back `layers * (window - 1)` moments and no further: that many states
of an episode are kept, and nothing else of what it showed but its first images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from robo_reward.checkpoint import Checkpoint
from robo_reward.errors import DataError
from robo_reward.estimate import Estimates, Moments, Tracker
from robo_reward.intake import Repeats, movement, resize_frames
from robo_reward.model.progress_model import Context, Prediction, ProgressModel
from robo_reward.offline import episode_context

__all__ = ["Watched", "WatchedEpisode", "watch"]


@dataclass(frozen=True, slots=True)
class WatchedEpisode:
    """An episode to be watched in order.

    key          what identifies it to the caller
    frames       by camera, in the model's names: decoders of the t images, u8[h, w, 3] of any size
    stamp_ns     i64[t], strictly increasing
    proprio      f32[t, p] or None
    """

    key: int
    frames: Mapping[str, Callable[[], Iterator[UInt8[np.ndarray, "_h _w 3"]]]]
    stamp_ns: Int64[np.ndarray, " t"]
    instruction: str
    proprio: Float32[np.ndarray, "t p"] | None = None


@dataclass(frozen=True, slots=True)
class Watched:
    """What the model said at each of the t moments of an episode (NaN, and stage -1, where not valid)."""

    key: int
    progress: Float32[np.ndarray, " t"]
    std: Float32[np.ndarray, " t"]
    stage: Int64[np.ndarray, " t"]
    success_prob: Float32[np.ndarray, " t"]
    valid: Bool[np.ndarray, " t"]
    reason: tuple[str, ...]


def watch(
    checkpoint: Checkpoint,
    episodes: Iterator[WatchedEpisode],
    lanes: int = 4,
    chunk: int = 16,
    advance: Callable[[int], None] | None = None,
) -> Iterator[Watched]:
    """Watch episodes, `lanes` at once; each is given when its last frame was seen.

    Args:
        episodes: All with the same cameras. Taken one by one, when a lane is free.
        chunk: Frames of an episode in one pass.
        advance: Called with the number of frames seen in each pass.

    Raises:
        DataError: an instruction that the model does not know, proprioception of another length than the
            model's, or cameras that differ between episodes.
    """
    waiting = iter(episodes)
    active = [_Lane(checkpoint, episode) for episode in islice(waiting, lanes)]
    while active:
        _look(checkpoint, active, chunk)
        if advance is not None:
            advance(sum(lane.fresh for lane in active))
        for lane in [lane for lane in active if lane.finished]:
            active.remove(lane)
            active.extend(_Lane(checkpoint, episode) for episode in islice(waiting, 1))
            yield lane.result()


@dataclass
class _Lane:
    """One episode being watched: what is kept of its past, and what was said of it."""

    checkpoint: Checkpoint
    episode: WatchedEpisode
    anchor: Tensor = field(init=False)
    context: Context | None = None
    past: Tensor = field(init=False)
    used: np.ndarray = field(init=False)
    seen: int = 0
    fresh: int = 0
    said: list[Estimates] = field(default_factory=list[Estimates])

    def __post_init__(self) -> None:
        self.model = self.checkpoint.model
        self._tracker = Tracker(self.model, self.checkpoint.calibration, 1)
        self._streams = [stream() for stream in self.episode.frames.values()]
        self._repeats = Repeats(self.model.config.still)
        self._last: np.ndarray | None = None
        self.past = torch.zeros(0, self.model.config.width, device=self.model.no_goal.device)
        wanted, proprio = self.model.config.proprio_dim, self.episode.proprio
        if wanted and proprio is not None and proprio.shape[1] != wanted:
            raise DataError(
                f"episode {self.episode.key} has proprioception of {proprio.shape[1]} numbers, "
                f"the model was trained on {wanted}"
            )

    @property
    def finished(self) -> bool:
        return self.seen == len(self.episode.stamp_ns)

    def images(self, count: int) -> Tensor:
        """The next images, u8[m, v, h, w, 3] at the model's size; the very first ones become the anchor."""
        size = self.model.config.image_size
        self.fresh = min(count, len(self.episode.stamp_ns) - self.seen)
        views = [np.stack(list(islice(stream, self.fresh))) for stream in self._streams]
        if short := [
            name for name, view in zip(self.episode.frames, views, strict=True) if len(view) < self.fresh
        ]:
            raise DataError(f"episode {self.episode.key}: camera '{short[0]}' ends before the episode does")
        small = np.stack([resize_frames(view, size) for view in views], axis=1)
        self.used = self._unstuck(small)
        rgb = torch.from_numpy(small).to(self.model.no_goal.device)
        if self.seen == 0:
            self.anchor = rgb[:1]
        return rgb

    def _unstuck(self, images: UInt8[np.ndarray, "m v h w 3"]) -> Bool[np.ndarray, "m v"]:
        """Which cameras are looked through: a stuck one is not, as live (see `robo_reward.live`)."""
        names = list(self.episode.frames)
        used = np.ones(images.shape[:2], np.bool_)
        for row, moved in zip(used, movement(self._last, images), strict=True):
            stuck = self._repeats.push(dict(zip(names, moved, strict=True)))
            row[:] = [name not in stuck for name in names]
        self._last = images[-1]
        return used

    def note(self, prediction: Prediction, state: Tensor, reach: int) -> None:
        """Keep what is said of the fresh moments, and the last `reach` states before the next look."""
        assert self.context is not None
        stamps = self.episode.stamp_ns
        rows = slice(self.seen, self.seen + self.fresh)
        everything = np.ones((1, self.fresh), dtype=np.bool_)
        moments = Moments(
            prediction=prediction,
            state=state[None],
            context=self.context,
            time_s=((stamps[rows] - stamps[0]) * 1e-9)[None],
            live=everything,
            views=self._counts()[None],
        )
        self.said.append(self._tracker.estimates(moments, [""] * self.fresh))
        self.past = torch.cat([self.past, state])[-reach:]
        self.seen += len(state)

    def _counts(self) -> Int64[np.ndarray, " m"]:
        """How many cameras the fresh moments were seen through, of those that the model was trained on."""
        names, trained = list(self.episode.frames), self.model.config.trained
        looked = [tuple(n for n, used in zip(names, row, strict=True) if used) for row in self.used]
        return np.array([len(trained(cameras)) for cameras in looked])

    def result(self) -> Watched:
        parts = {name: np.concatenate([getattr(part, name) for part in self.said]) for name in _ARRAYS}
        return Watched(self.episode.key, reason=tuple(r for part in self.said for r in part.reason), **parts)


_ARRAYS = ("progress", "std", "stage", "success_prob", "valid")


def _memory(
    model: ProgressModel, lanes: Sequence[_Lane], images: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is remembered of each lane's first images, for every one of its frames."""
    anchors = torch.cat([lane.anchor for lane in lanes])
    known = torch.ones(anchors.shape[:2], dtype=torch.bool, device=anchors.device)
    each = torch.repeat_interleave(
        torch.arange(len(lanes), device=anchors.device),
        torch.tensor([len(rgb) for rgb in images], device=anchors.device),
    )
    return model.remember(anchors, known)[each], known[each]


@torch.inference_mode()
def _look(checkpoint: Checkpoint, lanes: Sequence[_Lane], chunk: int) -> None:
    """Show each lane its next frames and note what the model says of them."""
    model = checkpoint.model
    names = list(lanes[0].episode.frames)
    if other := next((lane for lane in lanes if list(lane.episode.frames) != names), None):
        raise DataError(f"episode {other.episode.key} has cameras {list(other.episode.frames)}, not {names}")
    images = [lane.images(chunk) for lane in lanes]
    rgb = torch.cat(images)
    mask = torch.ones(rgb.shape[:2], dtype=torch.bool, device=rgb.device)
    ids = model.camera_ids(names).expand(len(rgb), -1)
    features = model.encode(rgb, ids, mask, *_memory(model, lanes, images))
    used = torch.from_numpy(np.concatenate([lane.used for lane in lanes])).to(rgb.device)
    states = model.fuse(features, ids, used)[0].split([lane.fresh for lane in lanes])
    for lane, state in zip(lanes, states, strict=True):
        if lane.context is None:
            lane.context = episode_context(model, state[:1], lane.episode.instruction)
    said = _predict(model, lanes, states)
    reach = model.config.layers * (model.config.window - 1)
    for lane, state, prediction in zip(lanes, states, said, strict=True):
        lane.note(prediction, state, reach)


def _predict(model: ProgressModel, lanes: Sequence[_Lane], states: Sequence[Tensor]) -> list[Prediction]:
    """Raw outputs at the fresh moments of every lane, with a leading axis of one.

    Each row holds a lane's past and its fresh moments, right-aligned; what is left of them is masked.
    """
    rows = [torch.cat([lane.past, state]) for lane, state in zip(lanes, states, strict=True)]
    longest, device = max(map(len, rows)), rows[0].device
    state = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(longest, device=device) >= longest - len(row) for row in rows])
    time_s, proprio = zip(
        *(_clock_and_body(lane, len(row), longest) for lane, row in zip(lanes, rows, strict=True)),
        strict=True,
    )
    contexts = [lane.context for lane in lanes if lane.context is not None]
    context = Context(*(torch.cat([getattr(c, f.name) for c in contexts]) for f in fields(Context)))
    body = torch.from_numpy(np.stack(proprio)).to(device) if model.config.proprio_dim else None
    out = model(state, context, torch.from_numpy(np.stack(time_s)).to(device), mask, body)
    outputs = (out.stage_logits, out.tau_logits, out.success_logit)
    return [
        Prediction(*(x[index : index + 1, longest - lane.fresh :] for x in outputs))
        for index, lane in enumerate(lanes)
    ]


def _clock_and_body(lane: _Lane, count: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds f64[longest] and proprioception f32[longest, p] (NaN: missing) of a right-aligned row."""
    stamps = lane.episode.stamp_ns
    rows = slice(lane.seen + lane.fresh - count, lane.seen + lane.fresh)
    time_s = np.zeros(longest)
    time_s[longest - count :] = (stamps[rows] - stamps[0]) * 1e-9
    body = np.full((longest, lane.model.config.proprio_dim), np.nan, np.float32)
    if lane.episode.proprio is not None and lane.model.config.proprio_dim:
        body[longest - count :] = lane.episode.proprio[rows]
    return time_s, body
