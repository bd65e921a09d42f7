"""The training loop, readable top to bottom: plan, batches, loss, optimizer, average, checkpoint.

Steps are numbered and batches, drop-out and pair draws are functions of (seed, step, rank), so that a killed
run, taken up from its last state, goes through the same losses as one that was never killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robo_reward.checkpoint import write_atomic
from robo_reward.errors import CheckpointError, ConfigError, RoboRewardError
from robo_reward.train.config import OptimizerConfig, TrainConfig
from robo_reward.train.data import Batch, WindowSampler, prefetch
from robo_reward.train.gradients import FabricGradients, ShardedGradients, Terms, TrainingModule
from robo_reward.train.loss import TensorBatch, losses
from robo_reward.train.optimizer import make_optimizer, set_learning_rate
from robo_reward.train.progress import TrainingDisplay

__all__ = [
    "Objective",
    "Plan",
    "learning_rate",
    "make_fabric",
    "pinned",
    "progress_objective",
    "seed_of_rank",
    "to_tensors",
    "train_loop",
]

_MOST_SKIPPED = 20
"""Steps in a row without finite gradients: one is an accident, so many are the end of learning."""

_PROBE_STEPS = 12
_REPLAN_S = 5.0

_RANKS_APART = 2_654_435_761
"""Between the seeds of two processes; a generator on the CPU reads the lower 32 bits of a seed alone."""


_DAMAGE = (
    OSError,
    EOFError,
    UnpicklingError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What torch raises for one file or another that is cut short or has wrong bytes in it."""


@dataclass
class Plan:
    """How long to train: `steps` as asked for, or as many as fit into `seconds`, planned while running."""

    steps: int | None
    seconds: float | None
    elapsed: float = 0.0

    def done(self, step: int) -> bool:
        """True once the run is over."""
        return self.steps is not None and step >= self.steps

    def share(self, step: int) -> float:
        """How much of the run is over, in [0, 1]; 0 until there is a plan."""
        return 0.0 if self.steps is None else min(step / self.steps, 1.0)

    def replan(self, step: int, step_s: float) -> None:
        """Fit the number of steps to the seconds that are left (wall-clock runs only)."""
        if self.seconds is not None:
            self.steps = max(step + 1, step + int((self.seconds - self.elapsed) / max(step_s, 1e-6)))


@dataclass(frozen=True)
class Objective:
    """What is minimized: the weighted sum of the terms that `terms` computes.

    weights   by the name of the term; every term must have one
    repeats   False where the model draws random numbers while it computes (drop-out): it is then not
              computed in shards, whose threads would share one generator
    """

    terms: Terms
    weights: Mapping[str, float]
    repeats: bool = True

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()


def progress_objective(config: TrainConfig, dropout: float) -> Objective:
    """The objective of the progress model."""
    weights = {
        "stage": 1.0,
        "tau": 1.0,
        "progress": config.progress_weight,
        "success": config.success_weight,
        "hop": config.hop_weight,
        "other": config.other_weight,
    }
    terms = functools.partial(losses, other=config.other_weight > 0)
    return Objective(terms, weights, repeats=dropout == 0.0)


def learning_rate(config: OptimizerConfig, plan: Plan, step: int) -> float:
    """Linear warm-up over the first steps, then a cosine to zero."""
    warm = 100 if plan.steps is None else max(1, round(config.warmup * plan.steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * plan.share(step)))


def seed_of_rank(seed: int, rank: int) -> int:
    """What process `rank` seeds drop-out or pair draws with: the first with `seed`, no two of them alike."""
    return seed + _RANKS_APART * rank


