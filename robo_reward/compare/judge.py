"""What a method says of episodes: forwards, backwards, with cameras gone, told another task; kept on disk."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from robo_reward.checkpoint import write_atomic
from robo_reward.compare.method import Method, MethodPrediction
from robo_reward.compare.views import backwards, blinded, reworded
from robo_reward.errors import ConfigError, DataError
from robo_reward.evaluate.predict import camera_conditions
from robo_reward.schema import EpisodeReader

__all__ = ["Judged", "check_prediction", "judge", "load_judged", "save_judged"]


@dataclass(frozen=True)
class Judged:
    """One episode as a method sees it.

    forward, backward   in order, and the same frames shown in reverse (index j is frame t-1-j)
    conditions          by camera condition ("without wrist", "only left")
    wrong               told another task's instruction; None where there is one task
    """

    forward: MethodPrediction
    backward: MethodPrediction | None = None
    conditions: Mapping[str, MethodPrediction] | None = None
    wrong: MethodPrediction | None = None

    @property
    def may_pass(self) -> bool:
        """Whether something is missing that may be had another time."""
        said = (self.forward, self.backward, self.wrong, *(self.conditions or {}).values())
        return any(found is not None and found.may_pass for found in said)


def judge(method: Method, name: str, reader: EpisodeReader, wrong: str | None, whole: bool) -> Judged:
    """Ask a method about an episode; without `whole`, forwards only.

    Raises:
        ConfigError: an answer that is not as `MethodPrediction` says.
    """

    def ask(shown: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        try:
            found = method.predict(shown, cameras)
        except DataError as error:
            return MethodPrediction.invalid(shown.info.length, str(error))
        check_prediction(found, shown.info.length, f"method '{name}', {reader.info.name}")
        return found

    cameras, shown = reader.info.cameras, blinded(reader)
    forward = ask(shown, cameras)
    if not whole:
        return Judged(forward)
    conditions = {key: ask(shown, left) for key, left in camera_conditions(cameras).items()}
    return Judged(
        forward=forward,
        backward=ask(backwards(reader), cameras),
        conditions=conditions,
        wrong=None if wrong is None else ask(reworded(reader, wrong), cameras),
    )


def check_prediction(found: object, count: int, who: str) -> None:
    """Refuse what is not a prediction of `count` frames.

    Raises:
        ConfigError: naming the method and what is wrong.
    """
    if not isinstance(found, MethodPrediction):
        raise ConfigError(
            f"{who}: predict gave {type(found).__name__}, not a robo_reward.compare.method.MethodPrediction"
        )
    said = ("reason", "may_pass")
    columns: dict[str, Any] = {f.name: getattr(found, f.name) for f in fields(found) if f.name not in said}
    for name, values in columns.items():
        if values is None and name != "progress":
            continue
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
            raise ConfigError(f"{who}: {name} is {type(values).__name__}, not an array of numbers")
        if values.shape != (count,):
            raise ConfigError(f"{who}: {name} has shape {values.shape}, the episode has {count} frames")
        if name in ("progress", "success_prob"):
            known = values[~np.isnan(values)]
            if len(known) and (known.min() < -1e-5 or known.max() > 1 + 1e-5):
                raise ConfigError(
                    f"{who}: {name} is in [{known.min():.3g}, {known.max():.3g}], not in [0, 1]"
                )
    if not found.reason and np.isnan(found.progress).any():
        raise ConfigError(f"{who}: {int(np.isnan(found.progress).sum())} frames are invalid without a reason")


# --- on disk -------------------------------------------------------------------------------------------


def save_judged(path: Path, judged: Sequence[Judged]) -> None:
    """Write predictions, whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    reasons: dict[str, str] = {}
    may_pass: list[str] = []

    def put(key: str, found: MethodPrediction) -> None:
        for name in ("progress", "std", "success_prob", "stage"):
            values = getattr(found, name)
            if values is not None:
                arrays[f"{key}/{name}"] = values
        if found.reason:
            reasons[key] = found.reason
        if found.may_pass:
            may_pass.append(key)

    for index, one in enumerate(judged):
        for name in ("forward", "backward", "wrong"):
            if (found := getattr(one, name)) is not None:
                put(f"{index}/{name}", found)
        for condition, found in (one.conditions or {}).items():
            put(f"{index}/condition/{condition}", found)
    arrays["meta"] = np.frombuffer(
        json.dumps({"count": len(judged), "reasons": reasons, "may_pass": may_pass}).encode(), dtype=np.uint8
    )
    buffer = BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def load_judged(path: Path) -> list[Judged]:
    """What `save_judged` wrote.

    Raises:
        DataError: a damaged file.
    """
    try:
        with path.open("rb") as file, np.load(file) as stored:
            arrays = {name: stored[name] for name in stored.files}
        meta = json.loads(arrays.pop("meta").tobytes())
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(f"'{path}' is damaged ({error}): delete it to predict again") from error
    table: dict[str, dict[str, Any]] = {}
    for name, values in arrays.items():
        key, field = name.rsplit("/", 1)
        table.setdefault(key, {})[field] = values
    passing = set(meta.get("may_pass", ()))
    found = {
        key: MethodPrediction(**v, reason=meta["reasons"].get(key, ""), may_pass=key in passing)
        for key, v in table.items()
    }
    get: Callable[[str], MethodPrediction | None] = found.get
    judged: list[Judged] = []
    for index in range(meta["count"]):
        prefix = f"{index}/condition/"
        conditions = {key.removeprefix(prefix): p for key, p in found.items() if key.startswith(prefix)}
        judged.append(
            Judged(found[f"{index}/forward"], get(f"{index}/backward"), conditions, get(f"{index}/wrong"))
        )
    return judged
