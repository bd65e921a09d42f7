"""What a person sees while a policy improves: success, rollouts, time left; and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["ImproveDisplay"]


class ImproveDisplay:
    """A context manager: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, folder: Path, total: int, done: int, title: str) -> None:
        """Show `total` rollouts, of which `done` are there already."""
        self._console = Console(stderr=True)
        self._total, self._first, self._title = total, done, title
        self._folder, self._writer = folder, None
        self._begin = self._printed = time.monotonic()
        self._bar = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> ImproveDisplay:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._first)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, highlight=False, markup=False)

    def rollout(
        self, index: int, recent: float, evaluated: float | None, numbers: Mapping[str, float]
    ) -> None:
        """Rollout `index`, counted from 0, has been run and learned from."""
        assert self._writer is not None
        for name, value in {"recent_success": recent, **numbers}.items():
            self._writer.add_scalar(f"improve/{name}", value, index)
        done = index + 1
        now = time.monotonic()
        left = (now - self._begin) / max(done - self._first, 1) * (self._total - done)
        judged = "" if evaluated is None else f", evaluated {evaluated:.2f}"
        note = f"success {recent:.2f} of the last {min(done, 20)}{judged}, about {left / 60:.1f} min left"
        self._bar.update(self._task, completed=done, note=note)
        if not self._console.is_terminal and (now - self._printed > 15 or done == self._total):
            self._printed = now
            self.say(f"{self._title}: {done}/{self._total} rollouts, {note}")

    def evaluation(self, rollouts: int, success: float) -> None:
        """The policy has been judged without noise after so many rollouts."""
        assert self._writer is not None
        self._writer.add_scalar("improve/evaluated_success", success, rollouts)
