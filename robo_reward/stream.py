"""Live estimates: push time-stamped frames of whatever cameras arrived, get a `ProgressEstimate`.

Each frame is encoded once and the trunk keeps a ring cache, so a moment costs one encoder pass; the fused
perspectives reuse its embedding. What a stream says is what `robo_reward.offline` says of the same frames.
Bad input never becomes a silent guess:

    what arrives                                 what it gets
    -------------------------------------------  -----------------------------------------------------------
    irregular intervals, gaps                    valid; attention and fusion count seconds, not moments
    a stamp that is not after the last (late,    invalid: "stamp S is not after L"; the stream stays as it
    out of order, a duplicate)                   was
    no image of any camera                       invalid: "no camera frame"; the stream stays as it was
    some training cameras missing                valid, band wider by what their absence cost in calibration
    another size than in training                valid: resized
    another aspect than that of the camera's     that camera is left out, with a note; invalid where it was
    first image                                  the only one
    not uint8[h, w, 3], or empty                 invalid, with camera, dtype and shape; the stream stays as
                                                 it was
    the same image of a camera STUCK_AFTER       that camera is left out, with a note, until it moves; band
    times while another camera moves             as for a missing camera
    a scene unlike calibration's                 valid, band wider in proportion; past STRANGE, with a note
    NaN or infinity in proprioception            proprioception counts as missing
    a network output that is not finite          invalid: "the network's output is not finite"; it enters
                                                 neither the cache nor the fusion
    a bad moment of one stream of a batch        as above, for that stream; the others do not notice
    not one entry for each stream, or another    ConfigError, before anything changes
    length of proprioception
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor, nn

from robo_reward.checkpoint import Checkpoint
from robo_reward.errors import ConfigError
from robo_reward.estimate import STRANGE, Estimates, Moments, Tracker
from robo_reward.model.progress_model import Context, Prediction, ProgressModel
from robo_reward.offline import resize_frames, resolve_task
from robo_reward.schema import Frame, ProgressEstimate

__all__ = ["STUCK_AFTER", "BatchStream", "Images", "Stream"]

STUCK_AFTER = 8
"""Repeats of an image, while another camera moves, after which a camera counts as stuck."""

_SAME_LEVEL = 2  # gray levels that compression and sensor noise may move a pixel of a still image
_MOVED_SHARE = 0.002  # of a camera's values that move beyond that where its scene does
_ASPECT_SLACK = 0.05

Images = Mapping[str, np.ndarray | Frame]
"""Images by camera name: u8[h, w, 3] arrays (any size), or `Frame`s."""


class _Firsts:
    """What the streams remember of their cameras' first images; cameras are added as they appear.

    names    every camera seen so far
    memory   f32[n, v, ...] of the encoder
    known    bool[n, v]
    """

    def __init__(self, model: ProgressModel, streams: int) -> None:
        self._model = model
        device = model.no_goal.device
        self.names: list[str] = []
        self.known = torch.zeros(streams, 0, dtype=torch.bool, device=device)
        self.memory = self._empty(0)

    def learn(self, views: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Make room for cameras that are new."""
        new = [n for n in dict.fromkeys(name for given in views for name in given) if n not in self.names]
        if new:
            self.names.extend(new)
            self.known = nn.functional.pad(self.known, (0, len(new)))
            self.memory = torch.cat([self.memory, self._empty(len(new))], dim=1)

    def keep(self, rgb: Tensor, mask: Tensor) -> None:
        """Remember the images u8[n, v, h, w, 3] where `mask` bool[n, v] says so."""
        self.memory[mask] = self._model.remember(rgb, mask)[mask].to(self.memory.dtype)
        self.known |= mask

    def forget(self, index: int) -> None:
        """Stream `index` starts anew."""
        self.known[index] = False

    def _empty(self, views: int) -> Tensor:
        height, width = self._model.config.image_size
        shape = (len(self.known), views, height, width, 3)
        nothing = torch.zeros(shape, dtype=torch.uint8, device=self.known.device)
        return self._model.remember(
            nothing, torch.zeros(shape[:2], dtype=torch.bool, device=self.known.device)
        )


