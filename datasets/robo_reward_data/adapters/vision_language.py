"""LeRobot's reward models over vision-language models, Robometer and TOPReward, as methods of a comparison.

Both score a video. For the estimate at a frame they are shown the frames up to it and nothing later, thinned
evenly to as many as they take; at every `interval`-th frame, the estimate stays in between. They look through
one camera.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robo_reward.compare.method import Budget, MethodPrediction, TrainingData
from robo_reward.errors import CheckpointError, ConfigError
from robo_reward.schema import EpisodeReader
from robo_reward_data.adapters._lerobot import (
    EpisodeCache,
    check_camera,
    frames_of,
    load_reward_model,
    one_camera,
    read_config,
)

__all__ = ["LeRobotRobometer", "LeRobotTOPReward"]


class LeRobotRobometer:
    """A `RobometerRewardModel`: progress at the last frame of the video so far.

    Args:
        path: folder or hub name of the reward model.
        camera: the one it looks through; the episode's first by default.
        frames: frames of each video, the first and the present one among them.
        interval: frames between estimates.
        encoder: what turns a LeRobot transition into the model's inputs; LeRobot's own by default.
    """

    causal = True

    def __init__(
        self,
        path: str,
        camera: str | None = None,
        frames: int = 8,
        interval: int = 4,
        device: str = "cpu",
        encoder: Callable[[dict[Any, Any]], dict[Any, Any]] | None = None,
    ) -> None:
        """Nothing is loaded yet."""
        self._path, self._camera, self._device = path, camera, device
        self._videos = _Videos(frames, interval)
        self._encoder = encoder
        self._model: Any = None
        self._cache = EpisodeCache()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Options."""
        return {
            "method": "lerobot_robometer",
            "path": self._path,
            "camera": self._camera,
            **self._videos.options,
        }

    def check(self, data: TrainingData) -> None:
        """Refuse a camera, a reward model or a processor that is not there, without loading weights."""
        check_camera(data, self._camera)
        config = read_config(self._path, "robometer")
        if self._encoder is None:
            self._encoder = _robometer_encoder(config, self._videos.frames)

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Load it: it comes trained."""
        self._model = load_reward_model(self._path, self._device, "robometer")
        if self._encoder is None:
            self._encoder = _robometer_encoder(self._model.config, self._videos.frames)

    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """Progress of each frame, from the frames up to it."""
        camera = one_camera(reader, cameras, self._camera)
        if camera is None:
            return _gone("Robometer", reader, self._camera)
        return self._videos.sweep(reader, camera, self._cache, self._score)

    @torch.no_grad()
    def _score(self, video: torch.Tensor, task: str) -> float:
        assert self._encoder is not None
        config = self._model.config
        return float(_reward(self._model, self._encoder, video, task, config.image_key, config.task_key))


class LeRobotTOPReward:
    """A `TOPRewardModel`: the probability that a vision-language model answers "True".

    LeRobot stretches its log-probabilities to [0, 1] between the lowest and the highest of an episode, which
    needs the whole episode first; here progress is the probability itself, unless `per_episode` is set.

    Args:
        vlm: folder or hub name of the vision-language model.
        camera: the one it looks through; the episode's first by default.
        frames: frames of each video, the first and the present one among them.
        interval: frames between estimates.
        per_episode: stretch log-probabilities as LeRobot does; such estimates look ahead.
    """

    def __init__(
        self,
        vlm: str,
        camera: str | None = None,
        frames: int = 16,
        interval: int = 4,
        per_episode: bool = False,
        device: str = "cpu",
    ) -> None:
        """Nothing is loaded yet."""
        self.causal = not per_episode
        self._vlm, self._camera, self._device, self._per_episode = vlm, camera, device, per_episode
        self._videos = _Videos(frames, interval)
        self._model: Any = None
        self._encoder: Any = None
        self._cache = EpisodeCache()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Options."""
        return {
            "method": "lerobot_topreward",
            "vlm": self._vlm,
            "camera": self._camera,
            "per_episode": self._per_episode,
            **self._videos.options,
        }

    def check(self, data: TrainingData) -> None:
        """Refuse a camera that is not there, and a model without a processor, without loading weights."""
        check_camera(data, self._camera)
        self._prepare()

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Load the vision-language model: it is used as it is.

        Raises:
            ConfigError: LeRobot or transformers is not installed.
            CheckpointError: no such model.
        """
        config = self._prepare()
        from lerobot.rewards.topreward.modeling_topreward import TOPRewardModel

        try:
            self._model = TOPRewardModel(config).to(self._device).eval()
        except OSError as error:
            raise self._no_model(error) from error

    def _prepare(self) -> Any:
        """LeRobot's config of the model; the processor, which is loaded once."""
        try:
            from lerobot.rewards.topreward.configuration_topreward import TOPRewardConfig
            from lerobot.rewards.topreward.modeling_topreward import TOPRewardModel  # noqa: F401
            from lerobot.rewards.topreward.processor_topreward import TOPRewardEncoderProcessorStep
        except ImportError as error:
            raise ConfigError(
                f"TOPReward needs LeRobot and transformers ({error}): "
                "pip install 'robo-reward[data]' transformers"
            ) from error
        config = TOPRewardConfig(vlm_name=self._vlm, device=self._device, max_frames=self._videos.frames)
        if self._encoder is None:
            try:
                self._encoder = TOPRewardEncoderProcessorStep(
                    vlm_name=self._vlm,
                    image_key=config.image_key,
                    task_key=config.task_key,
                    max_frames=config.max_frames,
                    fps=config.fps,
                )
            except OSError as error:
                raise self._no_model(error) from error
        return config

    def _no_model(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"no vision-language model at '{self._vlm}': {str(error)[:200]}")

    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """Probability of each frame, from the frames up to it."""
        camera = one_camera(reader, cameras, self._camera)
        if camera is None:
            return _gone("TOPReward", reader, self._camera)
        found = self._videos.sweep(reader, camera, self._cache, self._score)
        if not self._per_episode:
            return found
        score = np.log(np.maximum(found.progress, 1e-30))
        room = float(score.max() - score.min())
        progress = (score - score.min()) / room if room > 0 else np.ones_like(score)
        return MethodPrediction(progress.astype(np.float32))

    @torch.no_grad()
    def _score(self, video: torch.Tensor, task: str) -> float:
        config = self._model.config
        found = _reward(self._model, self._encoder, video, task, config.image_key, config.task_key)
        return float(np.exp(float(found)))


