"""The evaluation report: one self-contained HTML file with metrics, calibration and every episode.

See `robo_reward.evaluate.page` for what the page is made of.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from robo_reward.errors import DataError
from robo_reward.evaluate.page import (
    glossary,
    json_tag,
    metrics_json,
    numbers,
    read_asset,
    scripts,
    styles,
    write_page,
)
from robo_reward.metrics import Metric

__all__ = ["Chart", "Curve", "Report", "ReportEpisode", "TextTable", "write_report"]


@dataclass(frozen=True, slots=True)
class ReportEpisode:
    """One episode as the report shows it: what the model said, the truth where known, and the images.

    name, kind, outcome, instruction   as in `EpisodeInfo`
    time_s               f64[t], seconds, strictly increasing
    progress, low, high  f32[t], progress and its 90 % band, in [0, 1]; NaN where invalid
    stage                i64[t], most likely stage; -1 where invalid
    success_prob         f32[t], in [0, 1]; NaN where invalid
    valid, reasons       bool[t], and per frame why it is not valid ("" where it is)
    stage_names          what `stage` counts
    truth_progress       f32[t] (NaN where unknown) or None
    truth_stage          i64[t] (-1 where unknown) or None; it counts `truth_stage_names`
    truth_success        bool[t] or None
    seen                 bool[t], frames that were in training; None: no frame was
    mae                  mean absolute error of progress, or None
    views                JPEG bytes per frame by camera; {} where the report carries no images
    """

    name: str
    kind: str
    outcome: str
    instruction: str
    time_s: Float64[np.ndarray, " t"]
    progress: Float32[np.ndarray, " t"]
    low: Float32[np.ndarray, " t"]
    high: Float32[np.ndarray, " t"]
    stage: Int64[np.ndarray, " t"]
    success_prob: Float32[np.ndarray, " t"]
    valid: Bool[np.ndarray, " t"]
    reasons: tuple[str, ...]
    stage_names: tuple[str, ...]
    truth_progress: Float32[np.ndarray, " t"] | None
    truth_stage: Int64[np.ndarray, " t"] | None
    truth_stage_names: tuple[str, ...]
    truth_success: Bool[np.ndarray, " t"] | None
    seen: Bool[np.ndarray, " t"] | None
    mae: float | None
    views: Mapping[str, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart: y f64[n] at x f64[n], with a band where `low` and `high` are known (NaN: gap)."""

    name: str
    x: Float64[np.ndarray, " n"]
    y: Float64[np.ndarray, " n"]
    low: Float64[np.ndarray, " n"] | None = None
    high: Float64[np.ndarray, " n"] | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over one axis; y runs from 0 to 1."""

    title: str
    text: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of short texts; the first column names the row."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows.

    facts        what was evaluated, in order: model, data, command, date, ...
    metrics      by their names in metrics.json
    dropout      by condition ("without wrist", "only left"), metrics by name
    by_kind      by kind of episode, metrics by name
    calibration  nominal levels and empirical coverage, f64[m] each, or None
    notes        what a reader must know to read the numbers rightly
    charts       curves over time, such as those of learning
    tables       whatever else is best read in rows
    """

    title: str
    facts: Mapping[str, str]
    metrics: Mapping[str, Metric]
    dropout: Mapping[str, Mapping[str, Metric]]
    by_kind: Mapping[str, Mapping[str, Metric]]
    calibration: tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]] | None
    episodes: tuple[ReportEpisode, ...]
    notes: tuple[str, ...]
    charts: tuple[Chart, ...] = ()
    tables: tuple[TextTable, ...] = ()


def write_report(report: Report, path: Path) -> None:
    """Write the report as one HTML file, whole or not at all: a reader never sees half of it.

    Raises:
        DataError: where the arrays or camera views of an episode do not cover the same frames.
    """
    for episode in report.episodes:
        _check_episode(episode)
    fill: dict[str, Callable[[], Iterator[str]]] = {
        "title": lambda: iter((html.escape(report.title),)),
        "styles": lambda: styles(_STYLES),
        "scripts": lambda: scripts(_SCRIPTS),
        "data": lambda: _data(report),
    }
    write_page(path, read_asset("page.html"), fill)


_STYLES = ("page.css", "episodes.css")
_SCRIPTS = ("dom.js", "summary.js", "chart.js", "curves.js", "views.js", "episodes.js")


def _data(report: Report) -> Iterator[str]:
    """The numbers in one script tag, and the frames of each episode in one of their own, read when shown."""
    yield json_tag("report-data", _report_json(report))
    for i, episode in enumerate(report.episodes):
        frames = {
            camera: [base64.b64encode(jpeg).decode("ascii") for jpeg in jpegs]
            for camera, jpegs in episode.views.items()
        }
        yield json_tag(f"frames-{i}", frames)


