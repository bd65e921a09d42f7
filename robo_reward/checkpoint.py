"""Checkpoints: `model.safetensors` beside `model.json`, with a schema version, loaded strictly."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from robo_reward.calibration import Calibration
from robo_reward.errors import CheckpointError, ConfigError
from robo_reward.imports import import_object
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import ProgressModel

__all__ = [
    "SCHEMA_VERSION",
    "Checkpoint",
    "check_device",
    "checkpoint_version",
    "foreign_parts",
    "load_checkpoint",
    "save_checkpoint",
    "self_contained",
    "write_atomic",
]

_BEING_WRITTEN_S = 60.0
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """A model and what it needs to run: calibration, and facts about its training (JSON types).

    version is a digest of the weights and the calibration: two different models never share it.
    """

    model: ProgressModel
    calibration: Calibration
    training: dict[str, Any] = field(default_factory=dict)
    version: str = ""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a killed process leaves the old one or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if _is_left_over(other):  # it may be what fills the disk
            other.unlink(missing_ok=True)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_left_over(temporary: Path) -> bool:
    """Whether a process that was killed left this half of a file: none of its number runs here.

    On a shared disk it may be another machine's, which writes to it now.
    """
    process = temporary.suffixes[-2][1:]
    try:
        if time.time() - temporary.stat().st_mtime < _BEING_WRITTEN_S:
            return False
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, ValueError):
        return False
    return False


def save_checkpoint(
    folder: Path, model: ProgressModel, calibration: Calibration, training: dict[str, Any]
) -> str:
    """Write a checkpoint into `folder`; returns its version.

    The JSON goes last: a folder with a `model.json` has the weights that its digest names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    weights = save(state)
    digest = hashlib.sha256(weights)
    digest.update(json.dumps(calibration.to_json(), sort_keys=True).encode())
    if model.config.still:  # learned with the calibration, and changes what streams say
        digest.update(json.dumps(dict(model.config.still), sort_keys=True).encode())
    meta = {
        "schema_version": SCHEMA_VERSION,
        "version": digest.hexdigest()[:12],
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "model": self_contained(model.config.to_json()),
        "calibration": calibration.to_json(),
        "training": training,
    }
    write_atomic(folder / "model.safetensors", weights)
    write_atomic(folder / "model.json", json.dumps(meta, indent=1).encode())
    return str(meta["version"])


def self_contained(config: dict[str, Any]) -> dict[str, Any]:
    """A model's config without where the encoder's first weights came from: what is saved holds them now."""
    accepted = signature(import_object(str(config["encoder"]["_target_"]))).parameters
    origin = {"pretrained": False, "weights": None}
    known = {key: value for key, value in origin.items() if key in accepted}
    return {**config, "encoder": {**config["encoder"], **known}}


def load_checkpoint(folder: Path | str, device: str = "cpu") -> Checkpoint:
    """Load a checkpoint in eval mode.

    Raises:
        CheckpointError: no checkpoint there, unreadable, of another schema version, or weights that are not
            those its metadata names.
        ConfigError: a device that is none, or that this machine does not have.
    """
    check_device(device)
    folder = Path(folder)
    path, meta = folder / "model.json", _read_meta(folder)
    found = meta.get("schema_version")
    if found != SCHEMA_VERSION:
        raise CheckpointError(
            f"'{path}' has schema version {found}, this package reads {SCHEMA_VERSION}: "
            "install the package version that wrote it, or train again"
        )
    model = ProgressModel(ModelConfig.from_json(meta["model"]))
    weights = folder / "model.safetensors"
    _load_weights(model, weights, str(meta["weights_sha256"]))
    return Checkpoint(
        model=_move(model, device).eval().requires_grad_(False),
        calibration=Calibration.from_json(meta["calibration"]),
        training=meta["training"],
        version=str(meta["version"]),
    )


def checkpoint_version(folder: Path | str) -> str:
    """The version of the checkpoint in a folder, without its weights.

    Raises:
        CheckpointError: no checkpoint there, or unreadable.
    """
    return str(_read_meta(Path(folder)).get("version", ""))


def foreign_parts(folder: Path | str) -> list[str]:
    """Import paths outside this package that loading the checkpoint in a folder would call.

    A checkpoint names its encoder by import path, with arguments: one from elsewhere may name anything.

    Raises:
        CheckpointError: no checkpoint there, or unreadable.
    """
    model = _read_meta(Path(folder)).get("model", {})
    named = [str(model[part]["_target_"]) for part in ("encoder", "instruction") if model.get(part)]
    # By where the thing is defined: robo_reward.x.os.system is no part of this package.
    return [path for path in named if not _is_own(path)]


def _is_own(path: str) -> bool:
    if path.replace(":", ".").split(".")[0] != "robo_reward":
        return False
    return str(getattr(import_object(path), "__module__", "")).split(".")[0] == "robo_reward"


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    if not path.is_file():
        raise CheckpointError(f"no model at '{folder}': '{path.name}' is not there{_hint(folder)}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"'{path}' is not JSON ({error}): copy the run again") from error


def _hint(folder: Path) -> str:
    """Where the model that was meant may be."""
    if (folder / "train.json").is_file():
        return " (training has not finished: run the same train command again)"
    inside = sorted(path.parent for path in folder.glob("*/model.json"))
    return f" (there is one in '{inside[0]}')" if inside else ""


def check_device(device: str) -> None:
    """Refuse a name that is no device of torch, which would answer with all kinds that it was ever built for.

    Raises:
        ConfigError: such a name.
    """
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device='{device}' is no device: choose cpu, cuda or cuda:N") from error


def _move(model: ProgressModel, device: str) -> ProgressModel:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts that it has it
        why = str(error).partition("\n")[0]
        raise ConfigError(f"device='{device}' cannot be used here ({why}): choose device=cpu") from error


def _load_weights(model: ProgressModel, path: Path, sha256: str) -> None:
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise CheckpointError(f"'{path}' is not the file that model.json names: copy the run again")
        model.load_state_dict(load_file(path))
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error}") from error
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' does not fit its model.json: {error}") from error