class _Videos:
    """Which frames make the video of each estimate, and how estimates become a course."""

    def __init__(self, frames: int, interval: int) -> None:
        if frames < 1 or interval < 1:
            raise ConfigError(f"frames={frames} and interval={interval} must be 1 or more")
        self.frames, self._interval = frames, interval

    @property
    def options(self) -> dict[str, int]:
        return {"frames": self.frames, "interval": self._interval}

    def sweep(
        self,
        reader: EpisodeReader,
        camera: str,
        cache: EpisodeCache,
        score: Callable[[torch.Tensor, str], float],
    ) -> MethodPrediction:
        """The score of every `interval`-th frame, held until the next."""
        info, kept = reader.info, cache.of(reader)
        asked = range(0, info.length, self._interval)
        for now in asked[len(kept) :]:
            shown = np.linspace(0, now, self.frames).round().astype(int)
            frames = torch.from_numpy(frames_of(reader, camera, shown.tolist()))
            kept.append(score(frames.permute(0, 3, 1, 2)[None], info.instruction))
        values = np.array(kept[: len(asked)], dtype=np.float32).clip(0, 1)
        progress = np.repeat(values, self._interval)[: info.length]
        unknown = np.isnan(progress)
        return MethodPrediction(progress, reason="the model's output is not finite" if unknown.any() else "")


def _reward(
    model: Any, encoder: Any, video: torch.Tensor, task: str, image_key: str, task_key: str
) -> torch.Tensor:
    """LeRobot's reward of one video u8[1, t, 3, h, w]."""
    from lerobot.lerobot_types import TransitionKey

    transition = {
        TransitionKey.OBSERVATION: {image_key: video},
        TransitionKey.COMPLEMENTARY_DATA: {task_key: task},
    }
    return model.compute_reward(encoder(transition)[TransitionKey.OBSERVATION])[0]


def _robometer_encoder(config: Any, frames: int) -> Any:
    from lerobot.rewards.robometer.processor_robometer import RobometerEncoderProcessorStep

    try:
        return RobometerEncoderProcessorStep(
            base_model_id=config.base_model_id,
            image_key=config.image_key,
            task_key=config.task_key,
            default_task=config.default_task,
            max_frames=frames,
            use_multi_image=config.use_multi_image,
            use_per_frame_progress_token=config.use_per_frame_progress_token,
        )
    except ImportError as error:
        raise ConfigError(f"Robometer needs qwen-vl-utils ({error}): pip install qwen-vl-utils") from error
    except OSError as error:
        raise CheckpointError(
            f"no processor of '{config.base_model_id}', which Robometer stands on: {str(error)[:200]}"
        ) from error


def _gone(name: str, reader: EpisodeReader, camera: str | None) -> MethodPrediction:
    wanted = camera or reader.info.cameras[0]
    return MethodPrediction.invalid(reader.info.length, f"{name} looks through camera '{wanted}' alone")
