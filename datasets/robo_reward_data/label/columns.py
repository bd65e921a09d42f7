"""Labels as columns of a LeRobot dataset: their features, statistics and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robo_reward_data.label.rewrite import Change
from robo_reward_data.label.table import FILE, LabelFile

__all__ = ["FEATURES", "label_columns"]

_COLUMNS = {
    "progress": ("progress_sparse", "float32"),
    "std": ("std", "float32"),
    "stage": ("stage", "int64"),
    "success_prob": ("success_prob", "float32"),
    "success": ("success", "bool"),
    "shaping": ("shaping", "float32"),
    "rabc_weight": ("rabc_weight", "float32"),
    "valid": ("valid", "bool"),
}
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

FEATURES: Mapping[str, Mapping[str, Any]] = {
    f"robo_reward.{name}": {"dtype": dtype, "shape": [1], "names": None}
    for name, (_, dtype) in _COLUMNS.items()
}
"""Entries of `info.json`, by the name of the column in the dataset."""


def label_columns(path: Path, episodes: Sequence[int]) -> Change:
    """The change that adds the labels of the table at `path` (and the table itself) to their dataset."""
    labels = LabelFile(path, episodes)
    sources = dict(zip(FEATURES, (source for source, _ in _COLUMNS.values()), strict=True))

    def data_columns(rows: pa.Table) -> dict[str, pa.Array]:
        found = [labels.read(episode) for episode in pc.unique(rows["episode_index"]).to_pylist()]
        table = pa.concat_tables(found)
        # Rows of a data file may be in any order.
        order = np.argsort(table["index"].to_numpy())
        places = order[np.searchsorted(table["index"].to_numpy()[order], rows["index"].to_numpy())]
        return {name: table[source].take(pa.array(places)) for name, source in sources.items()}

    def episode_columns(rows: pa.Table) -> dict[str, pa.Array]:
        found = [
            {name: statistics(table[source].to_numpy()) for name, source in sources.items()}
            for table in (labels.read(episode) for episode in rows["episode_index"].to_pylist())
        ]
        keys = [
            (name, key) for name in sources for key in ("min", "max", "mean", "std", "count", *_QUANTILES)
        ]
        return {f"stats/{name}/{key}": pa.array([row[name][key] for row in found]) for name, key in keys}

    return Change(
        features=FEATURES,
        data_columns=data_columns,
        episode_columns=episode_columns,
        stats={name: statistics(labels.column(source)) for name, source in sources.items()},
        files={FILE: path},
    )


def statistics(values: np.ndarray) -> dict[str, list[float] | list[int]]:
    """LeRobot's statistics of a column of numbers over the frames where it is known; 0 where none is."""
    known = values[~np.isnan(values.astype(np.float64))].astype(np.float64)
    filled = known if len(known) else np.zeros(1)
    moments = {"min": filled.min(), "max": filled.max(), "mean": filled.mean(), "std": filled.std()}
    quantiles = {key: np.quantile(filled, share) for key, share in _QUANTILES.items()}
    return {
        **{key: [float(value)] for key, value in moments.items()},
        "count": [len(known)],
        **{key: [float(value)] for key, value in quantiles.items()},
    }
