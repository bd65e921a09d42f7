"""The per-frame table of labels: what was estimated, the shaping it pays, the weight it gives a sample.

It is the file `sarm_progress.parquet` that `lerobot-train` reads: `index`, `episode_index`, `frame_index` and
`progress_<head>` are LeRobot's columns, the others are ours and LeRobot ignores them. `progress_sparse` is
the model's progress, `progress_<name>` what `robo_reward_data.label.weights` makes of it for LeRobot's RA-BC.
One row group an episode. What it was made from is in the metadata of its schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robo_reward.errors import ConfigError, DataError
from robo_reward.imports import instantiate
from robo_reward.shaping import ShapingConfig, Standard, potentials, shaping_terms, step_discounts
from robo_reward_data.label.job import Parts
from robo_reward_data.label.weights import WeightRecipe, weigh_episodes

__all__ = ["FILE", "LabelFile", "Recipe", "read_identity", "write_labels"]

FILE = "sarm_progress.parquet"
_KEY = b"robo_reward"


@dataclass(frozen=True)
class Recipe:
    """What follows from the estimates.

    name         of the head for `--sample_weighting.head_mode=<name>`
    episode_end  "terminated", "truncated", or "auto": terminated where the dataset says success at the end
    """

    shaping: ShapingConfig
    rabc: WeightRecipe
    name: str = "robo_reward"
    episode_end: str = "auto"

    def __post_init__(self) -> None:
        """Check what is not checked elsewhere."""
        if self.name in ("", "sparse"):
            raise ConfigError(
                f"name is '{self.name}': choose another than sparse, which is the progress itself"
            )
        if self.episode_end not in ("auto", "terminated", "truncated"):
            raise ConfigError(f"episode_end is '{self.episode_end}': choose auto, terminated or truncated")
        if self.shaping.rule and not instantiate(self.shaping.rule).exact:
            raise ConfigError("labels hold potential-based shaping: choose shaping.rule with exact=True")


def shape(part: pa.Table, fps: float, recipe: Recipe) -> np.ndarray:
    """kappa F_t f32[t] of the step from each frame to the next, NaN where it is not known.

    The last step of an episode that terminates pays -Phi; where it is cut off, what comes next is unknown.
    """
    config, length = recipe.shaping, part.num_rows
    ends = {"auto": bool(part["done"][-1].as_py()), "terminated": True, "truncated": False}
    terminated = np.arange(length) == (length - 1 if ends[recipe.episode_end] else length)
    function = instantiate(config.potential) if config.potential else Standard()
    # A potential that remembers, such as a gated one, is asked once a decision, and holds between them.
    decided = part["decided"].to_numpy(zero_copy_only=False)
    asked = part.filter(part["decided"])
    phi = potentials(function, asked["progress"].to_numpy(), asked["std"].to_numpy())
    phi = phi[np.cumsum(decided) - 1]
    steps = 1.0 if config.reference_s is None else 1.0 / (fps * config.reference_s)
    discount = step_discounts(config.discount, np.full(length, steps), terminated)
    terms = shaping_terms(np.append(phi, np.nan), discount, config.carry_limit)
    return (config.kappa * terms).astype(np.float32)


def _failed(part: pa.Table) -> bool:
    """Whether the dataset says of every frame of an episode that it did not succeed."""
    done = part["done"]
    return done.null_count == 0 and not pc.any(done).as_py()


def write_labels(
    path: Path,
    parts: Parts,
    episodes: Sequence[int],
    recipe: Recipe,
    fps: float,
    identity: Mapping[str, Any],
) -> None:
    """Write the table of all episodes, in order, whole or not at all."""
    progress: list[np.ndarray] = []
    failed: list[bool] = []
    for episode in episodes:
        part = parts.read(episode)
        progress.append(part["progress"].to_numpy())
        failed.append(_failed(part))
    heads, weights = weigh_episodes(progress, recipe.rabc, failed)
    named = f"progress_{recipe.name}"
    draft = path.with_name(f".{path.name}.draft")
    writer: pq.ParquetWriter | None = None
    for episode, head, weight in zip(episodes, heads, weights, strict=True):
        part = parts.read(episode)
        columns = {name: part[name] for name in ("index", "episode_index", "frame_index")}
        columns["progress_sparse"], columns[named] = part["progress"], pa.array(head)
        columns |= {name: part[name] for name in ("std", "stage", "success_prob", "success")}
        columns["shaping"] = pa.array(shape(part, fps, recipe))
        columns["rabc_weight"] = pa.array(weight, pa.float32())
        columns |= {name: part[name] for name in ("valid", "reason")}
        table = pa.table(columns, metadata=_metadata(identity))
        if writer is None:
            writer = pq.ParquetWriter(draft, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    draft.replace(path)


def _metadata(identity: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {
        b"reward_model_path": str(identity["model"]).encode(),
        _KEY: json.dumps(identity, sort_keys=True).encode(),
    }


def read_identity(path: Path) -> dict[str, Any] | None:
    """What a progress file was made from, or None where that is not one of ours.

    Raises:
        DataError: a file that is not Parquet.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return json.loads(metadata[_KEY]) if _KEY in metadata else None


class LabelFile:
    """A written table, episode by episode."""

    def __init__(self, path: Path, episodes: Sequence[int]) -> None:
        """Read `path`, whose row groups are `episodes`."""
        self._file = pq.ParquetFile(path)
        self._group = {episode: group for group, episode in enumerate(episodes)}

    def read(self, episode: int) -> pa.Table:
        """The rows of one episode."""
        return self._file.read_row_group(self._group[episode])

    def column(self, name: str) -> np.ndarray:
        """One column over all frames."""
        return self._file.read(columns=[name])[name].to_numpy()
