"""Loading LeRobot's reward models, and asking them about frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robo_reward.compare.method import TrainingData
from robo_reward.errors import CheckpointError, ConfigError
from robo_reward.schema import EpisodeReader

__all__ = ["EpisodeCache", "check_camera", "frames_of", "load_reward_model", "one_camera", "read_config"]


def read_config(path: str, kind: str) -> Any:
    """The config of a LeRobot reward model of this kind from a folder or the hub: no weights yet.

    Raises:
        CheckpointError: nothing usable at `path`, or a model of another kind.
        ConfigError: LeRobot, or what this model of it needs, is not installed.
    """
    try:
        from draccus.utils import ParsingError
        from lerobot.configs.rewards import RewardModelConfig
        from lerobot.rewards.factory import get_reward_model_class
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"'{path}' needs LeRobot ({error.name} is missing): pip install 'robo-reward[data]'"
        ) from error
    try:
        config = RewardModelConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError, KeyError, ParsingError) as error:
        raise CheckpointError(f"no LeRobot reward model at '{path}': {_line(error)}") from error
    if config.type != kind:
        raise CheckpointError(f"'{path}' is a LeRobot reward model of type '{config.type}', not '{kind}'")
    try:
        get_reward_model_class(kind)
    except ImportError as error:
        raise ConfigError(f"LeRobot's {kind} needs more than is installed: {_line(error)}") from error
    return config


def load_reward_model(path: str, device: str, kind: str) -> Any:
    """A LeRobot reward model of this kind from a folder or the hub, in eval mode, every weight accounted for.

    Raises:
        CheckpointError: nothing usable at `path`, or a model of another kind.
        ConfigError: LeRobot, or what this model of it needs, is not installed.
    """
    config = read_config(path, kind)
    from lerobot.rewards.factory import get_reward_model_class

    config.device = device
    if hasattr(config, "pretrained_path"):
        config.pretrained_path = path
    try:
        return get_reward_model_class(kind).from_pretrained(path, config=config, strict=True).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"'{path}' cannot be loaded: {_line(error)}") from error
    except ImportError as error:
        raise ConfigError(f"LeRobot's {kind} needs more than is installed: {_line(error)}") from error


def check_camera(data: TrainingData, wanted: str | None) -> None:
    """Refuse a camera that not all episodes have.

    Raises:
        ConfigError: naming it, and those that there are.
    """
    for reader in (*data.train, *data.calibration):
        one_camera(reader, reader.info.cameras, wanted)


def one_camera(reader: EpisodeReader, cameras: Sequence[str], wanted: str | None) -> str | None:
    """The camera that a model of one view looks through; None where that one is gone.

    Raises:
        ConfigError: the wanted camera is none of the episode's.
    """
    name = reader.info.cameras[0] if wanted is None else wanted
    if name not in reader.info.cameras:
        raise ConfigError(f"camera='{name}': the episode has {', '.join(reader.info.cameras)}")
    return name if name in cameras else None


class EpisodeCache:
    """Values of an episode's frames, kept while the same episode is asked about (it may have grown)."""

    def __init__(self) -> None:
        """Nothing is kept."""
        self._reader: EpisodeReader | None = None
        self._values: list[Any] = []

    def of(self, reader: EpisodeReader) -> list[Any]:
        """What is kept of this episode, to be appended to."""
        if self._reader is not reader:
            self._reader, self._values = reader, []
        return self._values


def frames_of(reader: EpisodeReader, camera: str, indices: Sequence[int]) -> np.ndarray[Any, Any]:
    """Frames u8[n, h, w, 3]."""
    return reader.read_frames(camera, np.asarray(indices, dtype=np.int64))


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]
