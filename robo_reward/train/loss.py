"""The training objective, term by term."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from robo_reward.model.heads import bootstrap_mask
from robo_reward.model.progress_model import Context, Prediction, ProgressModel

__all__ = ["TensorBatch", "losses", "two_hot"]


@dataclass(frozen=True)
class TensorBatch:
    """`robo_reward.train.data.Batch` as tensors on the model's device."""

    rgb: Tensor
    mask: Tensor
    camera: Tensor
    time_s: Tensor
    moment_mask: Tensor
    stage: Tensor
    tau: Tensor
    labelled: Tensor
    ceiling: Tensor
    success: Tensor
    success_known: Tensor
    proprio: Tensor
    texts: tuple[str, ...]
    task: Tensor
    first_progress: Tensor
    episode: Tensor
    apart: Tensor
    off_task: Tensor


def two_hot(value: Float[Tensor, "*shape"], grid: Float[Tensor, " m"]) -> Float[Tensor, "*shape m"]:
    """Weights on the two grid points around a value such that their mean is the value; the grid is even."""
    step = grid[1] - grid[0]
    position = ((value - grid[0]) / step).clamp(0, len(grid) - 1)
    return (1.0 - (position[..., None] - torch.arange(len(grid), device=value.device)).abs()).clamp(min=0.0)


def predict(model: ProgressModel, batch: TensorBatch) -> tuple[Prediction, Tensor, Context]:
    """Predictions, states z f32[b, t, d] and context of a batch of windows."""
    count = batch.time_s.shape[1]
    rgb = batch.rgb.transpose(1, 2)
    mask = batch.mask.transpose(1, 2)
    camera = batch.camera[:, None].expand(mask.shape)
    known = mask[:, count : count + 1]
    memory = model.remember(rgb[:, count : count + 1], known)
    state, _ = model.fuse(model.encode(rgb, camera, mask, memory, known), camera, mask)
    seen = mask.any(dim=-1)
    context = Context(
        first=state[:, count],
        first_mask=seen[:, count],
        goal=state[:, count + 1],
        goal_mask=seen[:, count + 1],
        text=model.embed_text(batch.texts),
        task=batch.task,
    )
    moments = state[:, :count]
    live = batch.moment_mask & seen[:, :count]
    told = model(moments, context, batch.time_s, _together(batch, live), _proprio(model, batch))
    return told, moments, context


