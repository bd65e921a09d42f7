"""Live estimates: push time-stamped frames of whatever cameras arrived, get a `ProgressEstimate`.

Each frame is encoded once and the trunk keeps a ring cache, so a moment costs one encoder pass. What a stream
says is what `robo_reward.offline` says of the same frames. Bad input never becomes a silent guess: either the
estimate is valid, or it says why not, and the stream stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from robo_reward.checkpoint import Checkpoint
from robo_reward.errors import ConfigError
from robo_reward.estimate import Estimates, estimates
from robo_reward.model.progress_model import Context, Prediction, ProgressModel
from robo_reward.offline import resize_frames, resolve_task
from robo_reward.schema import Frame, ProgressEstimate

__all__ = ["BatchStream", "Images", "Stream"]

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
        self._start_ns[index] = self._last_ns[index] = None

    @torch.inference_mode()
    def set_goal(self, index: int, images: Images) -> None:
        """Show stream `index` a picture of its goal, after its first frame (it is seen beside that).

        Raises:
            ConfigError: images that cannot be used.
        """
        views, reasons = self._collect([images])
        if reasons[0]:
            raise ConfigError(f"goal picture: {reasons[0]}")
        state, _ = self._encode(views, slice(index, index + 1))
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
        views, reasons = self._collect(images)
        reasons = [
            reason or self._stamp_reason(i, stamp)
            for i, (reason, stamp) in enumerate(zip(reasons, stamps_ns, strict=True))
        ]
        live = torch.tensor([not reason for reason in reasons], device=self._device)
        self._states.fill_(float("nan"))
        if not bool(live.any()):
            return [self._invalid(reason, stamp) for reason, stamp in zip(reasons, stamps_ns, strict=True)]
        self._firsts.learn(views)
        fresh = live & ~self._context.first_mask
        if bool(fresh.any()):
            rgb, mask = self._stack(views)
            self._firsts.keep(rgb, mask & fresh[:, None])
        state, share = self._encode(views, slice(None))
        self._states[live] = state[live]
        self._begin(live, state, stamps_ns)
        seconds = torch.tensor(
            [
                (t - s) * 1e-9 if s is not None else 0.0
                for t, s in zip(stamps_ns, self._start_ns, strict=True)
            ],
            dtype=torch.float64,
            device=self._device,
        )
        x = self._model.inputs(state[:, None], self._context, body)[:, 0]
        h = self._model.trunk.step(x, seconds, live, self._cache)
        found = self._estimates(self._model.heads(h, self._context.task), reasons)
        return [self._result(found, i, share[i], views[i], int(stamps_ns[i])) for i in range(len(self))]

    def _collect(self, images: Sequence[Images]) -> tuple[list[dict[str, np.ndarray]], list[str]]:
        """Usable images by camera at the model's size, and why there are none."""
        collected: list[dict[str, np.ndarray]] = []
        reasons: list[str] = []
        for given in images:
            views: dict[str, np.ndarray] = {}
            problems: list[str] = []
            for name, item in given.items():
                rgb = item.rgb if isinstance(item, Frame) else np.asarray(item)
                if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
                    problems.append(
                        f"camera '{name}' gave {rgb.dtype}{list(rgb.shape)}, needs uint8[h, w, 3]"
                    )
                    continue
                views[name] = resize_frames(rgb[None], self._model.config.image_size)[0]
            reasons.append("; ".join(problems) if problems else "" if views else "no camera frame")
            collected.append({} if problems else views)
        return collected, reasons

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

    def _begin(self, live: Tensor, state: Tensor, stamps_ns: Sequence[int]) -> None:
        fresh = live & ~self._context.first_mask
        self._context.first[fresh] = state[fresh]
        self._context.first_mask[fresh] = True
        for index, alive in enumerate(live.tolist()):
            if alive:
                self._last_ns[index] = int(stamps_ns[index])
                if self._start_ns[index] is None:
                    self._start_ns[index] = int(stamps_ns[index])

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

    def _estimates(self, prediction: Prediction, reasons: list[str]) -> Estimates:
        return estimates(
            self._model, prediction, self._context.task, self._checkpoint.calibration, list(reasons)
        )

    def _result(
        self, found: Estimates, index: int, share: Tensor, views: Mapping[str, np.ndarray], stamp: int
    ) -> ProgressEstimate:
        if not found.valid[index]:
            return self._invalid(found.reason[index], stamp)
        task = self._model.config.tasks[int(self._context.task[index])]
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
