"""A trained progress model as a LeRobot reward model.

A saved model is a folder of ours with LeRobot's `config.json` and a model card beside it: `from_pretrained`
reads it, and so does `robo_reward.load`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData, snapshot_download
from lerobot.configs.rewards import RewardModelConfig
from lerobot.rewards.pretrained import PreTrainedRewardModel
from torch import Tensor

from robo_reward.checkpoint import Checkpoint, foreign_parts, load_checkpoint, save_checkpoint
from robo_reward.errors import CheckpointError, DataError
from robo_reward.estimate import Estimates, Moments, Tracker
from robo_reward.model.progress_model import Context
from robo_reward.offline import episode_context, resize_frames
from robo_reward.stream import BatchStream
from robo_reward_data.lerobot_plugin.configuration_robo_reward import RoboProgressConfig

__all__ = ["RoboProgressRewardModel"]

_PREFIXES = ("observation.images.", "observation.")


class RoboProgressRewardModel(PreTrainedRewardModel):
    """Progress (or success) of each episode of a batch, from all its cameras.

    `compute_reward` takes what a dataset gives with `config.observation_delta_indices` (images
    [b, t, c, h, w]: the first frame, then a window), or one live moment of b episodes side by side
    ([b, c, h, w], in order; `reset` begins new ones, and so do another b and another `task`). It is a
    potential, not a reward per step: paying it at every step pays for never finishing. `robo_reward.shaping`
    makes rewards of it.
    """

    config_class = RoboProgressConfig
    name = "robo_reward"

    def __init__(self, config: RoboProgressConfig, checkpoint: Checkpoint | None = None, **_: Any) -> None:
        """Wrap a checkpoint, or the one that `config.run` names.

        Raises:
            CheckpointError: neither is given, or the run has no usable model.
        """
        super().__init__(config)
        if checkpoint is None:
            if config.run is None:
                raise CheckpointError("no model: give --reward_model.run=RUN or --reward_model.path=FOLDER")
            checkpoint = load_checkpoint(config.run, config.device or "cpu")
        self._checkpoint = checkpoint
        self.model = checkpoint.model
        self._stream: BatchStream | None = None
        self._told: list[str] = []
        self._ticks = 0
        self._said = torch.zeros(0)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: RewardModelConfig | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """A saved model, from a folder or from the Hub, in eval mode; weights are loaded strictly.

        Raises:
            CheckpointError: no model of ours there, or one from the Hub that names code of another package.
        """
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    str(pretrained_name_or_path),
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                    allow_patterns=["*.json", "*.safetensors", "*.md"],
                )
            )
            if foreign := foreign_parts(folder):
                raise CheckpointError(
                    f"'{pretrained_name_or_path}' of the Hub would call {', '.join(foreign)}, not of "
                    f"this package: look at '{folder}/model.json', and load that folder if you trust it"
                )
        own = config or RewardModelConfig.from_pretrained(folder)
        if not isinstance(own, RoboProgressConfig):
            raise CheckpointError(f"'{folder}' has a reward model of type {own.type}, not {cls.name}")
        return cls(own, load_checkpoint(folder, own.device or "cpu"), **kwargs).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        self.config._save_pretrained(save_directory)
        saved = self._checkpoint
        save_checkpoint(save_directory, self.model, saved.calibration, saved.training)
        self.generate_model_card(None, self.name, self.config.license, self.config.tags).save(
            save_directory / "README.md"
        )

    def push_model_to_hub(self, cfg: Any) -> None:
        """Upload the model, its settings and its card to `config.repo_id` (LeRobot calls this)."""
        if not self.config.repo_id:
            raise CheckpointError("no repository to upload to: give --reward_model.repo_id=USER/NAME")
        self.push_to_hub(self.config.repo_id, private=self.config.private)

    def generate_model_card(
        self, dataset_repo_id: str | None, model_type: str, license: str | None, tags: list[str] | None
    ) -> ModelCard:
        """What the model knows, how it was trained and how to use it. Does not ask the Hub for anything."""
        known, training = self.model.config, self._checkpoint.training
        data = ModelCardData(
            license=license or "apache-2.0",
            library_name="lerobot",
            pipeline_tag="robotics",
            tags=sorted({*(tags or []), "robotics", "lerobot", "reward-model", model_type}),
            datasets=dataset_repo_id,
        )
        tasks = "\n".join(
            f"- {task.instructions[0]}: "
            + ", ".join(f"{n} ({w:.2f})" for n, w in zip(task.stage_names, task.stage_weights, strict=True))
            for task in known.tasks
        )
        return ModelCard(
            _CARD.format(
                data=data.to_yaml(),
                version=self._checkpoint.version,
                tasks=tasks,
                cameras=", ".join(known.cameras),
                size="x".join(map(str, known.image_size)),
                rate=1 / known.period_s,
                calibrated="yes" if self._checkpoint.calibration.quantiles else "no: its std is a guess",
                steps=training.get("steps", "unknown"),
                fingerprint=training.get("fingerprint", "unknown"),
            )
        )

    def reset(self) -> None:
        """The next live moment begins new episodes."""
        self._stream = None

    @torch.inference_mode()
    def compute_reward(self, batch: Mapping[str, Any]) -> Tensor:
        """Progress or success f32[b] in [0, 1] at the last frame; NaN where the model cannot say.

        Raises:
            ConfigError: a batch without `task`, no `config.instruction`, and a model of several tasks.
            DataError: a batch without images, or with images or proprioception of another shape.
        """
        views = self._views(batch)
        axes = {image.ndim for image in views.values()}
        if axes not in ({4}, {5}):
            raise DataError(f"images have {sorted(axes)} axes: all must be [b, c, h, w] or [b, t, c, h, w]")
        size = len(next(iter(views.values())))
        texts = self._texts(batch, size)
        body = self._body(batch, max(axes))
        return self._live(views, texts, body) if axes == {4} else self._windows(views, texts, batch, body)

    def _views(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Images by camera, whatever prefix LeRobot gave them; see `ModelConfig.trained`."""
        views = {
            name: value
            for key, value in batch.items()
            if isinstance(value, Tensor) and key.startswith("observation.image") and value.ndim >= 4
            for prefix in _PREFIXES
            if key.startswith(prefix) and (name := key.removeprefix(prefix))
        }
        longer = {name for name in views if name.startswith("images.")}
        if not (views := {name: image for name, image in views.items() if name not in longer}):
            raise DataError(f"no camera in the batch: it has {', '.join(sorted(map(str, batch)))}")
        return {name: views[name] for name in self.model.config.trained(tuple(views))}

    def _texts(self, batch: Mapping[str, Any], size: int) -> list[str]:
        said = batch.get("task")
        if isinstance(said, str):
            return [said] * size
        if isinstance(said, Sequence) and len(said) == size:
            return [str(text) for text in said]
        return [self.config.instruction or self.model.config.instruction_or_only(None)] * size

    def _pixels(self, images: Tensor) -> np.ndarray:
        """u8[n, h, w, 3] at the model's size from [n, c, h, w], u8 or float in [0, 1]."""
        if images.is_floating_point():
            images = (images.float().clamp(0, 1) * 255).round()
        rgb = images.to(device="cpu", dtype=torch.uint8).permute(0, 2, 3, 1).numpy()
        return resize_frames(np.ascontiguousarray(rgb), self.model.config.image_size)

    def _body(self, batch: Mapping[str, Any], axes: int) -> Tensor | None:
        """Proprioception f32[b, p] or [b, t, p], as the images have it; None where the model takes none."""
        size = self.model.config.proprio_dim
        if not size:
            return None
        state = batch.get("observation.state")
        if not isinstance(state, Tensor) or state.ndim != axes - 2 or state.shape[-1] != size:
            found = "none" if not isinstance(state, Tensor) else f"{list(state.shape)}"
            raise DataError(
                f"the model was trained with {size} numbers of proprioception: observation.state must be "
                f"[b, {size}], or [b, t, {size}] beside windows of images, and is {found}"
            )
        return state.detach().float().cpu()

    def _live(self, views: Mapping[str, Tensor], texts: list[str], body: Tensor | None) -> Tensor:
        if self._stream is None or self._told != texts:
            self._stream, self._told, self._ticks = BatchStream(self._checkpoint, texts), texts, 0
        tick, self._ticks = self._ticks, self._ticks + 1
        if tick % self.config.stride:
            return self._said.clone()  # between the model's moments the last estimate holds
        pixels = {name: self._pixels(images) for name, images in views.items()}
        stamp = round(tick * 1e9 / self.config.fps)
        shown = [{name: rgb[row] for name, rgb in pixels.items()} for row in range(len(texts))]
        found = self._stream.push(shown, [stamp] * len(texts), None if body is None else list(body.numpy()))
        values = [e.progress if self.config.output == "progress" else e.success_prob for e in found]
        self._said = torch.tensor(values, dtype=torch.float32)
        return self._said.clone()

    def _windows(
        self, views: Mapping[str, Tensor], texts: list[str], batch: Mapping[str, Any], body: Tensor | None
    ) -> Tensor:
        """What a stream that saw the window would say at its end."""
        model, device = self.model, self.model.no_goal.device
        rows, length = next(iter(views.values())).shape[:2]
        pixels = [
            self._pixels(x.flatten(0, 1)).reshape(rows, length, *model.config.image_size, 3)
            for x in views.values()
        ]
        rgb = torch.from_numpy(np.stack(pixels, axis=2)).to(device)
        seen = torch.stack([self._seen(batch, name, rows, length, device) for name in views], dim=2)
        ids = model.camera_ids(list(views)).expand(rows, length, -1)
        there = torch.ones_like(seen[:, :1])
        memory = model.remember(rgb[:, :1], there)
        state, _ = model.fuse(model.encode(rgb, ids, seen, memory, there), ids, seen)
        each = [episode_context(model, state[row, :1], text) for row, text in enumerate(texts)]
        context = Context(*(torch.cat([getattr(c, f) for c in each]) for f in Context.__dataclass_fields__))
        back = torch.tensor(self.config.observation_delta_indices[1:][-(length - 1) :], dtype=torch.float64)
        time_s = (back / self.config.fps).to(device).expand(rows, -1)
        live = seen[:, 1:].any(dim=2)
        body = None if body is None else body.to(device)
        tracker = Tracker(model, self._checkpoint.calibration, rows)

        def estimates(span: slice, times: Tensor, there: Tensor) -> Estimates:
            shown = None if body is None else body[:, span]
            moments = Moments(
                prediction=model(state[:, span], context, times, there, shown),
                state=state[:, span],
                context=context,
                time_s=times.cpu().numpy(),
                live=there.cpu().numpy(),
                views=seen[:, span].sum(dim=2).cpu().numpy(),
            )
            return tracker.estimates(moments, ["" if alive else "not seen" for alive in moments.live.ravel()])

        # Hops from the first frame start from what was said there. Windows with padding have it in them.
        estimates(slice(0, 1), torch.zeros_like(time_s[:, :1]), live.all(dim=1, keepdim=True))
        tracker.gap()
        found = estimates(slice(1, None), time_s, live)
        said = found.progress if self.config.output == "progress" else found.success_prob
        return torch.from_numpy(said.reshape(rows, -1)[:, -1].copy())

    def _seen(
        self, batch: Mapping[str, Any], name: str, rows: int, length: int, device: torch.device
    ) -> Tensor:
        """Which frames are of the episode: LeRobot repeats the first one before it begins."""
        padded = next((batch[k] for p in _PREFIXES if (k := f"{p}{name}_is_pad") in batch), None)
        if padded is None:
            return torch.ones(rows, length, dtype=torch.bool, device=device)
        seen = ~padded.to(device)
        seen[:, 0] = True  # the first frame is asked for by a delta that is out of every episode
        return seen


_CARD = """---
{data}
---

# Progress reward model {version}

Says at every frame, causally and from any number of cameras, which stage of the task a robot is in, how far
along it is (0..1), how sure it is of that, and whether the task is done.

Tasks and stages (with their share of progress):

{tasks}

- cameras it was trained on: {cameras} (any may be missing; others serve where none of these is there)
- images: {size} pixels, {rate:.3g} decisions per second
- calibrated on held-out data: {calibrated}
- training: {steps} steps; data fingerprint {fingerprint}

```python
import robo_reward
stream = robo_reward.load("FOLDER").stream()             # this folder, downloaded
estimate = stream.push({{"front": rgb}}, stamp_ns=t)

import robo_reward_data.lerobot_plugin.modeling_robo_reward as plugin   # or as a LeRobot reward model
model = plugin.RoboProgressRewardModel.from_pretrained("FOLDER or USER/NAME")
progress = model.compute_reward(batch)
```

Progress is a potential: shape rewards with it (`robo_reward.shaping`), do not pay it at every step.
"""
