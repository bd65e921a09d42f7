"""LeRobot's SARM as a method of a comparison.

As published it looks ahead: the window of a frame is centered on it, and half of it is later video (4 s at
its defaults). `lookahead=false` shows it the present in place of the future. It looks through one camera.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robo_reward.compare.method import Budget, MethodPrediction, TrainingData
from robo_reward.errors import ConfigError
from robo_reward.schema import EpisodeReader
from robo_reward_data.adapters._lerobot import (
    EpisodeCache,
    check_camera,
    frames_of,
    load_reward_model,
    one_camera,
    read_config,
)

__all__ = ["LeRobotSARM"]

_CHUNK = 64


class LeRobotSARM:
    """A trained `SARMRewardModel`, fed as LeRobot's processor feeds it: CLIP embeddings of frames and text.

    Args:
        path: folder or hub name of the reward model.
        camera: the one it looks through; the episode's first by default.
        clip: folder or hub name of the CLIP model whose embeddings it was trained on.
        head: sparse or dense.
        lookahead: windows as published, with later frames.
        fps: frames per second of its training data, which its window is counted in.
    """

    def __init__(
        self,
        path: str,
        camera: str | None = None,
        clip: str = "openai/clip-vit-base-patch32",
        head: str = "sparse",
        lookahead: bool = True,
        fps: float = 30.0,
        device: str = "cpu",
    ) -> None:
        """Nothing is loaded yet.

        Raises:
            ConfigError: a head that does not exist.
        """
        if head not in ("sparse", "dense"):
            raise ConfigError(f"head='{head}': choose sparse or dense")
        self.causal = not lookahead
        self._path, self._camera, self._clip_path, self._head = path, camera, clip, head
        self._lookahead, self._fps, self._device = lookahead, fps, device
        self._model: Any = None
        self._clip: tuple[Any, Any] | None = None
        self._cache = EpisodeCache()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Options."""
        return {
            "method": "lerobot_sarm",
            "path": self._path,
            "camera": self._camera,
            "clip": self._clip_path,
            "head": self._head,
            "lookahead": self._lookahead,
            "fps": self._fps,
        }

    def check(self, data: TrainingData) -> None:
        """Refuse a camera, a reward model or a CLIP model that is not there, without loading weights."""
        check_camera(data, self._camera)
        config = read_config(self._path, "sarm")
        try:
            from transformers import CLIPConfig

            clip: Any = CLIPConfig.from_pretrained(self._clip_path)
        except (OSError, ImportError) as error:
            raise self._no_clip(error) from error
        self._check_width(clip.projection_dim, config.image_dim)

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Load it: it comes trained."""
        from transformers import CLIPModel, CLIPProcessor

        self._model = load_reward_model(self._path, self._device, "sarm")
        try:
            clip: Any = CLIPModel.from_pretrained(self._clip_path)
            self._clip = (clip.to(self._device).eval(), CLIPProcessor.from_pretrained(self._clip_path))
        except OSError as error:
            raise self._no_clip(error) from error
        self._check_width(clip.config.projection_dim, self._model.config.image_dim)

    def _no_clip(self, error: Exception) -> ConfigError:
        return ConfigError(f"no CLIP model at clip='{self._clip_path}': {str(error)[:200]}")

    def _check_width(self, width: int, wanted: int) -> None:
        if width != wanted:
            raise ConfigError(
                f"clip='{self._clip_path}' gives embeddings of length {width}, the model at '{self._path}' "
                f"was trained on {wanted}"
            )

    @torch.no_grad()
    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """Progress and stage at the center of each frame's window."""
        info = reader.info
        camera = one_camera(reader, cameras, self._camera)
        if camera is None:
            return MethodPrediction.invalid(info.length, f"SARM looks through camera '{self._camera}' alone")
        video, text = self._embed(reader, camera), self._embed_text(info.instruction)
        windows = self._windows(info.stamp_ns)
        center = self._model.config.n_obs_steps // 2
        progress, stages = [], []
        for start in range(0, len(windows), _CHUNK):
            shown = video[torch.from_numpy(windows[start : start + _CHUNK])]
            rewards, probabilities = self._model.calculate_rewards(
                text.expand(len(shown), -1),
                shown,
                None,  # no robot state: what the estimate rests on is what is seen
                return_all_frames=True,
                return_stages=True,
                head_mode=self._head,
            )
            progress.append(rewards[:, center])
            stages.append(probabilities[:, center].argmax(axis=-1))
        return MethodPrediction(
            np.clip(np.concatenate(progress), 0, 1).astype(np.float32),
            stage=np.concatenate(stages).astype(np.int64),
        )

    def _windows(self, stamp_ns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Frame indices i64[t, n] of each frame's window, by time; clamped to what there is."""
        config = self._model.config
        deltas = np.array(config.observation_delta_indices[: config.n_obs_steps + 1]) / self._fps
        seconds = (stamp_ns - stamp_ns[0]) * 1e-9
        wanted = seconds[:, None] + deltas
        if not self._lookahead:
            wanted = np.minimum(wanted, seconds[:, None])
        # The last frame that had been taken by then; half a millisecond forgives how stamps are rounded.
        found = np.searchsorted(seconds, wanted + 5e-4, side="right") - 1
        return found.clip(0, len(seconds) - 1).astype(np.int64)

    def _embed(self, reader: EpisodeReader, camera: str) -> torch.Tensor:
        """CLIP embeddings f32[t, d] of one camera's frames."""
        assert self._clip is not None
        model, processor = self._clip
        kept = self._cache.of(reader)
        for start in range(len(kept), reader.info.length, _CHUNK):
            stop = min(start + _CHUNK, reader.info.length)
            images = list(frames_of(reader, camera, range(start, stop)))
            inputs = processor.image_processor(images=images, return_tensors="pt")
            found = model.get_image_features(pixel_values=inputs["pixel_values"].to(self._device))
            kept.extend(_pooled(found).float().cpu())
        return torch.stack(kept)

    def _embed_text(self, text: str) -> torch.Tensor:
        assert self._clip is not None
        model, processor = self._clip
        inputs = processor.tokenizer([text], return_tensors="pt", padding=True, truncation=True)
        return _pooled(model.get_text_features(**inputs.to(self._device))).float().cpu()


def _pooled(output: Any) -> torch.Tensor:
    """CLIP's embedding: transformers 5 wraps it."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