def make_fabric(config: TrainConfig) -> Any:
    """Lightning Fabric with the precision that this machine does best.

    Raises:
        ConfigError: an accelerator or a device that is not there.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    precision = config.precision
    if precision == "auto":
        gpu = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        gpu = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        # A step in bfloat16 took 0.6 of the time on one CPU, and 1.3 times as long on another, which has
        # AVX-512's dot products of bfloat16 but no matrix tiles (AMX): those alone do not pay.
        fast = gpu or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
        precision = "bf16-mixed" if fast else "32-true"
    devices = config.devices if isinstance(config.devices, int) else list(config.devices)
    try:
        return Fabric(accelerator=config.accelerator, devices=devices, precision=precision)  # pyright: ignore[reportArgumentType]
    except (RuntimeError, ValueError, TypeError, MisconfigurationException) as error:
        raise ConfigError(
            f"accelerator={config.accelerator} with devices={devices}: {error}; accelerator=cpu "
            "trains on the CPU, robo-reward doctor says what there is"
        ) from error


def pinned(batch: Batch, device: torch.device) -> TensorBatch:
    """A batch in memory that the device, if it is a GPU, reads by itself: nothing waits for its copy."""
    if device.type != "cuda":
        return _each(batch, lambda tensor: tensor)
    with torch.cuda.device(device):  # a thread begins on the first GPU, which may be another run's
        return _each(batch, Tensor.pin_memory)


def to_tensors(batch: Batch | TensorBatch, device: torch.device) -> TensorBatch:
    """A batch on the device."""
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _each(batch: Batch | TensorBatch, change: Callable[[Tensor], Tensor]) -> TensorBatch:
    values: dict[str, Any] = {
        field.name: change(torch.as_tensor(value))
        if isinstance(value := getattr(batch, field.name), np.ndarray | Tensor)
        else value
        for field in fields(batch)
    }
    return TensorBatch(**values)


def train_loop[Model: nn.Module](
    config: TrainConfig,
    model: Model,
    sampler: WindowSampler,
    fabric: Any,
    folder: Path,
    plan: Plan,
    objective: Objective,
) -> Model:
    """Train until the plan is done; returns the averaged model, on the device that trained it, in eval mode.

    `folder` receives `state.pt` (for resuming) and TensorBoard events.
    """
    keep_freed_memory()
    average = AveragedModel(model, multi_avg_fn=_warm_average(config.optimizer.ema))
    optimizer = make_optimizer(model, config.optimizer, tunes_backbone=config.tunes_backbone)
    state_path = folder / "state.pt"
    module, optimizer = fabric.setup(TrainingModule(model, objective.terms), optimizer)
    average.to(fabric.device)
    # After set-up, so that optimizer state lands on the device that the parameters moved to.
    step = load_state(state_path, model, average, optimizer, plan) if state_path.is_file() else 0
    begun = time.monotonic()
    started = begun - plan.elapsed
    saved = planned = begun
    planned_step = step
    skipped = 0
    # A wall-clock run has no last step to prefetch up to: it ends when its plan says so.
    stop = plan.steps if plan.seconds is None and plan.steps is not None else 1 << 40
    rank = fabric.global_rank

    def make(step: int) -> TensorBatch:
        return pinned(sampler.batch(config.batch_size, config.seed, step, rank), fabric.device)

    with (
        contextlib.closing(make_gradients(fabric, model, module, objective)) as gradients,
        TrainingDisplay(folder, enabled=fabric.is_global_zero) as display,
    ):
        for batch in prefetch(make, step, stop, config.loaders):
            lr = learning_rate(config.optimizer, plan, step)
            set_learning_rate(optimizer, lr)
            torch.manual_seed(seed_of_rank(config.seed * 1_000_003 + step, rank))
            terms = gradients(to_tensors(batch, fabric.device), seed_of_rank(step, rank))
            norm = fabric.clip_gradients(
                module, optimizer, max_norm=config.optimizer.clip, error_if_nonfinite=False
            )
            if bool(torch.isfinite(norm)):
                optimizer.step()
                skipped = 0
            else:
                skipped += 1
                _check_learning(config, step, skipped)
            optimizer.zero_grad(set_to_none=True)
            average.update_parameters(model)
            step += 1
            now = time.monotonic()
            plan.elapsed = now - started
            if _replan_due(fabric.world_size, step - planned_step, now - planned):
                plan.replan(step, (now - planned) / (step - planned_step))
                plan.steps = fabric.broadcast(plan.steps)
                planned, planned_step = now, step
            if step % config.log_every == 0 or plan.done(step):
                values = {name: float(value) for name, value in terms.items()}
                display.log(step, plan, lr, float(objective.total(terms)), values, float(norm))
            if fabric.is_global_zero and now - saved > config.checkpoint_every_s and not skipped:
                save_state(state_path, step, model, average, optimizer, plan)
                saved = now
            if plan.done(step):
                break
    finite = all(bool(torch.isfinite(weights).all()) for weights in average.parameters())
    if not finite or skipped > 0.5 * step:
        _check_learning(config, step, _MOST_SKIPPED)
    if fabric.is_global_zero:
        save_state(state_path, step, model, average, optimizer, plan)
    return cast("Model", average.module).eval()


def _check_learning(config: TrainConfig, step: int, skipped: int) -> None:
    """One step without finite gradients is left out; where many are, in a row, nothing is learned any more.

    Raises:
        RoboRewardError: and nothing of it is saved.
    """
    if skipped >= _MOST_SKIPPED:
        raise RoboRewardError(
            f"after {step} steps loss, gradients or weights are not finite: learning has diverged, and "
            "nothing of it is saved; delete its folder and begin anew with a smaller optimizer.lr (it is "
            f"{config.optimizer.lr}) or smaller weights of the losses"
        )


def _replan_due(processes: int, steps: int, seconds: float) -> bool:
    """By the clock for one process; by the step, which all agree on, for several."""
    if processes > 1:
        return steps >= 4 * _PROBE_STEPS
    return steps >= _PROBE_STEPS and seconds > _REPLAN_S


def make_gradients(
    fabric: Any, model: nn.Module, module: nn.Module, objective: Objective
) -> FabricGradients | ShardedGradients:
    """Shards on threads for a single CPU process, Fabric for everything else.

    Drop-out draws from one generator for all threads: sharded, a model that has it would not repeat itself.
    """
    alone = fabric.device.type == "cpu" and fabric.world_size == 1
    if alone and objective.repeats:
        return ShardedGradients(fabric, model, objective.terms, objective.total, torch.get_num_threads())
    return FabricGradients(fabric, module, objective.total)


def _warm_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Exponential average whose memory grows from nothing, so that short runs do not remember their start."""

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        warm = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), 1.0 - warm)
            else:
                average.copy_(value)

    return update


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of returning them to the kernel after every operation.

    Each step allocates the same activations again; without this, mapping fresh pages for them took a quarter
    of the time of a CPU training step. Does nothing where there is no glibc.
    """
    mmap_threshold, trim_threshold = -3, -1  # parameters of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def save_state(
    path: Path, step: int, model: nn.Module, average: nn.Module, optimizer: Any, plan: Plan
) -> None:
    """Everything that resuming needs, written atomically."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plan": {"steps": plan.steps, "elapsed": plan.elapsed},
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path, model: nn.Module, average: nn.Module, optimizer: Any, plan: Plan) -> int:
    """Restore a saved state; returns the step to go on from.

    Raises:
        CheckpointError: a file that is damaged, or the state of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        plan.elapsed = float(state["plan"]["elapsed"])
        if plan.seconds is not None:
            plan.steps = state["plan"]["steps"]
        return int(state["step"])
    except (torch.OutOfMemoryError, PermissionError):  # nothing is wrong with the file
        raise
    except _DAMAGE as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"'{path}', from which the run would go on, cannot be used ({why}): delete this file to begin "
            "the run again"
        ) from error
