"""The reward model learns from the outcomes of rollouts, and every stored episode is relabelled by it.

The encoder stays as it is, so the embeddings that rollouts store stay true: what is trained are the temporal
trunk and the heads, on states that have been computed once. Targets come from outcomes alone: success is what
the success source said; progress of a success is what the model said of it, made to rise and to end at 1;
progress of a failure is what the model said of it, but no more than `_CEILING`. Truth is never used.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from robo_reward.api import RewardModel, load
from robo_reward.checkpoint import Checkpoint, save_checkpoint
from robo_reward.estimate import Estimates, Moments, Tracker, raw_progress
from robo_reward.improve.rollouts import Rollout
from robo_reward.model.progress_model import Prediction, ProgressModel
from robo_reward.offline import episode_context

__all__ = ["outcome_targets", "refresh", "relabel"]

_CEILING = 0.9
_TRAINED = ("join", "trunk", "stage_head", "tau_head", "success_head", "no_first", "no_goal", "proprio")


def outcome_targets(rollout: Rollout) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
    """Progress and success that the outcome speaks for; progress is NaN where nothing was said."""
    progress = rollout.progress.astype(np.float64)
    if not rollout.succeeded:
        return np.minimum(progress, _CEILING), rollout.success.astype(np.float64)
    known = np.isfinite(progress)
    target = progress.copy()
    risen = _isotonic(progress[known])
    if len(risen):
        span = max(risen[-1] - risen[0], 1e-6)
        target[known] = risen[0] + (risen - risen[0]) / span * (1.0 - risen[0])
    target[-1] = 1.0
    return target, rollout.success.astype(np.float64)


def _isotonic(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """The nearest sequence that never falls, by pooling adjacent violators."""
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            other, weight = pools.pop()
            mean, count = (mean * count + other * weight) / (count + weight), count + weight
        pools.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in pools] or [np.empty(0)])


def refresh(
    model: RewardModel, rollouts: Sequence[Rollout], instruction: str, steps: int, folder: Path, seed: int
) -> RewardModel:
    """The model after some steps on the outcomes of these rollouts, saved into `folder`."""
    checkpoint = model.checkpoint
    network = copy.deepcopy(checkpoint.model)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in _TRAINED)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, 3e-4)
    rng = np.random.default_rng(seed)
    temperature = checkpoint.calibration.stage_temperature
    for _ in range(steps):
        rollout = rollouts[int(rng.integers(len(rollouts)))]
        prediction, task = _predict(network, rollout, instruction)
        progress, success = (torch.from_numpy(x).float() for x in outcome_targets(rollout))
        _, _, mean, _ = raw_progress(network, prediction, task, temperature)
        error = torch.where(progress.isfinite(), (mean - progress.nan_to_num()) ** 2, 0.0).mean()
        detection = binary_cross_entropy_with_logits(prediction.success_logit, success)
        optimizer.zero_grad(set_to_none=True)
        (10.0 * error + 0.3 * detection).backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    training = {**checkpoint.training, "refreshed_from": checkpoint.version, "rollouts": len(rollouts)}
    save_checkpoint(folder, network, checkpoint.calibration, training)
    return load(folder)


def relabel(model: RewardModel, episode: Rollout, instruction: str) -> Rollout:
    """A whole episode with what this model says of it: potentials of two versions never meet."""
    with torch.inference_mode():
        found = _estimates(model.checkpoint, episode, instruction)
    parts = dict(episode.parts)
    if "estimate" in parts:
        said = np.concatenate(
            [found.progress[:, None], found.success_prob[:, None], found.stage_probs], axis=1
        )[:, : parts["estimate"].shape[1]]
        parts["estimate"] = np.where(np.isfinite(said), said, parts["estimate"]).astype(np.float32)
    # A moment that the first model could not see is still unseen: its stored state is only a held one.
    seen = np.isfinite(episode.progress)
    return dataclasses.replace(
        episode,
        parts=parts,
        progress=_where(seen, found.progress),
        std=_where(seen, found.std),
        model_version=model.version,
    )


def _where(seen: np.ndarray, values: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    return np.where(seen, values, np.nan).astype(np.float32)


def _estimates(checkpoint: Checkpoint, episode: Rollout, instruction: str) -> Estimates:
    """What a stream would have said of the episode, fused as the calibration says."""
    moments, before = _moments(checkpoint.model, episode, instruction)
    tracker = Tracker(checkpoint.model, checkpoint.calibration, 1)
    found = tracker.estimates(moments, [""] * moments.live.shape[1])
    return Estimates(**{f.name: getattr(found, f.name)[before:] for f in dataclasses.fields(found)})


def _predict(network: ProgressModel, episode: Rollout, instruction: str) -> tuple[Prediction, Tensor]:
    """What the network says of every moment, and the task of each."""
    moments, before = _moments(network, episode, instruction)
    found = moments.prediction
    flat = Prediction(*(x[0, before:] for x in (found.stage_logits, found.tau_logits, found.success_logit)))
    return flat, moments.context.task.expand(len(episode.embedding))


def _moments(network: ProgressModel, episode: Rollout, instruction: str) -> tuple[Moments, int]:
    """Every moment from the stored states, and how many come before those of the episode.

    A rollout that began at a moment of an earlier one was shown the first images of that one just before.
    """
    before = 1 if episode.source.get("started_after") else 0
    state = np.concatenate([episode.first[None]] * before + [episode.embedding])
    stamp = episode.stamp_ns - episode.stamp_ns[0]
    stamp = np.concatenate([-stamp[1:2]] * before + [stamp])
    live = np.concatenate([[True]] * before + [np.isfinite(episode.progress)])
    context = episode_context(network, torch.from_numpy(episode.first)[None], instruction)
    proprio = None
    if network.config.proprio_dim:
        proprio = np.concatenate([episode.proprio[:1]] * before + [episode.proprio])
    found = network(
        torch.from_numpy(state)[None],
        context,
        torch.from_numpy(stamp * 1e-9)[None],
        torch.from_numpy(live)[None],
        None if proprio is None else torch.from_numpy(proprio)[None],
    )
    moments = Moments(
        prediction=found,
        state=torch.from_numpy(state)[None],
        context=context,
        time_s=stamp[None] * 1e-9,
        live=live[None],
        # Which cameras were there is not kept: as many as the model knows.
        views=np.full((1, len(live)), len(network.config.cameras), dtype=np.int64),
    )
    return moments, before
