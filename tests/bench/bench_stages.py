"""Stages found without labels against the oracle's, on stores of the simulation suite.

Run with: python tests/bench/bench_stages.py STORE [STORE ...] [--tuned STORE ...] [--images-only].
Record the stores with `robo-reward record ... action_repeat=2 max_decisions=200`. F1 is over inner
boundaries, matched within 5 % of the episode, in the successful episodes whose oracle passes every stage
once, in order; the number of stages is the oracle's ("given") or found ("chosen"), or all boundaries follow
one or three episodes marked by the oracle ("spread"; F1 over the others, mean over four draws of the marked).
Stores named by --tuned are those on which the method was developed. Prints one JSON object a line, then a
table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from robo_reward.schema import EpisodeInfo
from robo_reward.stages import boundary_matches
from robo_reward_data.annotate.auto import FoundStages, StageSettings, find_stages
from robo_reward_data.annotate.spread import SpreadMarks, spread_marks
from robo_reward_data.store import EpisodeStore


def f1(infos: list[EpisodeInfo], found: FoundStages | SpreadMarks) -> tuple[float, int]:
    matches = claimed = true = judged = 0
    for info, boundaries in zip(infos, found.boundaries, strict=True):
        if info.boundaries is None:
            continue
        matches += boundary_matches(boundaries, info.boundaries, info.length)
        claimed += len(boundaries) - 2
        true += len(info.boundaries) - 2
        judged += 1
    return 2 * matches / max(claimed + true, 1), judged


def offsets(infos: list[EpisodeInfo], found: FoundStages) -> tuple[list[float], list[float]]:
    """Median and spread of found minus true, in shares of the episode, for each boundary."""
    pairs = zip(infos, found.boundaries, strict=True)
    shares = np.array([(b - i.boundaries)[1:-1] / i.length for i, b in pairs if i.boundaries is not None])
    return np.median(shares, axis=0).round(3).tolist(), shares.std(axis=0).round(3).tolist()


def spread_f1(readers: list[Any], marked: int, proprio: bool, draws: int = 4) -> float:
    """F1 over the others where so many are marked, mean over draws of which."""
    scores: list[float] = []
    for seed in range(draws):
        chosen = np.random.default_rng(seed).permutation(len(readers))
        some, others = ([readers[i] for i in part] for part in (chosen[:marked], chosen[marked:]))
        found = spread_marks(some, others, proprio=proprio)
        scores.append(f1([reader.info for reader in others], found)[0])
    return float(np.mean(scores))


def measure(path: Path, tuned: bool, proprio: bool) -> dict[str, Any]:
    store = EpisodeStore.open(path)
    readers = [episode for episode in store.episodes if episode.info.outcome == "success"]
    infos = [reader.info for reader in readers]
    began = time.monotonic()
    given = find_stages(readers, StageSettings(stages=len(infos[0].stage_names), proprio=proprio))
    score, judged = f1(infos, given)
    chosen = find_stages(readers, StageSettings(proprio=proprio))
    median, spread = offsets(infos, given)
    whole = [reader for reader in readers if reader.info.boundaries is not None]
    return {
        "store": path.name,
        "tuned_on": tuned,
        "episodes": judged,
        "stages": len(infos[0].stage_names),
        "f1_given": round(score, 3),
        "offset_median": median,
        "offset_std": spread,
        "stability": given.stability.round(2).tolist(),
        "stages_chosen": len(chosen.stability) + 1,
        "f1_chosen": round(f1(infos, chosen)[0], 3),
        "f1_spread_1": round(spread_f1(whole, 1, proprio), 3),
        "f1_spread_3": round(spread_f1(whole, 3, proprio), 3),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="*", type=Path)
    parser.add_argument("--tuned", nargs="*", type=Path, default=[])
    parser.add_argument("--images-only", action="store_true")
    options = parser.parse_args()
    rows = []
    for path in [*options.tuned, *options.stores]:
        rows.append(measure(path, path in options.tuned, not options.images_only))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
    table = Table(title="boundary F1 at 5 % of the episode (* method developed on it)")
    for name in (
        "task",
        "episodes",
        "stages",
        "F1, stages given",
        "offset",
        "spread",
        "chosen",
        "F1, chosen",
        "one marked",
        "three",
    ):
        table.add_column(name)
    for row in rows:
        table.add_row(
            row["store"] + ("*" if row["tuned_on"] else ""),
            str(row["episodes"]),
            str(row["stages"]),
            f"{row['f1_given']:.2f}",
            str(row["offset_median"]),
            str(row["offset_std"]),
            str(row["stages_chosen"]),
            f"{row['f1_chosen']:.2f}",
            f"{row['f1_spread_1']:.2f}",
            f"{row['f1_spread_3']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
