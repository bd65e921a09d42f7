"""Stages of episodes written into a LeRobot dataset, in either of the forms of subtasks that LeRobot knows.

`robo_reward_data.importers.lerobot` reads both; it says what they look like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from robo_reward.errors import ConfigError, DataError
from robo_reward.labels import check_boundaries
from robo_reward_data.importers.lerobot import LeRobot, LeRobotEpisode
from robo_reward_data.label.rewrite import Change, rewrite_dataset

__all__ = ["Subtasks", "write_subtasks"]

_PERSISTENT, _EVENTS = "language_persistent", "language_events"
_LANGUAGE = {"dtype": "language", "shape": [1], "names": None}
# As `datasets` and LeRobot's annotator write it; a tool call is JSON.
_EVENT_FIELDS = [("role", pa.string()), ("content", pa.string()), ("style", pa.string())]
_LAST_FIELDS = [("camera", pa.string()), ("tool_calls", pa.list_(pa.string()))]
_PERSISTENT_TYPE = pa.list_(pa.struct([*_EVENT_FIELDS, ("timestamp", pa.float32()), *_LAST_FIELDS]))
_EVENTS_TYPE = pa.list_(pa.struct([*_EVENT_FIELDS, *_LAST_FIELDS]))


@dataclass(frozen=True, slots=True)
class Subtasks:
    """The stages of one episode: k names in order, and the i64[k+1] frames that bound them, end exclusive."""

    names: tuple[str, ...]
    boundaries: Int64[np.ndarray, " n"]


def write_subtasks(
    root: Path, stages: Mapping[int, Subtasks], form: str = "language", out: Path | None = None
) -> None:
    """Add stages to the dataset at `root`, or to a copy of it at `out`.

    The language form has no way to end the last stage before the episode does, nor to begin the first one
    after: frames before the first boundary stay without a subtask, those after the last keep the last one.

    Args:
        root: Folder of a LeRobot dataset of format v3.
        stages: By episode index. Episodes that are left out get none; earlier subtasks of the same form are
            replaced, everything else that was said in language stays.
        form: "language" (survives LeRobot's edits of a dataset), "sparse" or "dense" (SARM's).
        out: A new folder; None: in place, in one step or not at all.

    Raises:
        ConfigError: another form.
        DataError: an episode that is not there, or boundaries that do not fit it.
    """
    episodes = {int(e.row["episode_index"]): e for e in LeRobot().recordings(root)}
    for index, said in stages.items():
        if index not in episodes:
            raise DataError(f"{root} has no episode {index}: it has {min(episodes)}..{max(episodes)}")
        place = f"episode {index} of {root}"
        check_boundaries(said.boundaries, int(episodes[index].row["length"]), place)
        if len(said.names) != len(said.boundaries) - 1 or not all(said.names):
            raise DataError(
                f"{place}: {len(said.boundaries)} boundaries need one name fewer, not {said.names}"
            )
    if form == "language":
        change = _language_change(episodes, stages)
    elif form in ("sparse", "dense"):
        change = _sarm_change(episodes, stages, form)
    else:
        raise ConfigError(f"form is '{form}': choose language, sparse or dense")
    rewrite_dataset(root, out, change)


def _language_change(episodes: Mapping[int, LeRobotEpisode], stages: Mapping[int, Subtasks]) -> Change:
    rows = {index: _language_rows(episodes[index], said) for index, said in stages.items()}

    def data_columns(table: pa.Table) -> dict[str, pa.Array]:
        length = table.num_rows
        there = table[_PERSISTENT].to_pylist() if _PERSISTENT in table.column_names else [[]] * length
        merged = [
            sorted(
                [*(row for row in said or [] if row["style"] != "subtask"), *rows.get(index, [])],
                key=lambda row: row["timestamp"],
            )
            for said, index in zip(there, table["episode_index"].to_pylist(), strict=True)
        ]
        columns = {_PERSISTENT: pa.array(merged, _PERSISTENT_TYPE)}
        if _EVENTS not in table.column_names:
            columns[_EVENTS] = pa.array([[]] * length, _EVENTS_TYPE)
        return columns

    return Change(features={_PERSISTENT: _LANGUAGE, _EVENTS: _LANGUAGE}, data_columns=data_columns)


def _language_rows(episode: LeRobotEpisode, said: Subtasks) -> list[dict[str, Any]]:
    stamps = episode.read_column("timestamp")
    assert stamps is not None, "every LeRobot dataset has time stamps"
    return [
        {
            "role": "assistant",
            "content": name,
            "style": "subtask",
            "timestamp": float(stamps[start, 0]),
            "camera": None,
            "tool_calls": None,
        }
        for name, start in zip(said.names, said.boundaries[:-1].tolist(), strict=True)
    ]


def _sarm_change(episodes: Mapping[int, LeRobotEpisode], stages: Mapping[int, Subtasks], form: str) -> Change:
    fps = float(next(iter(episodes.values())).dataset.info["fps"])

    def episode_columns(table: pa.Table) -> dict[str, pa.Array]:
        found = [stages.get(index) for index in table["episode_index"].to_pylist()]
        starts = [None if said is None else said.boundaries[:-1].tolist() for said in found]
        ends = [None if said is None else said.boundaries[1:].tolist() for said in found]
        seconds = [
            [None if row is None else [n / fps for n in row] for row in part] for part in (starts, ends)
        ]
        names, frames, times = pa.list_(pa.string()), pa.list_(pa.int64()), pa.list_(pa.float64())
        return {
            f"{form}_subtask_names": pa.array([said and list(said.names) for said in found], names),
            f"{form}_subtask_start_frames": pa.array(starts, frames),
            f"{form}_subtask_end_frames": pa.array(ends, frames),
            f"{form}_subtask_start_times": pa.array(seconds[0], times),
            f"{form}_subtask_end_times": pa.array(seconds[1], times),
        }

    shares = json.dumps(temporal_proportions(list(stages.values())), indent=2).encode()
    return Change(episode_columns=episode_columns, files={f"meta/temporal_proportions_{form}.json": shares})


def temporal_proportions(stages: Sequence[Subtasks]) -> dict[str, float]:
    """Mean share of an episode's time by stage, over the episodes that have it, scaled to sum 1 (SARM)."""
    shares: dict[str, list[float]] = {}
    for said in stages:
        lengths = np.diff(said.boundaries)
        own: dict[str, float] = {}
        for name, share in zip(said.names, lengths / lengths.sum(), strict=True):
            own[name] = own.get(name, 0.0) + float(share)
        for name, share in own.items():
            shares.setdefault(name, []).append(share)
    means = {name: float(np.mean(values)) for name, values in shares.items()}
    total = sum(means.values())
    return {name: mean / total for name, mean in means.items()}
