"""Whose folder it is: a run that is killed and started again goes on, and no run goes on with another's."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robo_reward.checkpoint import write_atomic
from robo_reward.errors import CheckpointError
from robo_reward.train.config import TrainConfig

__all__ = ["check_held_out", "claim_folder", "is_finished"]

_RUN_FILE = "train.json"
_ROOM_BYTES = 200e6


def is_finished(folder: Path, config: TrainConfig, fingerprint: str, own: str) -> bool:
    """True where `folder` holds this very run, finished; False where it may be begun or gone on with.

    Args:
        folder: of the run.
        config: its options.
        fingerprint: of all that it learns from; `own` of what it is about, without what is practised beside.

    Raises:
        CheckpointError: it holds another run, something else, or a half-finished run that may not be resumed.
    """
    path = folder / _RUN_FILE
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"'{folder}' is not empty and not a training run: choose another out=")
        return False
    wanted = _claim(config, fingerprint, own)
    found = json.loads(path.read_text(encoding="utf-8"))
    if difference := _difference(found, wanted):
        raise CheckpointError(
            f"'{folder}' is a run with other {difference}: choose another out=, or delete it"
        )
    finished = (folder / "model.json").is_file()
    if not finished and not config.resume:
        raise CheckpointError(f"'{folder}' is a half-finished run: resume=true goes on, or delete it")
    return finished


def check_held_out(folder: Path, held_out: str, *, usual: bool) -> None:
    """Refuse to go on with a run that has trained on what is held out now.

    Runs of before did not note what they held out. It is the same today where every episode is labelled and
    none was learned from before (`usual`).

    Raises:
        CheckpointError: a run of the other kind.
    """
    path = folder / _RUN_FILE
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8")).get("held_out", held_out if usual else "")
    if found != held_out:
        raise CheckpointError(
            f"'{folder}' was begun by an older version, which held out other episodes: choose another out=, "
            "or delete it"
        )


def claim_folder(folder: Path, config: TrainConfig, fingerprint: str, own: str, held_out: str) -> None:
    """Make `folder` this run's, once nothing can be wrong with its options any more; see `is_finished`.

    Raises:
        CheckpointError: too little room on its disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < _ROOM_BYTES:
        raise CheckpointError(f"only {free / 1e6:.0f} MB left on the disk of '{folder}'")
    claim = {**_claim(config, fingerprint, own), "held_out": held_out}
    write_atomic(folder / _RUN_FILE, json.dumps(claim, indent=1).encode())


def _claim(config: TrainConfig, fingerprint: str, own: str) -> dict[str, Any]:
    options = _comparable(config)
    if not config.tunes_backbone:
        # It changes nothing then, and runs of before, which had no such option, go on.
        del options["optimizer"]["backbone_lr"]
    return {"config": options, "fingerprint": fingerprint, "own": own}


def _comparable(config: TrainConfig) -> dict[str, Any]:
    ignored = {"out", "resume", "threads", "cache_gb", "loaders", "checkpoint_every_s", "log_every"}
    ignored |= {"data", "practice"}
    kept = {key: value for key, value in dataclasses.asdict(config).items() if key not in ignored}
    kept["devices"] = config.device_count  # which of them it is does not matter
    return json.loads(json.dumps(kept))


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What sets two runs apart, "" where nothing does.

    A key that an older version did not have had its default's value there.
    """
    if found.get("fingerprint") != wanted["fingerprint"] or found.get("own", wanted["own"]) != wanted["own"]:
        return "data"
    known = _leaves(_comparable(TrainConfig(data=None, out="")))
    old, new = {**known, **_leaves(found.get("config", {}))}, {**known, **_leaves(wanted["config"])}
    changed = sorted(key for key in {**old, **new} if old.get(key) != new.get(key))
    return ", ".join(f"{key} ({old.get(key)!r}, now {new.get(key)!r})" for key in changed)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of a nested config by its dotted key, as a user types it."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        leaves.update(inner)
    return leaves
