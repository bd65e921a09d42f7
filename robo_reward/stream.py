"""Live estimates: push time-stamped frames of whatever cameras arrived, get a `ProgressEstimate`.

Each frame is encoded once and the trunk keeps a ring cache, so a moment costs one encoder pass; the fused
perspectives reuse its embedding. What a stream says is what `robo_reward.offline` says of the same frames.
Bad input never becomes a silent guess: see the table of `robo_reward.live`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from robo_reward.checkpoint import Checkpoint
from robo_reward.errors import ConfigError
from robo_reward.estimate import Moments, Tracker
from robo_reward.intake import STUCK_AFTER, Images
from robo_reward.live import Arrived, LiveBatch, LiveStream, Said
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import Context, Prediction, ProgressModel
from robo_reward.offline import resolve_task

__all__ = ["STUCK_AFTER", "BatchStream", "Images", "Stream"]


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


class _TorchEngine:
    """The model in PyTorch, on the device where it is; see `robo_reward.live.Engine`."""

    def __init__(self, checkpoint: Checkpoint, instructions: Sequence[str], maps: bool) -> None:
        if not instructions:
            raise ConfigError("a stream needs an instruction for each episode")
        self._model = checkpoint.model
        self._wants_maps = maps
        self.config: ModelConfig = checkpoint.model.config
        self.version = checkpoint.version
        self.tasks = [resolve_task(self._model, text) for text in instructions]
        streams, width = len(instructions), self.config.width
        self._device = self._model.no_goal.device
        with torch.inference_mode():
            self._context = Context(
                first=torch.zeros(streams, width, device=self._device),
                first_mask=torch.zeros(streams, dtype=torch.bool, device=self._device),
                goal=torch.zeros(streams, width, device=self._device),
                goal_mask=torch.zeros(streams, dtype=torch.bool, device=self._device),
                text=self._model.embed_text(instructions),
                task=torch.tensor(self.tasks, device=self._device),
            )
            self._cache = self._model.trunk.empty_cache(streams)
        self._firsts = _Firsts(self._model, streams)
        self._tracker = Tracker(self._model, checkpoint.calibration, streams)

    @torch.inference_mode()
    def forget(self, index: int) -> None:
        self._context.first_mask[index] = False
        self._context.goal_mask[index] = False  # of the episode that is over
        self._cache.filled[index] = False
        self._cache.position[index] = 0  # sums in the order of the first episode: to the bit the same again
        self._firsts.forget(index)
        self._tracker.reset(index)

    @torch.inference_mode()
    def set_goal(self, index: int, views: Mapping[str, np.ndarray]) -> None:
        state, _, _ = self._encode([views], slice(index, index + 1))
        self._context.goal[index], self._context.goal_mask[index] = state[0], True

    @torch.inference_mode()
    def say(self, arrived: Arrived) -> Said:
        """One step of encoder, trunk, heads and fusion."""
        state, share, maps = self._begin(arrived.views, arrived.fresh)
        body = None if arrived.body is None else torch.from_numpy(arrived.body)[:, None].to(self._device)
        x = self._model.inputs(state[:, None], self._context, body)[:, 0]
        clock = torch.from_numpy(arrived.seconds).to(self._device)
        h = self._model.trunk.step(x, clock, torch.from_numpy(arrived.live).to(self._device), self._cache)
        said = self._model.heads(h, self._context.task)
        moments = Moments(
            Prediction(said.stage_logits[:, None], said.tau_logits[:, None], said.success_logit[:, None]),
            state[:, None],
            self._context,
            arrived.seconds[:, None],
            arrived.live[:, None],
            arrived.counts[:, None],
        )
        found = self._tracker.estimates(moments, arrived.reasons)
        return Said(found, state.float().cpu().numpy(), share.numpy(), maps)

    def _encode(
        self, views: Sequence[Mapping[str, np.ndarray]], rows: slice
    ) -> tuple[Tensor, Tensor, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """States of what the streams `rows` see, each view's share in the order it came in, and maps."""
        self._firsts.learn(views)
        names, memory, known = self._firsts.names, self._firsts.memory[rows], self._firsts.known[rows]
        rgb, mask = self._stack(views)
        camera = self._model.camera_ids(names).expand(len(views), -1)
        maps: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if self._wants_maps:
            features, seen = self._model.look(rgb, camera, mask, memory, known)
            places = {name: names.index(name) for name in self.config.cameras if name in names}
            maps = {
                name: (seen[:, place].float().cpu().numpy(), mask[:, place].cpu().numpy())
                for name, place in places.items()
            }
        else:
            features = self._model.encode(rgb, camera, mask, memory, known)
        state, share = self._model.fuse(features, camera, mask)
        order = [[names.index(name) for name in given] for given in views]
        padded = torch.zeros(len(views), max(len(names), 1))
        share = share.float().cpu()
        for row, columns in enumerate(order):
            padded[row, : len(columns)] = share[row, columns]
        return state, padded, maps

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
    ) -> tuple[Tensor, Tensor, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """What `_encode` gives for all streams; those that are `fresh` get their anchors."""
        self._firsts.learn(views)
        new = torch.from_numpy(fresh).to(self._device)
        if fresh.any():
            rgb, mask = self._stack(views)
            self._firsts.keep(rgb, mask & new[:, None])
        state, share, maps = self._encode(views, slice(None))
        self._context.first[new] = state[new]
        self._context.first_mask[new] = True
        return state, share, maps


class BatchStream(LiveBatch):
    """n episodes at once, in step; see `robo_reward.live.LiveBatch`."""

    def __init__(self, checkpoint: Checkpoint, instructions: Sequence[str], *, maps: bool = False) -> None:
        """Start n streams, one for each instruction.

        Args:
            checkpoint: the model.
            instructions: one for each stream.
            maps: keep the encoder's maps of the last moment, for a policy.

        Raises:
            ConfigError: no instruction, or maps of an encoder that has none.
            DataError: an instruction that a model of several tasks does not know.
        """
        shape = checkpoint.model.map_shape() if maps else None
        shapes = {} if shape is None else dict.fromkeys(checkpoint.model.config.cameras, shape)
        super().__init__(_TorchEngine(checkpoint, instructions, maps), shapes)


class Stream(LiveStream):
    """One episode, live; see `robo_reward.live.LiveStream`."""

    def __init__(self, checkpoint: Checkpoint, instruction: str, *, maps: bool = False) -> None:
        """Start a stream; see `BatchStream`."""
        super().__init__(BatchStream(checkpoint, [instruction], maps=maps))
