"""Checkpoints come back as they were, or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import robo_reward
from robo_reward.calibration import Calibration, SuccessDetector
from robo_reward.checkpoint import (
    checkpoint_version,
    foreign_parts,
    load_checkpoint,
    save_checkpoint,
    write_atomic,
)
from robo_reward.errors import CheckpointError, ConfigError
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.onnx_stream import EXPORT_VERSION, load_onnx
from robo_reward_data.run_policy import LeRobotPolicy

CALIBRATION = Calibration(True, 1.5, 0.7, -1.0, 1.2, (0.1, 0.2), SuccessDetector(0.6, 2), 99)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [4, 4, 8, 8],
            "bottleneck": 4,
        },
        tasks=(TaskConfig(("go", "move"), ("a", "b"), (0.5, 0.5)),),
        cameras=("front",),
        image_size=(32, 48),
        period_s=0.1,
        width=16,
    )
    save_checkpoint(tmp_path / "run", ProgressModel(config), CALIBRATION, {"seed": 3})
    return tmp_path / "run"


def test_half_of_a_file_is_not_left_lying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk every try left another one, which held the space."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    killed, young = (tmp_path / f".a[1].{number}.tmp" for number in (ended.pid, ended.pid + 10**8))
    alive = tmp_path / f".a[1].{os.getppid()}.tmp"
    for path in (killed, young, alive):
        path.write_bytes(b"half")
    for path in (killed, alive):
        os.utime(path, (1, 1))
    write_atomic(tmp_path / "a[1]", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]", alive.name, young.name}
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_atomic(tmp_path / "a[1]", b"other")
    assert (tmp_path / "a[1]").read_bytes() == b"whole"
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]", alive.name, young.name}


def test_round_trip(folder: Path) -> None:
    first, second = load_checkpoint(folder), load_checkpoint(folder)
    assert first.calibration == CALIBRATION
    assert first.training == {"seed": 3}
    assert first.model.config == second.model.config
    assert first.model.config.image_size == (32, 48)
    assert first.version == second.version
    again = save_checkpoint(folder, first.model, CALIBRATION, {"seed": 3})
    assert again == first.version
    assert save_checkpoint(folder, first.model, Calibration(), {"seed": 3}) != first.version


def test_what_a_checkpoint_from_elsewhere_would_call_is_told_without_calling_it(folder: Path) -> None:
    path = folder / "model.json"
    meta = json.loads(path.read_text())
    assert foreign_parts(folder) == []
    assert checkpoint_version(folder) == meta["version"]
    for target in ("os.system", "robo_reward.checkpoint.os.system"):
        meta["model"]["instruction"] = {"_target_": target, "command": f"touch {folder / 'ran'}"}
        path.write_text(json.dumps(meta))
        assert foreign_parts(folder) == [target]
    assert not (folder / "ran").exists()


def test_the_front_door(folder: Path) -> None:
    model = robo_reward.load(folder)
    assert model.cameras == ("front",)
    assert model.instructions == ("go",)
    assert model.stage_names("move") == ("a", "b")
    with pytest.raises(ConfigError, match=r"run folder and takes no scale=2"):
        robo_reward.load(folder, scale=2)
    with pytest.raises(CheckpointError, match="no run at 'runs/none'"):
        robo_reward.load("runs/none")
    with pytest.raises(CheckpointError, match="neither a run folder nor an import path"):
        robo_reward.load("no_such_module.Model")


def test_a_damaged_export_is_named(folder: Path) -> None:
    pytest.importorskip("onnxruntime", reason="no onnxruntime here: pip install 'robo-reward[onnx]'")
    meta = json.loads((folder / "model.json").read_text())
    facts = {key: meta[key] for key in ("model", "calibration", "version")}
    facts |= {"export_version": EXPORT_VERSION, "texts": [], "memory": None}
    (folder / "reward.json").write_text(json.dumps(facts))
    (folder / "encode.onnx").write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match=r"encode\.onnx' is damaged .*: copy the export again"):
        load_onnx(folder)


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"device='gpu' is no device: choose cpu, cuda or cuda:N$"):
        load_checkpoint(folder, "gpu")
    with pytest.raises(ConfigError, match=r"device='cuda:99' cannot be used here .*device=cpu") as refusal:
        load_checkpoint(folder, "cuda:99")
    assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match="device='gpu' is no device"):
        LeRobotPolicy(folder, "gpu")


def test_damage_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'model\.json' is not there"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=rf"is not there \(there is one in '{folder}'\)"):
        load_checkpoint(folder.parent)
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(CheckpointError, match="training has not finished"):
        load_checkpoint(tmp_path)
    meta = json.loads((folder / "model.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"not the file that model\.json names"):
        load_checkpoint(folder)
    (folder / "model.json").write_text(json.dumps({**meta, "schema_version": 99}))
    with pytest.raises(CheckpointError, match="schema version 99, this package reads 2"):
        load_checkpoint(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_checkpoint(folder)