class _Watchdog:
    """Of one stream: cameras that repeat an image while others move, and those whose aspect changed."""

    def __init__(self) -> None:
        self._image: dict[str, np.ndarray] = {}
        self._repeats: dict[str, int] = {}
        self._aspect: dict[str, float] = {}

    def bent(self, sizes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
        """Why cameras with images (h, w) of these sizes are left out; first sizes are kept."""
        notes: dict[str, str] = {}
        for name, (height, width) in sizes.items():
            first = self._aspect.get(name, width / height)
            if abs(width / height / first - 1.0) > _ASPECT_SLACK:
                notes[name] = f"camera '{name}' changed its aspect from {first:.2f} to {width / height:.2f}"
        return notes

    def stuck(self, views: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Why some of a moment's cameras are left out, given their images at one size."""
        moved = {name: _moved(self._image.get(name), image) for name, image in views.items()}
        notes: dict[str, str] = {}
        for name in views:
            elsewhere = any(change for other, change in moved.items() if other != name)
            if moved[name] or moved[name] is None:
                self._repeats[name] = 0
            elif elsewhere:
                self._repeats[name] = self._repeats.get(name, 0) + 1
            if self._repeats[name] >= STUCK_AFTER:
                notes[name] = f"camera '{name}' is stuck: {self._repeats[name]} times the same image"
        return notes

    def keep(self, views: Mapping[str, np.ndarray], sizes: Mapping[str, tuple[int, int]]) -> None:
        """Remember a moment that was used."""
        for name, image in views.items():
            self._image[name] = image
            height, width = sizes[name]
            self._aspect.setdefault(name, width / height)


def _moved(before: np.ndarray | None, image: np.ndarray) -> bool | None:
    """Whether an image differs from the one before; None where there is none or it is not clear."""
    if before is None:
        return None
    if np.array_equal(before, image):
        return False
    # At the model's size, 16 thousand values take some microseconds.
    share = np.count_nonzero(cv2.absdiff(before, image) > _SAME_LEVEL) / image.size
    return True if share > _MOVED_SHARE else False if share == 0 else None


@dataclass
class _Given:
    """One moment of one stream, sorted: usable images at the model's size, and what is wrong.

    seen    every image of a right kind;  views  those that are used
    sizes   (h, w) as they came;  reason  why nothing can be said, or "";  note  what was left out, or ""
    """

    seen: dict[str, np.ndarray]
    views: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]
    reason: str
    note: str = ""


class BatchStream:
    """n episodes at once, in step. Cameras, sizes and gaps may differ between them and over time."""

    def __init__(self, checkpoint: Checkpoint, instructions: Sequence[str]) -> None:
        """Start n streams, one for each instruction.

        Raises:
            ConfigError: no instruction.
            DataError: an instruction that a model of several tasks does not know.
        """
        if not instructions:
            raise ConfigError("a stream needs an instruction for each episode")
        self._checkpoint = checkpoint
        self._model = checkpoint.model
        streams, width = len(instructions), self._model.config.width
        self._device = self._model.no_goal.device
        with torch.inference_mode():
            self._context = Context(
                first=torch.zeros(streams, width, device=self._device),
                first_mask=torch.zeros(streams, dtype=torch.bool, device=self._device),
                goal=torch.zeros(streams, width, device=self._device),
                goal_mask=torch.zeros(streams, dtype=torch.bool, device=self._device),
                text=self._model.embed_text(instructions),
                task=torch.tensor([resolve_task(self._model, t) for t in instructions], device=self._device),
            )
            self._cache = self._model.trunk.empty_cache(streams)
            self._states = torch.full((streams, width), float("nan"), device=self._device)
        self._firsts = _Firsts(self._model, streams)
        self._watchdogs = [_Watchdog() for _ in instructions]
        self._tracker = Tracker(self._model, checkpoint.calibration, streams)
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
        return self._states.float().cpu().numpy().copy()

    @torch.inference_mode()
    def reset(self, index: int) -> None:
        """Forget stream `index`: its next frame starts a new episode."""
        self._context.first_mask[index] = False
        self._cache.filled[index] = False
        self._firsts.forget(index)
        self._watchdogs[index] = _Watchdog()
        self._tracker.reset(index)
        self._start_ns[index] = self._last_ns[index] = None

    @torch.inference_mode()
    def set_goal(self, index: int, images: Images) -> None:
        """Show stream `index` a picture of its goal, after its first frame (it is seen beside that).

        Raises:
            ConfigError: images that cannot be used.
        """
        given = self._sort(images, None)
        if given.reason:
            raise ConfigError(f"goal picture: {given.reason}")
        state, _ = self._encode([given.views], slice(index, index + 1))
        self._context.goal[index], self._context.goal_mask[index] = state[0], True

    @torch.inference_mode()
    def push(
        self,
        images: Sequence[Images],
        stamps_ns: Sequence[int],
        proprio: Sequence[Float32[np.ndarray, " p"] | None] | None = None,
    ) -> list[ProgressEstimate]:
        """One moment of every stream; an empty mapping for a stream that saw nothing.

        Raises:
            ConfigError: not one entry for each stream, or proprioception of another length than in training.
        """
        if len(images) != len(self) or len(stamps_ns) != len(self):
            raise ConfigError(f"{len(self)} streams, but {len(images)} images and {len(stamps_ns)} stamps")
        body = self._proprio(proprio)  # refused before anything of the stream changes
        late = [self._stamp_reason(i, stamp) for i, stamp in enumerate(stamps_ns)]
        given = [
            self._sort(each, None if reason else dog)
            for each, dog, reason in zip(images, self._watchdogs, late, strict=True)
        ]
        reasons = [g.reason or reason for g, reason in zip(given, late, strict=True)]
        self._states.fill_(float("nan"))
        if all(reasons):
            return [self._invalid(reason, stamp) for reason, stamp in zip(reasons, stamps_ns, strict=True)]
        views = [g.views if not reason else {} for g, reason in zip(given, reasons, strict=True)]
        live = np.array([not reason for reason in reasons])
        known = self._context.first_mask.cpu().numpy()
        state, share = self._begin(views, live & ~known)
        seconds = np.array(
            [(t - (t if s is None else s)) * 1e-9 for t, s in zip(stamps_ns, self._start_ns, strict=True)]
        )
        found = self._estimate(state, seconds, live, body, [len(v) for v in views], reasons)
        self._end(given, state, stamps_ns, live, found)
        return [
            self._result(found, i, share[i], views[i], int(stamps_ns[i]), given[i].note)
            for i in range(len(self))
        ]

    def _sort(self, given: Images, watchdog: _Watchdog | None) -> _Given:
        """What can be used of one moment's images, at the model's size, and why there is nothing."""
        found = _Given({}, {}, {}, "")
        problems: list[str] = []
        for name, item in given.items():
            rgb = item.rgb if isinstance(item, Frame) else np.asarray(item)
            if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
                problems.append(f"camera '{name}' gave {rgb.dtype}{list(rgb.shape)}, needs uint8[h, w, 3]")
                continue
            # A copy: the caller may write the next image into the same array.
            resized = resize_frames(rgb[None], self._model.config.image_size)[0]
            found.seen[name] = resized.copy() if resized.base is not None else resized
            found.sizes[name] = (rgb.shape[0], rgb.shape[1])
        if problems or not found.seen:
            found.reason = "; ".join(problems) or "no camera frame"
            return found
        left_out: dict[str, str] = {}
        if watchdog is not None:
            left_out = watchdog.bent(found.sizes)
            straight = {n: image for n, image in found.seen.items() if n not in left_out}
            left_out |= watchdog.stuck(straight)
            found.seen = straight
        found.views = {name: image for name, image in found.seen.items() if name not in left_out}
        found.note = "; ".join(left_out.values())
        found.reason = "" if found.views else found.note
        return found

    def _stamp_reason(self, index: int, stamp: int) -> str:
        last = self._last_ns[index]
        return f"stamp {stamp} is not after {last}" if last is not None and stamp <= last else ""

    def _encode(self, views: Sequence[Mapping[str, np.ndarray]], rows: slice) -> tuple[Tensor, Tensor]:
        """States of what the streams `rows` see, and each view's share in the order in which it came."""
        self._firsts.learn(views)
        names, memory, known = self._firsts.names, self._firsts.memory[rows], self._firsts.known[rows]
        rgb, mask = self._stack(views)
        camera = self._model.camera_ids(names).expand(len(views), -1)
        state, share = self._model.fuse(self._model.encode(rgb, camera, mask, memory, known), camera, mask)
        order = [[names.index(name) for name in given] for given in views]
        padded = torch.zeros(len(views), max(len(names), 1))
        share = share.float().cpu()
        for row, columns in enumerate(order):
            padded[row, : len(columns)] = share[row, columns]
        return state, padded

    def _stack(self, views: Sequence[Mapping[str, np.ndarray]]) -> tuple[Tensor, Tensor]:
        """Images u8[n, v, h, w, 3] of every camera seen so far, and which of them there are."""
        names = self._firsts.names
        height, width = self._model.config.image_size
        rgb = np.zeros((len(views), len(names), height, width, 3), dtype=np.uint8)
        mask = np.zeros(rgb.shape[:2], dtype=np.bool_)
        for row, given in enumerate(views):
            for column, name in enumerate(names):
                if name in given:
                    rgb[row, column], mask[row, column] = given[name], True
        return torch.from_numpy(rgb).to(self._device), torch.from_numpy(mask).to(self._device)

    def _begin(
        self, views: Sequence[Mapping[str, np.ndarray]], fresh: Bool[np.ndarray, " n"]
    ) -> tuple[Tensor, Tensor]:
        """States of what all streams see and the views' shares; those that are `fresh` get their anchors."""
        self._firsts.learn(views)
        new = torch.from_numpy(fresh).to(self._device)
        if fresh.any():
            rgb, mask = self._stack(views)
            self._firsts.keep(rgb, mask & new[:, None])
        state, share = self._encode(views, slice(None))
        self._context.first[new] = state[new]
        self._context.first_mask[new] = True
        return state, share

    def _estimate(
        self,
        state: Tensor,
        seconds: Float64[np.ndarray, " n"],
        live: Bool[np.ndarray, " n"],
        body: Tensor | None,
        views: Sequence[int],
        reasons: Sequence[str],
    ) -> Estimates:
        """One step of trunk, heads and fusion."""
        x = self._model.inputs(state[:, None], self._context, body)[:, 0]
        clock = torch.from_numpy(seconds).to(self._device)
        h = self._model.trunk.step(x, clock, torch.from_numpy(live).to(self._device), self._cache)
        said = self._model.heads(h, self._context.task)
        prediction = Prediction(
            said.stage_logits[:, None], said.tau_logits[:, None], said.success_logit[:, None]
        )
        moments = Moments(
            prediction,
            state[:, None],
            self._context,
            seconds[:, None],
            live[:, None],
            np.array(views)[:, None],
        )
        return self._tracker.estimates(moments, reasons)

    def _end(
        self,
        given: Sequence[_Given],
        state: Tensor,
        stamps_ns: Sequence[int],
        live: Bool[np.ndarray, " n"],
        found: Estimates,
    ) -> None:
        """Streams with a good moment go on; one whose very first was none has not begun."""
        for index in np.flatnonzero(live):
            if found.valid[index]:
                self._states[index] = state[index]
                self._watchdogs[index].keep(given[index].seen, given[index].sizes)
                self._last_ns[index] = int(stamps_ns[index])
                if self._start_ns[index] is None:
                    self._start_ns[index] = int(stamps_ns[index])
            elif self._start_ns[index] is None:
                self._context.first_mask[index] = False
                self._firsts.forget(int(index))

    def _proprio(self, proprio: Sequence[Float32[np.ndarray, " p"] | None] | None) -> Tensor | None:
        size = self._model.config.proprio_dim
        if not size or proprio is None:
            return None
        rows = [
            np.full(size, np.nan, np.float32) if p is None else np.asarray(p, np.float32) for p in proprio
        ]
        if wrong := next((row.shape for row in rows if row.shape != (size,)), None):
            raise ConfigError(f"proprioception has shape {wrong}, the model was trained on ({size},)")
        return torch.from_numpy(np.stack(rows))[:, None].to(self._device)

    def _result(
        self,
        found: Estimates,
        index: int,
        share: Tensor,
        views: Mapping[str, np.ndarray],
        stamp: int,
        note: str,
    ) -> ProgressEstimate:
        if not found.valid[index]:
            return self._invalid(found.reason[index], stamp)
        task = self._model.config.tasks[int(self._context.task[index])]
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
            per_view={name: float(value) for name, value in zip(views, share.tolist(), strict=False)},
            valid=True,
            reason="",
            stamp_ns=stamp,
            model_version=self._checkpoint.version,
            note=note,
            novelty=novelty,
        )

    def _invalid(self, reason: str, stamp: int) -> ProgressEstimate:
        nan = float("nan")
        return ProgressEstimate(
            stage_probs=np.full(self._model.config.max_stages, nan, dtype=np.float32),
            tau=nan,
            progress=nan,
            std=nan,
            interval=(nan, nan),
            success_prob=nan,
            per_view={},
            valid=False,
            reason=reason,
            stamp_ns=int(stamp),
            model_version=self._checkpoint.version,
        )


class Stream:
    """One episode, live: `est = stream.push({"front": rgb}, stamp_ns=t)`."""

    def __init__(self, checkpoint: Checkpoint, instruction: str) -> None:
        """Start a stream; see `BatchStream` for what is raised."""
        self._batch = BatchStream(checkpoint, [instruction])

    def push(
        self, images: Images, stamp_ns: int, proprio: Float32[np.ndarray, " p"] | None = None
    ) -> ProgressEstimate:
        """The estimate at `stamp_ns`, from everything up to it.

        Invalid input (no frame, a wrong shape or dtype, a stamp that is not after the last) gives an estimate
        with `valid=False` and its reason, and leaves the stream as it was.
        """
        return self._batch.push([images], [stamp_ns], [proprio])[0]

    @property
    def state(self) -> Float32[np.ndarray, " d"]:
        """The fused embedding of the last moment; see `BatchStream.states`."""
        return self._batch.states[0]

    def set_goal(self, images: Images) -> None:
        """Show the stream a picture of its goal."""
        self._batch.set_goal(0, images)

    def reset(self) -> None:
        """The next frame starts a new episode."""
        self._batch.reset(0)
