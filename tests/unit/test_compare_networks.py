"""Networks that methods of a comparison train: kept so that they load anywhere, trained on the card named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robo_reward.compare.method import Budget, TrainingData
from robo_reward.compare.networks import Network, load_network, save_network
from robo_reward.compare.regression import IndexRegression
from robo_reward.compare.run import CompareConfig, _is_fitted, _options, _workdir
from robo_reward.errors import ConfigError
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.encoders import Backbone
from robo_reward.model.progress_model import ProgressModel
from robo_reward.train.config import OptimizerConfig
from robo_reward.train.loop import make_fabric

NAME = "torchvision/resnet18"


def build(config: ModelConfig) -> Network:
    return Network(ProgressModel(config), {"progress": nn.Linear(config.width, 1)})


@pytest.mark.parametrize("of_before", [False, True])
def test_a_trained_network_loads_where_its_first_weights_are_gone(of_before: bool, tmp_path: Path) -> None:
    """Its file may have moved, or a robot have no network to fetch published ones."""
    first = tmp_path / "first.pt"
    torch.save(Backbone((32, 32), 16, 16, NAME, pretrained=False).body.state_dict(), first)
    encoder = {"_target_": "robo_reward.model.encoders.Backbone", "name": NAME, "weights": str(first)}
    encoder["pretrained"] = True
    task = TaskConfig(("go",), ("a", "b"), (0.5, 0.5))
    network = build(ModelConfig(encoder, (task,), ("front",), image_size=(32, 32), period_s=0.1, width=16))
    save_network(network, tmp_path)
    assert _is_fitted(tmp_path), "nothing is built anew from its config, to see whether it can be"
    meta = json.loads((tmp_path / "network.json").read_text())
    assert (meta["config"]["encoder"]["pretrained"], meta["config"]["encoder"]["weights"]) == (False, None)
    if of_before:
        meta["config"]["encoder"] = encoder
        (tmp_path / "network.json").write_text(json.dumps(meta))
    first.unlink()
    found = load_network(build, tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


def comparison(**options: Any) -> CompareConfig:
    return CompareConfig(train="a", test="b", out="out", methods={"floor": {}}, **options)


def shared(config: CompareConfig) -> TrainingData:
    return TrainingData((), (), _options(config), held_out=True, fingerprint="data")


@pytest.mark.parametrize(
    ("device", "accelerator", "devices"),
    [("cpu", "cpu", 1), ("cuda", "gpu", 1), ("cuda:0", "gpu", [0]), ("cuda:1", "gpu", [1])],
)
def test_training_runs_on_the_card_that_is_named(
    device: str, accelerator: str, devices: int | list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cuda:1` trained on the first card."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr("lightning_fabric.Fabric", lambda **given: asked.update(given))
    data = shared(comparison(device=device))
    make_fabric(data.options)
    assert (asked["accelerator"], asked["devices"]) == (accelerator, devices)
    assert data.device == device


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="device='gpu1' is no device: choose cpu, cuda or cuda:N"):
        shared(comparison(device="gpu1"))


def test_what_was_fitted_is_found_again_whatever_does_not_change_it() -> None:
    def place(data: TrainingData, config: CompareConfig) -> str:
        return _workdir(config, IndexRegression(), data, Budget(2, None)).name

    plain = comparison()
    known = place(shared(plain), plain)
    for options in ({"device": "cuda"}, {"device": "cuda:1"}, {"threads": 2}):
        other = comparison(**options)
        assert place(shared(other), other) == known
    data = shared(plain)
    loaded = dataclasses.replace(data, options=dataclasses.replace(data.options, loaders=3))
    assert place(loaded, plain) == known
    # The learning rate of a pretrained backbone matters where one learns.
    fast = comparison(optimizer=OptimizerConfig(backbone_lr=0.1))
    assert place(shared(fast), fast) == known
    learning = {"network": {"encoder": {"_target_": "robo_reward.model.encoders.Backbone", "frozen": False}}}
    slow, fast = comparison(**learning), comparison(**learning, optimizer=OptimizerConfig(backbone_lr=0.1))
    assert len({known, place(shared(slow), slow), place(shared(fast), fast)}) == 3
