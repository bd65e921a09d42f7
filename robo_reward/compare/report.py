"""The comparison's report: one self-contained HTML file with table, bars, and curves of all methods."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robo_reward.compare.table import Comparison, is_behind
from robo_reward.evaluate.page import glossary, json_tag, numbers, read_asset, scripts, styles, write_page
from robo_reward.metrics import Metric

__all__ = ["write_comparison"]

_HOME = "robo_reward.compare:_report"
_KEYS = (
    "progress_mae",
    "voc_mean",
    "retry_voc",
    "hesitation_rmse",
    "tau_a",
    "stage_accuracy",
    "success_f1",
    "starc",
)


def write_comparison(
    comparison: Comparison,
    facts: Mapping[str, str],
    notes: Sequence[str],
    curves: int,
    causal: Mapping[str, bool],
    path: Path,
) -> None:
    """Write the page, whole or not at all; `curves` episodes are drawn, of as many kinds as there are."""
    title = f"{len(comparison.rows)} reward models on the same episodes"
    fill: dict[str, Callable[[], Iterator[str]]] = {
        "title": lambda: iter((html.escape(title),)),
        "styles": lambda: iter((*styles(("page.css",)), *styles(("compare.css",), _HOME))),
        "scripts": lambda: iter((*scripts(("dom.js",)), *scripts(("compare.js",), _HOME))),
        "data": lambda: iter(
            (json_tag("report-data", _content(comparison, title, facts, notes, curves, causal)),)
        ),
    }
    write_page(path, read_asset("compare.html", _HOME), fill)


def _content(
    comparison: Comparison,
    title: str,
    facts: Mapping[str, str],
    notes: Sequence[str],
    curves: int,
    causal: Mapping[str, bool],
) -> dict[str, Any]:
    known = [
        metric
        for metric in dict.fromkeys(key for row in comparison.rows.values() for key in row.metrics)
        if any(_known(row.metrics.get(metric)) for row in comparison.rows.values())
    ]
    return {
        "title": title,
        "reference": comparison.reference,
        "facts": list(facts.items()),
        "notes": list(notes),
        "glossary": glossary(),
        "metrics": known,
        "key": [metric for metric in _KEYS if metric in known],
        "methods": [
            {
                "name": name,
                "causal": causal[name],
                "metrics": {m: row.metrics[m].to_json() for m in known if m in row.metrics},
                "differences": {m: row.differences[m].to_json() for m in known if m in row.differences},
                "behind": {m: is_behind(m, row.differences[m]) for m in known if m in row.differences},
            }
            for name, row in comparison.rows.items()
        ],
        "episodes": [_curves(comparison, index) for index in _chosen(comparison, curves)],
    }


def _known(metric: Metric | None) -> bool:
    return metric is not None and math.isfinite(metric.value)


def _chosen(comparison: Comparison, count: int) -> list[int]:
    """Test episodes to draw: of each kind in turn, those on which the reference is worst first."""
    results = comparison.rows[comparison.reference].results
    groups: dict[str, list[tuple[float, int]]] = {}
    for index, r in enumerate(results):
        if r.truth.progress is None:
            continue
        gap = np.abs(r.forward.progress - r.truth.progress)
        error = float(np.nanmean(gap)) if np.isfinite(gap).any() else math.inf
        groups.setdefault(r.info.kind, []).append((-error, index))
    queues = [sorted(group) for _, group in sorted(groups.items())]
    order = [
        queue[turn][1]
        for turn in range(max(map(len, queues), default=0))
        for queue in queues
        if turn < len(queue)
    ]
    return order[:count]


def _curves(comparison: Comparison, index: int) -> dict[str, Any]:
    rows = comparison.rows
    r = rows[comparison.reference].results[index]
    assert r.truth.progress is not None
    return {
        "name": r.info.name,
        "kind": r.info.kind,
        "outcome": str(r.info.outcome),
        "time": numbers((r.info.stamp_ns - r.info.stamp_ns[0]) * 1e-9),
        "truth": numbers(r.truth.progress),
        "progress": {name: numbers(row.results[index].forward.progress) for name, row in rows.items()},
    }