# --- data to JSON --------------------------------------------------------------------------------------


def _report_json(report: Report) -> dict[str, Any]:
    calibration = report.calibration
    return {
        "title": report.title,
        "facts": list(report.facts.items()),
        "glossary": glossary(),
        "metrics": metrics_json(report.metrics),
        "dropout": [[name, metrics_json(group)] for name, group in report.dropout.items()],
        "by_kind": [[name, metrics_json(group)] for name, group in report.by_kind.items()],
        "calibration": None
        if calibration is None
        else {"nominal": numbers(calibration[0]), "empirical": numbers(calibration[1])},
        "episodes": [_episode_json(episode) for episode in report.episodes],
        "notes": list(report.notes),
        "charts": [_chart_json(chart) for chart in report.charts],
        "tables": [
            {"title": t.title, "text": t.text, "columns": list(t.columns), "rows": [list(r) for r in t.rows]}
            for t in report.tables
        ],
    }


def _chart_json(chart: Chart) -> dict[str, Any]:
    curves = [
        {
            "name": curve.name,
            "x": numbers(curve.x),
            "y": numbers(curve.y),
            "low": None if curve.low is None else numbers(curve.low),
            "high": None if curve.high is None else numbers(curve.high),
        }
        for curve in chart.curves
    ]
    return {
        "title": chart.title,
        "text": chart.text,
        "x_label": chart.x_label,
        "y_label": chart.y_label,
        "curves": curves,
    }


def _episode_json(episode: ReportEpisode) -> dict[str, Any]:
    reasons = [
        "" if good else why or "invalid" for good, why in zip(episode.valid, episode.reasons, strict=True)
    ]
    truth_stage = episode.truth_stage
    return {
        "name": episode.name,
        "kind": episode.kind,
        "outcome": episode.outcome,
        "instruction": episode.instruction,
        "time": numbers(episode.time_s - episode.time_s[0]),
        "progress": numbers(episode.progress),
        "low": numbers(episode.low),
        "high": numbers(episode.high),
        "stages": _runs([_name(episode.stage_names, index) for index in episode.stage.tolist()]),
        "success": numbers(episode.success_prob),
        "invalid": _runs(reasons),
        "truth": None if episode.truth_progress is None else numbers(episode.truth_progress),
        "truth_stages": None
        if truth_stage is None
        else _runs([_name(episode.truth_stage_names, index) for index in truth_stage.tolist()]),
        "truth_success": None
        if episode.truth_success is None
        else _runs(["done" if done else "" for done in episode.truth_success]),
        "seen": [] if episode.seen is None else _runs(["seen" if seen else "" for seen in episode.seen]),
        "stage_names": list(dict.fromkeys((*episode.stage_names, *episode.truth_stage_names))),
        "mae": None if episode.mae is None or not math.isfinite(episode.mae) else float(episode.mae),
        "cameras": list(episode.views),
    }


def _name(names: Sequence[str], index: int) -> str:
    if index < 0:
        return ""
    return names[index] if index < len(names) else f"stage {index + 1}"


def _runs(labels: Sequence[str]) -> list[tuple[int, int, str]]:
    """Maximal runs (start, stop, label) of equal labels, stop exclusive; "" is no run."""
    edges = [i for i in range(len(labels)) if i == 0 or labels[i] != labels[i - 1]]
    bounds = zip(edges, [*edges[1:], len(labels)], strict=True)
    return [(start, stop, labels[start]) for start, stop in bounds if labels[start]]


# --- checks --------------------------------------------------------------------------------------------


def _check_episode(episode: ReportEpisode) -> None:
    count = len(episode.time_s)
    if count == 0:
        raise DataError(f"episode '{episode.name}' has no frames: leave it out of the report")
    if np.any(np.diff(episode.time_s) <= 0):
        raise DataError(
            f"time_s of episode '{episode.name}' does not increase at every frame: sort its frames"
        )
    columns: dict[str, Sequence[object] | np.ndarray | None] = {
        "progress": episode.progress,
        "low": episode.low,
        "high": episode.high,
        "stage": episode.stage,
        "success_prob": episode.success_prob,
        "valid": episode.valid,
        "reasons": episode.reasons,
        "truth_progress": episode.truth_progress,
        "truth_stage": episode.truth_stage,
        "truth_success": episode.truth_success,
        "seen": episode.seen,
        **{f"camera '{camera}'": jpegs for camera, jpegs in episode.views.items()},
    }
    for name, column in columns.items():
        if column is not None and len(column) != count:
            raise DataError(
                f"{name} has {len(column)} frames, time_s has {count}: "
                f"both must cover the episode ({episode.name})"
            )
