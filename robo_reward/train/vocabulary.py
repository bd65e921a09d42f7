"""What a model is about, from its data: tasks, their texts and weighted stages, cameras, image size, pace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from robo_reward.errors import ConfigError, DataError
from robo_reward.labels import (
    duration_stage_weights,
    equal_stage_weights,
    label_episode,
    plain_stages,
    stages_begin,
)
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.pace import typical_step
from robo_reward.schema import EpisodeInfo
from robo_reward.train.config import TrainConfig

__all__ = ["list_stages", "make_model_config", "make_tasks", "number_tasks", "proprio_names"]


def make_model_config(
    config: TrainConfig, infos: Sequence[EpisodeInfo], proprio: Sequence[Any]
) -> ModelConfig:
    """Vocabulary and sizes from the data, architecture from the config."""
    available = tuple(dict.fromkeys(camera for info in infos for camera in info.cameras))
    cameras = tuple(config.cameras) if config.cameras else available
    if unknown := [camera for camera in cameras if camera not in available]:
        raise DataError(f"no episode has camera '{unknown[0]}': the data has {', '.join(available)}")
    widths = {values.shape[1] for values in proprio if values is not None}
    if config.proprio and len(widths) != 1:
        raise DataError(
            f"proprio=true needs one length of proprioception in all episodes, found {sorted(widths)}"
        )
    names = proprio_names(infos) if config.proprio else ()
    options = {key: value for key, value in config.network.items() if key != "image_size"}
    return ModelConfig(
        tasks=make_tasks(infos, config.stage_weights),
        cameras=cameras,
        image_size=_image_size(config, infos, cameras),
        period_s=_period(infos),
        proprio_dim=widths.pop() if widths else 0,
        proprio_names=names,
        **options,
    )


def proprio_names(infos: Sequence[EpisodeInfo]) -> tuple[str, ...]:
    """The names that proprioception has in every episode that names it, () where none does.

    Raises:
        DataError: two episodes name it differently, or in another order.
    """
    named = [info for info in infos if info.proprio_names]
    if other := next((i for i in named if i.proprio_names != named[0].proprio_names), None):
        raise DataError(
            f"proprioception of {named[0].name} is {', '.join(named[0].proprio_names)}, that of {other.name} "
            f"{', '.join(other.proprio_names)}: import them alike, or train with proprio=false"
        )
    return named[0].proprio_names if named else ()


def number_tasks(infos: Sequence[EpisodeInfo]) -> list[int]:
    """The task of each episode, counted from 0 as they come; those that share a text have the same."""
    parent: dict[str, str] = {}

    def first(text: str) -> str:
        while parent.setdefault(text, text) != text:
            text = parent[text]
        return text

    for info in infos:
        for text in info.paraphrases:
            parent[first(text)] = first(info.instruction)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(first(info.instruction), len(numbers)) for info in infos]


def make_tasks(infos: Sequence[EpisodeInfo], weighting: str) -> tuple[TaskConfig, ...]:
    """One task for all labelled episodes that share a text, with all their texts and weighted stages.

    A failure may name the stages alone that it got to.

    Raises:
        DataError: where episodes of one task disagree about their stages.
    """
    labelled = [info for info in infos if label_episode(info) is not None]
    if not labelled:
        raise DataError("no episode has stages: import with keyframes, or annotate the data first")
    groups: dict[int, list[EpisodeInfo]] = {}
    for number, info in zip(number_tasks(labelled), labelled, strict=True):
        groups.setdefault(number, []).append(info)
    tasks: list[TaskConfig] = []
    for members in groups.values():
        whole = _whole(members)
        count = _stage_count(whole)
        names = whole.stage_names or tuple(f"stage {index + 1}" for index in range(count))
        texts = dict.fromkeys(text for info in members for text in (info.instruction, *info.paraphrases))
        tasks.append(TaskConfig(tuple(texts), tuple(names), _weights(weighting, members, count)))
    return tuple(tasks)


def _whole(members: Sequence[EpisodeInfo]) -> EpisodeInfo:
    """An episode of a task that has all its stages, and names for them where any has."""
    whole = max(members, key=lambda i: (_stage_count(i), sum(map(bool, plain_stages(i.stage_names)))))
    count = _stage_count(whole)
    for other in members:
        if not stages_begin(other, _stage_count(other), whole.stage_names, count):
            told = dict.fromkeys(f"'{info.instruction}'" for info in (whole, other))
            raise DataError(
                f"{' and '.join(told)}{', which share a text' if len(told) > 1 else ''}: {whole.name} has "
                f"{list_stages(count, whole.stage_names)}, {other.name} "
                f"{list_stages(_stage_count(other), other.stage_names)}: annotate them alike, or give them "
                "different instructions (a failure may have the first stages alone, by the same names)"
            )
    return whole


def list_stages(count: int, names: Sequence[str]) -> str:
    """Stages as messages tell them: their number, and their names where they have any."""
    return f"{count} stages ({', '.join(names)})" if names else f"{count} stages"


def _stage_count(info: EpisodeInfo) -> int:
    if info.stage_names:
        return len(info.stage_names)
    if info.boundaries is not None:
        return len(info.boundaries) - 1
    raise DataError(f"{info.name} has per-frame truth but no stage names")


def _weights(weighting: str, members: Sequence[EpisodeInfo], count: int) -> tuple[float, ...]:
    if weighting == "equal":
        return tuple(float(w) for w in equal_stage_weights(count))
    if weighting == "duration":
        bounded = [
            info.boundaries
            for info in members
            if info.boundaries is not None and len(info.boundaries) == count + 1
        ]
        return tuple(float(w) for w in duration_stage_weights(bounded))
    raise ConfigError(f"stage_weights='{weighting}': choose equal or duration")


def _image_size(config: TrainConfig, infos: Sequence[EpisodeInfo], cameras: Sequence[str]) -> tuple[int, int]:
    """The configured size, else the stored one where that is small, else one of about 96 lines."""
    configured = config.image_size or config.network.get("image_size")
    if configured:
        height, width = configured
        return int(height), int(width)
    height, width = next(info.image_sizes[c] for info in infos for c in info.cameras if c in cameras)
    if height <= 128 and width <= 160:
        return height, width
    return 96, max(16, round(96 * width / height / 16) * 16)


def _period(infos: Sequence[EpisodeInfo]) -> float:
    step_ns = typical_step(*(info.stamp_ns for info in infos))
    if math.isnan(step_ns):
        raise DataError("every episode has a single frame: nothing to learn progress from")
    return step_ns * 1e-9
