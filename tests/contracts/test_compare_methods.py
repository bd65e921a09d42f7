"""Every method of `robo-reward compare` conforms; and the check notices one that does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from robo_reward.compare.floors import Random
from robo_reward.compare.method import MethodPrediction, TrainingData
from robo_reward.compare.split import hold_out
from robo_reward.imports import instantiate
from robo_reward.schema import EpisodeReader
from robo_reward.sources import open_sources
from robo_reward.testing import MemoryReader, check_method, toy_episode
from robo_reward.train.config import HoldoutConfig, TrainConfig, WindowConfig
from robo_reward_data.store import EpisodeStore

ELSEWHERE = {
    "server",
    "lerobot_sarm",
    "lerobot_robometer",
    "lerobot_topreward",
}  # need a model from elsewhere
METHODS = Path(__file__).resolve().parents[2] / "configs" / "method"


def specs() -> dict[str, dict[str, Any]]:
    """Every method of the config tree, by name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(METHODS.glob("*.yaml")):
        if path.stem not in ELSEWHERE:
            found |= yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """Seven episodes of two tasks, some of them failures."""
    path = tmp_path_factory.mktemp("compare") / "store"
    store = EpisodeStore.create(path)
    for index in range(7):
        reach = 0.6 if index in (3, 6) else 1.0
        text = "fill the bar" if index < 4 else "fill it again"
        store.write(toy_episode(index, length=9 + index, reach=reach, instruction=text))
    reader = {"_target_": "robo_reward_data.store.EpisodeStore.open"}
    readers, fingerprint = open_sources(reader, str(path))
    options = TrainConfig(
        data=str(path),
        out="unused",
        steps=2,
        minutes=None,
        reader=reader,
        network={
            "encoder": {
                "_target_": "robo_reward.model.encoders.TinyEncoder",
                "channels": [4, 4, 8, 8],
                "bottleneck": 4,
            },
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
        windows=WindowConfig(frames=4),
        batch_size=4,
        precision="32-true",
        accelerator="cpu",
        threads=1,
    )
    train, calibration = hold_out(readers, HoldoutConfig(), 0)
    return TrainingData(train, calibration, options, held_out=True, fingerprint=fingerprint)


@pytest.mark.parametrize("name", specs())
def test_a_method_conforms(name: str, data: TrainingData, tmp_path: Path) -> None:
    spec = specs()[name]
    episodes = [MemoryReader(toy_episode(40, length=8)), MemoryReader(toy_episode(41, length=1))]
    check_method(lambda: instantiate(spec), data, episodes, tmp_path)


def test_methods_of_one_recipe_share_what_is_fitted() -> None:
    recipes = {
        str(dict(instantiate(spec).recipe)) for name, spec in specs().items() if name.startswith("hop_")
    }
    assert len(recipes) == 1


class Peeks(Random):
    """Looks at the whole episode first."""

    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        rgb = reader.read_frames("front", np.arange(reader.info.length))
        level = rgb.mean(axis=(1, 2, 3)) / 255
        return MethodPrediction((level / level.max()).astype(np.float32))


class Zeroes(Random):
    """Says NaN without a reason."""

    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        return MethodPrediction(np.full(reader.info.length, np.nan, dtype=np.float32))


@pytest.mark.parametrize(
    ("method", "problem"),
    [(Peeks, "the method is not causal|before the rest has come"), (Zeroes, "invalid without a reason")],
)
def test_the_check_notices(method: Any, problem: str, data: TrainingData, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=re.compile(problem)):
        check_method(method, data, [MemoryReader(toy_episode(42, length=10))], tmp_path)