def _together(batch: TensorBatch, live: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    """Moments that know of those before them: one that is not `live` is seen by itself alone."""
    return live & ~batch.apart[:, None]


def _proprio(model: ProgressModel, batch: TensorBatch) -> Tensor | None:
    return batch.proprio if model.config.proprio_dim else None


def losses(model: ProgressModel, batch: TensorBatch, seed: int, *, other: bool = True) -> dict[str, Tensor]:
    """Mean loss of each term over the moments that have its label (and, of heads, over their episodes).

    stage     cross-entropy; where only a ceiling is known, minus the log of the probability at or below it
    tau       cross-entropy to the two-hot tau, in the true stage
    progress  Huber loss (delta 0.05) of the mean of the joint distribution against true progress
    success   binary cross-entropy
    hop       cross-entropy to the two-hot hop, over pairs inside the window, anchor to now, and now to goal;
              pairs are weighted so that small hops, which are the many, do not drown the rest
    other     stage, tau and success of the same moments told another task's instruction: progress 0, no
              success (RoboReward's counterfactual); absent where it is not asked for, and with one task
    """
    prediction, state, context = predict(model, batch)
    live = batch.moment_mask & batch.mask[:, :, : batch.stage.shape[1]].any(dim=1)
    labelled = (batch.labelled & live).float()
    heads = model.config.ensemble
    bootstrap = bootstrap_mask(batch.episode, heads)
    taught = labelled[..., None] * bootstrap
    stage = batch.stage[..., None].expand(*batch.stage.shape, heads)
    stage_loss = functional.cross_entropy(
        prediction.stage_logits.flatten(0, 2), stage.flatten(), reduction="none"
    ).view_as(taught)
    bounded = (live & (batch.ceiling >= 0) & ~batch.labelled).float()
    below = _below(prediction.stage_logits, batch.ceiling)
    chosen = stage[..., None, None].expand(*stage.shape, 1, model.config.tau_bins)
    tau_logits = prediction.tau_logits.gather(-2, chosen)[..., 0, :]
    tau = two_hot(batch.tau, model.tau_values)[..., None, :].expand_as(tau_logits)
    tau_loss = functional.cross_entropy(
        tau_logits.flatten(0, 2), tau.flatten(0, 2), reduction="none"
    ).view_as(taught)
    tasks = batch.task[:, None].expand(batch.stage.shape)
    joint = prediction.stage_logits.softmax(-1)[..., None] * prediction.tau_logits.softmax(-1)
    mean = (joint * model.progress_support(tasks)[..., None, :, :]).sum(dim=(-1, -2))
    truth = true_progress(model, batch)
    each = truth[..., None].expand_as(mean)
    progress_loss = functional.huber_loss(mean, each, reduction="none", delta=0.05) / 0.05
    success_loss = functional.binary_cross_entropy_with_logits(
        prediction.success_logit, batch.success, reduction="none"
    )
    known = (batch.success_known & live).float()
    # Hops are read from pictures alone: told another task's instruction, the same pair would be none.
    paired = labelled * (~batch.off_task)[:, None]
    terms = {
        "stage": _mean(
            torch.where(bounded[..., None] > 0, below, stage_loss), taught + bounded[..., None] * bootstrap
        ),
        "tau": _mean(tau_loss, taught),
        "progress": _mean(progress_loss, taught),
        "success": _mean(success_loss, known),
        "hop": _hop_loss(model, state, context, truth, batch.first_progress, paired, seed),
    }
    if other and len(model.config.tasks) > 1:
        terms["other"] = _other_task_loss(model, state, context, batch, live, seed)
    return terms


def _other_task_loss(
    model: ProgressModel, state: Tensor, context: Context, batch: TensorBatch, live: Tensor, seed: int
) -> Tensor:
    """Minus the log probabilities of "at the very start" and "not done" under another task's instruction.

    States do not depend on the instruction, so that this costs a pass of the trunk, not of the encoder, and
    every window is told a wrong one beside its own.
    """
    tasks = model.config.tasks
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(1, len(tasks), (len(batch.task),), generator=generator).to(batch.task.device)
    task = (batch.task + shift) % len(tasks)
    wording = torch.randint(1 << 30, (len(batch.task),), generator=generator).tolist()
    texts = [
        tasks[index].instructions[word % len(tasks[index].instructions)]
        for index, word in zip(task.tolist(), wording, strict=True)
    ]
    told = replace(context, text=model.embed_text(texts), task=task)
    prediction = model(state, told, batch.time_s, _together(batch, live), _proprio(model, batch))
    in_first = prediction.stage_logits.log_softmax(-1)[..., 0]
    at_start = prediction.tau_logits[..., 0, :].log_softmax(-1)[..., 0]
    not_done = functional.softplus(prediction.success_logit)
    # A window that is told another task already might be told its own by this.
    weight = (live & ~batch.off_task[:, None]).float()
    bootstrap = bootstrap_mask(batch.episode, model.config.ensemble)
    return _mean(-in_first - at_start, weight[..., None] * bootstrap) + _mean(not_done, weight)


def _below(logits: Float[Tensor, "b t e k"], ceiling: Int[Tensor, "b t"]) -> Float[Tensor, "b t e"]:
    """Minus the log of the probability of the stages up to the ceiling."""
    above = torch.arange(logits.shape[-1], device=logits.device) > ceiling[..., None].clamp(min=0)
    log_probs = logits.float().log_softmax(-1)
    return -log_probs.masked_fill(above[:, :, None], -torch.inf).logsumexp(-1)


def true_progress(model: ProgressModel, batch: TensorBatch) -> Float[Tensor, "b t"]:
    """Task progress from stage and tau labels."""
    weights = model.stage_weights[batch.task]
    before = weights.cumsum(dim=-1) - weights
    return before.gather(1, batch.stage) + weights.gather(1, batch.stage) * batch.tau


def _hop_loss(
    model: ProgressModel,
    state: Tensor,
    context: Context,
    truth: Tensor,
    first_progress: Tensor,
    labelled: Tensor,
    seed: int,
) -> Tensor:
    size, count = truth.shape
    generator = torch.Generator().manual_seed(seed)
    other = torch.stack([torch.randperm(count, generator=generator) for _ in range(size)]).to(truth.device)
    start = torch.gather(state, 1, other[..., None].expand_as(state))
    pairs = [(start, state, truth.gather(1, other), truth, labelled * labelled.gather(1, other))]
    first = context.first[:, None].expand_as(state)
    first_phi = first_progress.nan_to_num()[:, None].expand_as(truth)
    has_first = labelled * (context.first_mask & first_progress.isfinite())[:, None]
    pairs.append((first, state, first_phi, truth, has_first))
    goal = context.goal[:, None].expand_as(state)
    has_goal = labelled * context.goal_mask[:, None]
    pairs.append((state, goal, truth, torch.ones_like(truth), has_goal))
    pairs.append((goal, state, torch.ones_like(truth), truth, has_goal))
    begin, end, from_phi, to_phi, weight = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    change = to_phi - from_phi
    room = torch.where(change >= 0, 1.0 - from_phi, from_phi).clamp(min=1e-6)
    hops = (change / room).clamp(-1.0, 1.0)
    loss = functional.cross_entropy(
        model.hop_logits(begin, end).flatten(0, 1),
        two_hot(hops, model.hop_values).flatten(0, 1),
        reduction="none",
    ).view_as(hops)
    return _mean(loss, weight * _balance(hops, weight > 0, model.config.hop_bins))


def _balance(value: Tensor, mask: Bool[Tensor, "*shape"], bins: int) -> Float[Tensor, "*shape"]:
    """Inverse square root of how often each value's bin occurs in the batch."""
    index = ((value + 1.0) / 2.0 * (bins - 1)).round().long()
    counts = torch.bincount(index[mask], minlength=bins).float().clamp(min=1.0)
    return counts[index].rsqrt()


def _mean(loss: Tensor, weight: Tensor) -> Tensor:
    return (loss * weight).sum() / weight.sum().clamp(min=1e-6)
