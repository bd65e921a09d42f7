"""Demonstrations as rollouts: what the policy would have seen, and what the reward model says of it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from robo_reward.errors import DataError
from robo_reward.imports import import_object
from robo_reward.improve.config import ImproveConfig, observed_parts
from robo_reward.improve.observer import MAP
from robo_reward.improve.rollouts import Rollout, stacked
from robo_reward.improve.worker import Worker
from robo_reward.labels import equal_stage_weights, label_episode, label_success, task_progress
from robo_reward.named import columns
from robo_reward.pace import check_same_pace, typical_step
from robo_reward.schema import EpisodeInfo, EpisodeReader, Outcome
from robo_reward.sources import open_sources

__all__ = ["annotations_digest", "choose_demonstrations", "demonstration_rollout"]

_SPELLED = {"proprio": "proprioception", "action": "an action"}


def choose_demonstrations(config: ImproveConfig) -> list[EpisodeReader]:
    """The successful episodes to learn from, in the store's order.

    Raises:
        DataError: too few of them, or episodes without actions or proprioception.
    """
    readers, _ = open_sources(config.reader, config.demos)
    kinds = config.demo_kinds
    good = [r for r in readers if r.info.outcome is Outcome.SUCCESS and (not kinds or r.info.kind in kinds)]
    left = max(len(good) - config.demo_offset, 0)
    count = left if config.demonstrations is None else config.demonstrations
    chosen = good[config.demo_offset : config.demo_offset + count]
    if count < 1 or len(chosen) < count:
        raise DataError(
            f"{config.demos} has {len(good)} successful episodes"
            f"{f' of kind {list(kinds)}' if kinds else ''}: "
            f"demonstrations={count} from demo_offset={config.demo_offset} on are not there"
        )
    for reader in chosen:
        if reader.read_actions() is None or reader.read_proprio() is None:
            raise DataError(
                f"{reader.info.name} of {config.demos} has no actions or no proprioception: "
                "a policy needs both"
            )
    instructions = {reader.info.instruction for reader in chosen}
    if len(instructions) > 1:
        raise DataError(
            f"{config.demos} has several tasks ({', '.join(sorted(instructions))}): one is improved"
        )
    return chosen


def annotations_digest(readers: Sequence[EpisodeReader]) -> str:
    """SHA-256 over what is annotated of these episodes: a uid stays the same where that is corrected."""
    digest = hashlib.sha256()
    for reader in readers:
        info = reader.info
        arrays = {"success": info.success, "boundaries": info.boundaries}
        if info.truth is not None:
            arrays |= {"stage": info.truth.stage, "tau": info.truth.tau, "valid": info.truth.valid}
        known = {name: None if values is None else values.tolist() for name, values in arrays.items()}
        digest.update(json.dumps([info.uid, info.stage_names, known]).encode())
    return digest.hexdigest()


def demonstration_rollout(config: ImproveConfig, worker: Worker, reader: EpisodeReader) -> Rollout:
    """A demonstration as the policy would have lived it, up to the first moment at which it counts as done.

    That is when it has been done for `demo_hold` moments in a row; what a recording shows after it is left
    out. Its task reward is 1 on the step that ends it, as in a rollout. Where the environment has
    `proprio_names` and the demonstration names its numbers, they are taken by their names.

    Raises:
        ConfigError: its actions follow each other at another pace than the environment's.
        DataError: its actions, proprioception or cameras are not those of the environment, or it is over at
            once.
    """
    info = reader.info
    actions, proprio = reader.read_actions(), reader.read_proprio()
    assert actions is not None
    assert proprio is not None
    actions = _in_order(config, worker, info, "action", actions)
    if _looks_at_proprio(config, worker):
        _check_trained(config, worker)
        proprio = _in_order(config, worker, info, "proprio", proprio)
    length = _length(info, config.demo_hold)
    _check_fits(config, worker, info.name, length, actions.shape[1], proprio.shape[1])
    _check_pace(config, worker, info)
    _check_cameras(config, worker, info)
    actions, proprio = actions[:length], proprio[:length]
    privileged = _privileged(config, worker, reader)
    images = {}
    if worker.model is not None:
        images = {camera: reader.read_frames(camera, np.arange(length)) for camera in info.cameras}
    worker.observer.begin()
    moments = [
        worker.observer.see(
            {"proprio": proprio[t], "images": {camera: frames[t] for camera, frames in images.items()}},
            int(info.stamp_ns[t]),
            None if privileged is None else privileged[t],
        )
        for t in range(length)
    ]
    success = label_success(info)[0][:length].copy()
    success[-1] = True  # its outcome says so
    reward = np.zeros(length - 1, np.float32)
    reward[-1] = 1.0
    estimates = [moment.estimate for moment in moments]
    rollout = Rollout(
        parts=stacked([moment.parts for moment in moments]),
        actions=worker.unit_actions(actions[:-1]),
        task_reward=reward,
        intervened=np.zeros(length - 1, np.bool_),
        progress=np.array([np.nan if e is None else e.progress for e in estimates], np.float32),
        std=np.array([np.nan if e is None else e.std for e in estimates], np.float32),
        truth=_truth(info)[:length],
        embedding=np.stack([moment.embedding for moment in moments]),
        first=moments[0].first,
        proprio=np.stack([moment.proprio for moment in moments]),
        success=success,
        stamp_ns=info.stamp_ns[:length],
        terminated=True,
        demonstration=True,
        model_version=worker.model.version if worker.model else "",
        source={"name": info.name, "uid": info.uid},
    )
    rng = np.random.default_rng((config.seed, zlib.crc32(info.uid.encode())))
    return worker.looks.added(rollout, [moment.images for moment in moments], worker.observer, rng)


def _check_fits(
    config: ImproveConfig, worker: Worker, name: str, length: int, action: int, proprio: int
) -> None:
    """Refuse a demonstration of another robot, and one that shows nothing."""
    seen = _looks_at_proprio(config, worker)
    for what, found, wanted in (
        ("actions", action, worker.action_size),
        ("proprioception", proprio, worker.proprio_size if seen else None),
    ):
        if wanted is not None and found != wanted:
            raise DataError(
                f"{name} of {config.demos} has {what} of {found} numbers, env={config.env} of {wanted}: the "
                "demonstrations must come from the robot that learns from them"
            )
    if length < 2:
        raise DataError(
            f"{name} of {config.demos} is done after {length} moment (demo_hold={config.demo_hold}), before "
            "any decision: correct when it succeeds, or leave it out by demo_offset or demo_kinds"
        )


def _check_pace(config: ImproveConfig, worker: Worker, info: EpisodeInfo) -> None:
    """Refuse one at another pace: a policy would do what it shows too fast or too slowly."""
    check_same_pace(
        f"{info.name} of {config.demos}",
        typical_step(info.stamp_ns),
        f"env={config.env}",
        worker.decision_ns,
        "make the environment as it was when they were recorded (env_args={...}), or, where it is wrong "
        "about itself, say what its step takes (step_s=SECONDS)",
    )


def _check_cameras(config: ImproveConfig, worker: Worker, info: EpisodeInfo) -> None:
    """Refuse one in which the reward model sees through other cameras than in the environment."""
    if worker.model is None:
        return
    known = worker.model.cameras if MAP in observed_parts(config) else info.cameras
    if not set(info.cameras) & set(known) & set(worker.cameras or info.cameras):
        raise DataError(
            f"{info.name} of {config.demos} has the cameras {', '.join(info.cameras) or '(none)'}, the "
            f"reward model {', '.join(worker.model.cameras)}, env={config.env} {', '.join(worker.cameras)}: "
            "they need one in common, by one name"
        )


def _looks_at_proprio(config: ImproveConfig, worker: Worker) -> bool:
    read = worker.model is not None and worker.model.checkpoint.model.config.proprio_dim > 0
    return read or bool({"proprio", "motion"} & set(observed_parts(config)))


def _names(worker: Worker, what: str) -> tuple[str, ...]:
    return tuple(getattr(worker.env.unwrapped, f"{what}_names", ()))


def _check_trained(config: ImproveConfig, worker: Worker) -> None:
    """Refuse an environment whose proprioception is not, name by name, what the reward model knows."""
    names = _names(worker, "proprio")
    trained = worker.model.checkpoint.model.config.proprio_names if worker.model is not None else ()
    if names and trained and names != trained:
        raise DataError(
            f"env={config.env} gives proprioception of {', '.join(names)}, the reward model was trained with "
            f"{', '.join(trained)}: let the environment give these, in this order"
        )


def _in_order(
    config: ImproveConfig, worker: Worker, info: EpisodeInfo, what: str, table: Float32[np.ndarray, "t n"]
) -> Float32[np.ndarray, "t p"]:
    """Proprioception or actions in the environment's order, where both have names."""
    try:
        places = columns(getattr(info, f"{what}_names"), _names(worker, what))
    except DataError as error:
        raise DataError(
            f"the numbers of {_SPELLED[what]} of {info.name} of {config.demos} are not those of "
            f"env={config.env}: {error}"
        ) from error
    return table if places is None else table[:, places]


