"""Everything needed to build a progress model again, as plain JSON-able data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from robo_reward.errors import CheckpointError, ConfigError, DataError
from robo_reward.named import columns

__all__ = ["ModelConfig", "TaskConfig"]


@dataclass(frozen=True)
class TaskConfig:
    """One task the model knows: its texts (the instruction first, paraphrases after) and weighted stages."""

    instructions: tuple[str, ...]
    stage_names: tuple[str, ...]
    stage_weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.instructions:
            raise ConfigError("a task needs at least one instruction")
        if len(self.stage_names) != len(self.stage_weights) or not self.stage_names:
            raise ConfigError(
                f"task '{self.instructions[0]}' has {len(self.stage_names)} stage names "
                f"but {len(self.stage_weights)} stage weights: they must match"
            )
        if abs(sum(self.stage_weights) - 1.0) > 1e-4 or min(self.stage_weights) <= 0:
            raise ConfigError(
                f"stage weights of '{self.instructions[0]}' must be positive and sum to 1: "
                f"{self.stage_weights}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and vocabulary of a progress model.

    encoder        component config of the image encoder: `_target_` (import path) and its arguments
    instruction    component config of a sentence encoder `(list of texts) -> f32[n, d]`, or {} for a learned
                   table of the training instructions
    cameras        camera names, in the order of their embeddings; others are treated as "unknown camera"
    image_size     (h, w) that every view is resized to
    period_s       seconds between decisions in training; the unit of the trunk's relative time
    width          size of every embedding
    window         how many moments the trunk's attention reaches back, itself included
    tau_bins, hop_bins   resolution of the two distributions
    ensemble       heads for stage and tau, each trained on its own share of the episodes; 1 for no ensemble
    proprio_dim    length of the proprioception vector, 0 for none
    proprio_names  names of its numbers, in order; () where the data did not name them
    still          how often in a row each camera repeated its image at the most, while another moved, in the
                   calibration data: see `robo_reward.intake.Repeats`
    """

    encoder: Mapping[str, Any]
    tasks: tuple[TaskConfig, ...]
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    period_s: float
    width: int = 128
    layers: int = 2
    heads: int = 4
    window: int = 8
    tau_bins: int = 21
    hop_bins: int = 25
    dropout: float = 0.0
    ensemble: int = 1
    proprio_dim: int = 0
    proprio_names: tuple[str, ...] = ()
    instruction: Mapping[str, Any] = field(default_factory=dict)
    still: Mapping[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        """Refuse sizes of which no network can be made, or none that says anything.

        Raises:
            ConfigError: naming the key of `network`.
        """
        least = dict.fromkeys(("width", "layers", "heads", "window", "ensemble"), 1)
        least |= dict.fromkeys(("tau_bins", "hop_bins"), 2)
        for key, smallest in least.items():
            if (value := getattr(self, key)) < smallest:
                raise ConfigError(f"network.{key}={value}: must be {smallest} or more")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"network.dropout={self.dropout}: must be 0 (off) or more, below 1")

    @property
    def max_stages(self) -> int:
        """Stages of the longest task: the size of the stage head."""
        return max(len(task.stage_names) for task in self.tasks)

    def trained(self, cameras: Sequence[str]) -> tuple[str, ...]:
        """Those of the cameras that the model was trained on, or all where it was trained on none of them.

        One that training left out on purpose has no name to the model, and bands that know nothing of it.
        """
        return tuple(camera for camera in cameras if camera in self.cameras) or tuple(cameras)

    def proprio_columns(self, names: Sequence[str]) -> list[int] | None:
        """Where the numbers that the model takes are among numbers of these names.

        None where either has no names: then they are taken as they come.

        Raises:
            DataError: one is not among them.
        """
        try:
            return columns(names, self.proprio_names)
        except DataError as error:
            raise DataError(f"proprioception is not what the model was trained with: {error}") from error

    def task_of(self, instruction: str) -> int | None:
        """Index of the task that an instruction names, or None where no task knows it."""
        for index, task in enumerate(self.tasks):
            if instruction in task.instructions:
                return index
        return None

    def notes_on(self, instructions: Collection[str]) -> list[str]:
        """What to tell of instructions that a model of one task takes for its own."""
        strange = sorted(f"'{text}'" for text in instructions if self.task_of(text) is None)
        return [f"new to the model and taken for its only task: {', '.join(strange)}"] if strange else []

    def resolve(self, instruction: str) -> int:
        """Index of the task that an instruction names; a model of one task takes any text for it.

        Raises:
            DataError: where the model knows several tasks and this text is none of theirs.
        """
        task = self.task_of(instruction)
        if task is not None:
            return task
        if len(self.tasks) == 1:
            return 0
        known = ", ".join(repr(t.instructions[0]) for t in self.tasks)
        raise DataError(f"the model does not know the instruction {instruction!r}: it knows {known}")

    def instruction_or_only(self, instruction: str | None) -> str:
        """The instruction, or that of the only task where none is named.

        Raises:
            ConfigError: none is named, and there are several tasks.
        """
        if instruction is not None:
            return instruction
        if len(self.tasks) == 1:
            return self.tasks[0].instructions[0]
        known = ", ".join(repr(task.instructions[0]) for task in self.tasks)
        raise ConfigError(f"the model knows several tasks, name one: {known}")

    def instructions_of(self, streams: int, instruction: str | Sequence[str] | None) -> list[str]:
        """The instruction of each of several streams, from one for all of them or one for each.

        Raises:
            ConfigError: no stream, not as many instructions as streams, or none and several tasks.
        """
        if streams < 1:
            raise ConfigError(f"streams={streams}: must be 1 or more")
        if instruction is None or isinstance(instruction, str):
            return [self.instruction_or_only(instruction)] * streams
        if len(instruction) != streams:
            raise ConfigError(
                f"{len(instruction)} instructions for {streams} streams: name one for each, or one for all"
            )
        return list(instruction)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_json`; unknown or missing keys are refused."""
        try:
            tasks = tuple(
                TaskConfig(
                    instructions=tuple(task["instructions"]),
                    stage_names=tuple(task["stage_names"]),
                    stage_weights=tuple(task["stage_weights"]),
                )
                for task in data["tasks"]
            )
            rest = {key: value for key, value in data.items() if key != "tasks"}
            rest["cameras"] = tuple(rest["cameras"])
            height, width = rest["image_size"]
            rest["image_size"] = (int(height), int(width))
            rest["proprio_names"] = tuple(rest.get("proprio_names", ()))
            rest["still"] = {str(camera): int(count) for camera, count in rest.get("still", {}).items()}
            return cls(tasks=tasks, **rest)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"model config is not one of this version's: {error}") from error
