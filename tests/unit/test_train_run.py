"""Which run a folder holds: options by value, and those that older versions did not have."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from robo_reward.errors import CheckpointError
from robo_reward.train.config import OptimizerConfig, TrainConfig
from robo_reward.train.run import claim_folder, is_finished


def _config(muon: float) -> TrainConfig:
    return TrainConfig(data="store", out="run", optimizer=OptimizerConfig(muon=muon))


def test_a_run_of_before_goes_on_as_it_was_trained_and_not_otherwise(tmp_path: Path) -> None:
    claim_folder(tmp_path, _config(0.0), "data")
    path = tmp_path / "train.json"
    before = json.loads(path.read_text())
    del before["config"]["optimizer"]["muon"]
    path.write_text(json.dumps(before))
    assert not is_finished(tmp_path, _config(0.0), "data")
    with pytest.raises(CheckpointError, match=r"optimizer\.muon \(0\.0, now 2\.0\)"):
        is_finished(tmp_path, _config(2.0), "data")
    with pytest.raises(CheckpointError, match="other data"):
        is_finished(tmp_path, _config(0.0), "other data")


def test_a_run_is_told_by_its_options_and_not_by_what_does_not_change_it(tmp_path: Path) -> None:
    config = _config(2.0)
    claim_folder(tmp_path, config, "data")
    assert not is_finished(tmp_path, dataclasses.replace(config, threads=1, log_every=5), "data")
    with pytest.raises(CheckpointError, match=r"seed \(0, now 1\)"):
        is_finished(tmp_path, dataclasses.replace(config, seed=1), "data")