def _length(info: EpisodeInfo, hold: int) -> int:
    """Moments up to the first at which success has lasted `hold`, or all."""
    success, known = label_success(info)
    if not known.all():
        return info.length
    lasted = np.convolve(success, np.ones(hold), "valid") >= hold
    return int(np.argmax(lasted)) + hold if lasted.any() else info.length


def _truth(info: EpisodeInfo) -> Float32[np.ndarray, " t"]:
    label = label_episode(info)
    if label is None:
        return np.full(info.length, np.nan, np.float32)
    stages = len(info.stage_names) or int(label.stage.max()) + 1
    progress = task_progress(label.stage, label.tau, equal_stage_weights(stages))
    return np.where(label.valid, progress, np.nan).astype(np.float32)


def _privileged(config: ImproveConfig, worker: Worker, reader: EpisodeReader) -> Any:
    """The simulator's state at every moment of a demonstration, from the adapter that knows how to get it."""
    if not config.privileged:
        return None
    found = import_object(config.privileged_demos)(worker.env, reader)
    if len(found) != reader.info.length:
        raise DataError(
            f"{config.privileged_demos} gives {len(found)} states for the {reader.info.length} moments of "
            f"{reader.info.name}"
        )
    return np.asarray(found, np.float32)[: _length(reader.info, config.demo_hold)]


def instruction_of(readers: Sequence[EpisodeReader]) -> str:
    """The one task of the demonstrations."""
    return readers[0].info.instruction
