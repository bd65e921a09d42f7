"""The front door: load a reward model, stream with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robo_reward.checkpoint import Checkpoint, load_checkpoint
from robo_reward.errors import CheckpointError, ConfigError
from robo_reward.imports import import_object
from robo_reward.stream import BatchStream, Stream

__all__ = ["RewardModel", "load"]


class RewardModel:
    """A trained progress model, ready to run.

    Example:
        >>> model = robo_reward.load("runs/drawer")                             # doctest: +SKIP
        >>> stream = model.stream(instruction="open the drawer")                # doctest: +SKIP
        >>> estimate = stream.push({"front": rgb}, stamp_ns=time.time_ns())     # doctest: +SKIP
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Wrap a loaded checkpoint."""
        self.checkpoint = checkpoint

    @property
    def version(self) -> str:
        """Digest of weights and calibration, published with every estimate."""
        return self.checkpoint.version

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras the model was trained on; it takes any others too."""
        return self.checkpoint.model.config.cameras

    @property
    def proprio_size(self) -> int:
        """How many numbers of proprioception it was trained with; 0: none. They may be missing."""
        return self.checkpoint.model.config.proprio_dim

    @property
    def instructions(self) -> tuple[str, ...]:
        """The first text of each task it knows."""
        return tuple(task.instructions[0] for task in self.checkpoint.model.config.tasks)

    def stage_names(self, instruction: str) -> tuple[str, ...]:
        """Names of the stages of a task."""
        from robo_reward.offline import resolve_task

        model = self.checkpoint.model
        return model.config.tasks[resolve_task(model, instruction)].stage_names

    def stream(self, instruction: str | None = None, *, maps: bool = False) -> Stream:
        """Live estimates of one episode; the instruction may be left out where there is one task.

        With `maps`, `stream.maps` holds the encoder's feature maps of the last images, for a policy.
        """
        known = self.checkpoint.model.config.instruction_or_only(instruction)
        return Stream(self.checkpoint, known, maps=maps)

    def batch_stream(
        self, streams: int, instruction: str | Sequence[str] | None = None, *, maps: bool = False
    ) -> BatchStream:
        """Live estimates of several episodes in step.

        Args:
            streams: how many.
            instruction: one for all of them, or one for each; may be left out where there is one task.
            maps: as for `stream`.

        Raises:
            ConfigError: no stream, not as many instructions as streams, or none and several tasks.
            DataError: an instruction that a model of several tasks does not know.
        """
        texts = self.checkpoint.model.config.instructions_of(streams, instruction)
        return BatchStream(self.checkpoint, texts, maps=maps)


def load(path: str | Path, device: str = "cpu", **arguments: Any) -> Any:
    """A reward model from a run folder, or another system's from an import path (called with `arguments`).

    `device` is where the model of a run goes; another system is told by its own `arguments`.

    Raises:
        CheckpointError: a folder without a usable checkpoint, or neither a folder nor an import path.
        ConfigError: arguments for a run folder, which takes none.
    """
    if Path(path).is_dir():
        if arguments:
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise ConfigError(f"'{path}' is a run folder and takes no {given}: only import paths are called")
        return RewardModel(load_checkpoint(path, device))
    text = str(path)
    if "/" in text or "." not in text:
        raise CheckpointError(f"no run at '{path}': train one with robo-reward train out={path}")
    try:
        return import_object(text)(**arguments)
    except ConfigError as error:
        raise CheckpointError(f"'{path}' is neither a run folder nor an import path: {error}") from error
    except TypeError as error:
        raise CheckpointError(f"'{path}' is not a model that can be made so: {error}") from error
