"""What a person sees while training: a progress bar, log lines where there is no terminal, TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from robo_reward.train.loop import Plan

__all__ = ["TrainingDisplay"]


class TrainingDisplay:
    """A context manager; `log` is the only call."""

    def __init__(self, folder: Path, enabled: bool) -> None:
        self._enabled = enabled
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not enabled or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=1.0, note="")
        self._folder = folder
        self._writer: Any = None
        self._printed = time.monotonic()

    def __enter__(self) -> TrainingDisplay:
        if self._enabled:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder / "tensorboard"))
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def log(
        self, step: int, plan: Plan, lr: float, loss: float, terms: dict[str, float], norm: float
    ) -> None:
        """Record one step."""
        if not self._enabled:
            return
        for name, value in {"loss": loss, "lr": lr, "gradient_norm": norm, **terms}.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        note = f"step {step}/{plan.steps or '?'} loss {loss:.3f}"
        if "progress" in terms:
            note += f" progress {terms['progress']:.3f}"
        self._bar.update(self._task, completed=plan.share(step), note=note)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._printed > 15 or plan.done(step)):
            self._printed = now
            left = plan.elapsed / max(plan.share(step), 1e-6) * (1.0 - plan.share(step))
            self._console.print(f"train: {note} elapsed {plan.elapsed:.0f} s, about {left:.0f} s left")
