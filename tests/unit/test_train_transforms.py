"""How training builds its timeline transforms: each by its import path, told the tasks where it asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from robo_reward.clips import CounterfactualInstruction, TaskTransform, Timeline, Track
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.train.run import _timeline

TASKS = ("open it", "close it")


@dataclass(frozen=True)
class Elsewhere:
    """Someone's own transform, of whatever name."""

    told: tuple[str, ...] = ()

    def for_tasks(self, instructions: Sequence[str]) -> Elsewhere:
        return replace(self, told=tuple(instructions))

    def __call__(self, line: Timeline, tracks: Sequence[Track], rng: np.random.Generator) -> Timeline:
        return line


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("robo_reward.clips.Elsewhere", Elsewhere, raising=False)
    config = ModelConfig(
        encoder={"_target_": "robo_reward.model.encoders.TinyEncoder"},
        tasks=tuple(TaskConfig((text, f"please {text}"), ("a",), (1.0,)) for text in TASKS),
        cameras=("front",),
        image_size=(32, 32),
        period_s=0.1,
    )
    specs = {
        "swap": {"_target_": "robo_reward.clips.CounterfactualInstruction", "probability": 0.5},
        "own": {"_target_": "robo_reward.clips.CounterfactualInstruction", "instructions": ("dance",)},
        "elsewhere": {"_target_": "robo_reward.clips.Elsewhere"},
        "hold": {"_target_": "robo_reward.clips.Hold"},
        "off": None,
    }
    return dict(_timeline(specs, config))


def test_who_asks_for_the_tasks_is_told_them(built: dict[str, Any]) -> None:
    assert built["swap"] == CounterfactualInstruction(0.5, TASKS)
    assert built["own"].instructions == ("dance",)  # what a config says stays
    assert built["elsewhere"].told == TASKS
    assert not isinstance(built["hold"], TaskTransform)
    assert set(built) == {"swap", "own", "elsewhere", "hold"}
