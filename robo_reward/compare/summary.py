"""What a comparison leaves behind beside its report: numbers, predictions, a table, and what to know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from robo_reward.compare.table import Comparison, is_behind
from robo_reward.evaluate.page import glossary
from robo_reward.metrics import Metric

__all__ = ["comparison_json", "loss_notes", "terminal_tables", "validity_notes", "write_predictions"]

_CHIEF = ("progress_mae", "retry_voc", "tau_a")
# The terminal is narrow: the columns that matter most, by names that fit.
_SHOWN = {
    "progress_mae": "MAE",
    "voc_mean": "VOC",
    "retry_voc": "retry",
    "hesitation_rmse": "hesit",
    "tau_a": "tau_a",
    "stage_accuracy": "stage",
    "success_f1": "F1",
    "ece": "ECE",
    "starc": "STARC",
    "latency_ms_p50": "ms",
}


def validity_notes(comparison: Comparison) -> list[str]:
    """Which methods gave no estimate for some frames, and why."""
    notes: list[str] = []
    for name, row in comparison.rows.items():
        share = row.metrics["valid_share"].value
        if share < 1:
            reasons = sorted({why for r in row.results for why in r.forward.reason if why})
            notes.append(
                f"{name}: {100 * (1 - share):.1f} % of frames are invalid ({'; '.join(reasons[:2])})"
            )
    return notes


def loss_notes(comparison: Comparison) -> list[str]:
    """Every metric in which a method is ahead of the reference beyond doubt; of the chief ones, ties too.

    A metric that can be had without looking says so: a clock is ahead of everyone in forward order.
    """
    lines: list[str] = []
    others = {name: row for name, row in comparison.rows.items() if name != comparison.reference}
    for metric, entry in glossary().items():
        gaps = {name: row.differences[metric] for name, row in others.items() if metric in row.differences}
        ahead = [name for name, gap in gaps.items() if is_behind(metric, gap) is False]
        if ahead:
            blind = f" (says nothing alone: {entry['alone']})" if "alone" in entry else ""
            lines.append(f"{entry['label']}: {comparison.reference} is behind {', '.join(ahead)}{blind}")
        level = [n for n, gap in gaps.items() if math.isfinite(gap.value) and is_behind(metric, gap) is None]
        if level and metric in _CHIEF:
            lines.append(f"{entry['label']}: no difference beyond doubt to {', '.join(level)}")
    return lines


def comparison_json(
    comparison: Comparison, facts: Mapping[str, str], notes: Sequence[str], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The content of `metrics.json`; `seconds` is how long each fit took in this run."""
    return {
        "reference": comparison.reference,
        "methods": {
            name: {
                "metrics": {key: metric.to_json() for key, metric in row.metrics.items()},
                "differences": {key: metric.to_json() for key, metric in row.differences.items()},
                "fit_s": round(seconds[name], 1),
            }
            for name, row in comparison.rows.items()
        },
        "facts": dict(facts),
        "notes": list(notes),
    }


def write_predictions(path: Path, comparison: Comparison) -> None:
    """One row per method, episode and frame, and the truth where it is known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    floats = ("progress", "std", "low", "high", "success_prob", "truth_progress")
    schema = pa.schema(
        [("method", pa.string()), ("episode", pa.string()), ("uid", pa.string()), ("frame", pa.int64())]
        + [(name, pa.float32()) for name in floats]
        + [("stage", pa.int64()), ("truth_stage", pa.int64()), ("valid", pa.bool_()), ("reason", pa.string())]
    )
    temporary = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        for name, row in comparison.rows.items():
            for r in row.results:
                count, found = r.info.length, r.forward
                columns: dict[str, Any] = {
                    "method": [name] * count,
                    "episode": [r.info.name] * count,
                    "uid": [r.info.uid] * count,
                    "frame": np.arange(count),
                    **{key: getattr(found, key) for key in floats[:-1]},
                    "truth_progress": r.truth.progress,
                    "stage": found.stage,
                    "truth_stage": r.truth.stage,
                    "valid": found.valid,
                    "reason": list(found.reason),
                }
                arrays = [
                    pa.nulls(count, schema.field(key).type)
                    if columns[key] is None
                    else pa.array(columns[key], schema.field(key).type)
                    for key in schema.names
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    temporary.replace(path)


def terminal_tables(comparison: Comparison, width: int) -> list[Table]:
    """The values, in as many tables as it takes: cut to the columns of a log, numbers would be others.

    A star says that the difference to the reference leaves out 0.
    """
    metrics, wide = list(_SHOWN), Console(width=10_000)
    tables: list[Table] = []
    for parts in range(1, len(metrics) + 1):
        size = math.ceil(len(metrics) / parts)
        tables = [_table(comparison, metrics[at : at + size]) for at in range(0, len(metrics), size)]
        if all(wide.measure(table).maximum <= width for table in tables):
            break
    return tables


def _table(comparison: Comparison, metrics: Sequence[str]) -> Table:
    table = Table(
        title=f"* the difference to {comparison.reference} is beyond doubt",
        title_justify="left",
        padding=(0, 0),
    )
    table.add_column("method", no_wrap=True)
    words = glossary()
    for metric in metrics:
        table.add_column(_SHOWN[metric], justify="right", no_wrap=True)
    for name, row in comparison.rows.items():
        cells: list[str] = []
        for metric in metrics:
            value = row.metrics.get(metric, Metric.undefined()).value
            gap = row.differences.get(metric)
            star = "*" if gap is not None and is_behind(metric, gap) is not None else ""
            cells.append("-" if math.isnan(value) else f"{value:.{words[metric].get('digits', 3)}f}{star}")
        table.add_row(name, *cells)
    return table
