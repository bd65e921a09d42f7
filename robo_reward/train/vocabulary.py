"""What a model is about, from its data: tasks, their texts and weighted stages, cameras, image size, pace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from robo_reward.errors import ConfigError, DataError
from robo_reward.labels import duration_stage_weights, equal_stage_weights, label_episode, stages_begin
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.pace import typical_step
from robo_reward.schema import EpisodeInfo
from robo_reward.train.config import TrainConfig

__all__ = ["make_model_config", "make_tasks", "proprio_names"]


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


def make_tasks(infos: Sequence[EpisodeInfo], weighting: str) -> tuple[TaskConfig, ...]:
    """One task per instruction that has labels, with its paraphrases and weighted stages.

    A failure may name the stages alone that it got to.

    Raises:
        DataError: where episodes of one instruction disagree about their stages.
    """
    groups: dict[str, list[EpisodeInfo]] = {}
    for info in infos:
        if label_episode(info) is not None:
            groups.setdefault(info.instruction, []).append(info)
    if not groups:
        raise DataError("no episode has stages: import with keyframes, or annotate the data first")
    tasks: list[TaskConfig] = []
    for instruction, members in groups.items():
        whole = max(members, key=_stage_count)
        count = _stage_count(whole)
        names = next((i.stage_names for i in members if len(i.stage_names) == count), ())
        if other := next((i for i in members if not stages_begin(i, _stage_count(i), names, count)), None):
            raise DataError(
                f"'{instruction}': {whole.name} has {count} stages, {other.name} has {_stage_count(other)}: "
                "annotate them alike, or give them different instructions (a failure may have the first "
                "stages alone, by the same names)"
            )
        names = names or tuple(f"stage {index + 1}" for index in range(count))
        texts = dict.fromkeys([instruction, *(text for info in members for text in info.paraphrases)])
        tasks.append(TaskConfig(tuple(texts), tuple(names), _weights(weighting, members, count)))
    return tuple(tasks)


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
