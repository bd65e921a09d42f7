"""Stages found without labels against the oracle's, on stores of the simulation suite.

Run with: python tests/bench/bench_stages.py STORE [STORE ...] [--tuned STORE ...] [--images-only].
Record the stores with `robo-reward record ... action_repeat=2 max_decisions=200`. F1 is over inner
boundaries, matched within 5 % of the episode, in the successful episodes whose oracle passes every stage
once, in order; the number of stages is the oracle's ("given") or found ("chosen"), or all boundaries follow
one or three episodes marked by the oracle ("spread"; F1 over the others, mean over four draws of the marked),
or, with the number of stages given or chosen, what the other stores, tasks that are marked by the oracle, say
of where stages end ("like"; mean over `--seeds` of what learns it). Stores named by --tuned are those on
which the method was developed. Prints one JSON object a line, then a table.
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
from robo_reward_data.annotate.like import find_stages_like, marked_demonstrations
from robo_reward_data.annotate.spread import SpreadMarks, spread_marks
from robo_reward_data.store import EpisodeStore


def f1(infos: list[EpisodeInfo], found: FoundStages | SpreadMarks) -> tuple[float, int]:
    matches = claimed = true = judged = 0
    for info, boundaries in zip(infos, found.boundaries, strict=True):
        if info.boundaries is None or boundaries is None:
            continue
        matches += boundary_matches(boundaries, info.boundaries, info.length)
        claimed += len(boundaries) - 2
        true += len(info.boundaries) - 2
        judged += 1
    return 2 * matches / max(claimed + true, 1), judged


def offsets(infos: list[EpisodeInfo], found: FoundStages) -> tuple[list[float], list[float]]:
    """Median and spread of found minus true, in shares of the episode, for each boundary."""
    pairs = zip(infos, found.boundaries, strict=True)
    shares = np.array(
        [(b - i.boundaries)[1:-1] / i.length for i, b in pairs if i.boundaries is not None and b is not None]
    )
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


def like_f1(readers: list[Any], others: list[Any], stages: int | None, seeds: int) -> list[float]:
    """F1 by seed, with so many stages or as many as are found."""
    infos = [reader.info for reader in readers]
    settings = [StageSettings(stages=stages, seed=seed) for seed in range(seeds)]
    return [round(f1(infos, find_stages_like(readers, others, (0, 1, 2), s))[0], 3) for s in settings]


def measure(path: Path, tuned: bool, proprio: bool, others: list[Any], seeds: int) -> dict[str, Any]:
    store = EpisodeStore.open(path)
    readers = [episode for episode in store.episodes if episode.info.outcome == "success"]
    infos = [reader.info for reader in readers]
    began = time.monotonic()
    given = find_stages(readers, StageSettings(stages=len(infos[0].stage_names), proprio=proprio))
    score, judged = f1(infos, given)
    chosen = find_stages(readers, StageSettings(proprio=proprio))
    median, spread = offsets(infos, given)
    whole = [reader for reader in readers if reader.info.boundaries is not None]
    stages = len(infos[0].stage_names)
    like = {
        name: like_f1(readers, others, count, seeds) if others and proprio else [float("nan")]
        for name, count in (("f1_like_given", stages), ("f1_like_chosen", None))
    }
    return {
        "store": path.name,
        "tuned_on": tuned,
        "episodes": judged,
        "stages": stages,
        "f1_given": round(score, 3),
        "offset_median": median,
        "offset_std": spread,
        "stability": given.stability.round(2).tolist(),
        "stages_chosen": len(chosen.stability) + 1,
        "f1_chosen": round(f1(infos, chosen)[0], 3),
        "f1_spread_1": round(spread_f1(whole, 1, proprio), 3),
        "f1_spread_3": round(spread_f1(whole, 3, proprio), 3),
        **like,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="*", type=Path)
    parser.add_argument("--tuned", nargs="*", type=Path, default=[])
    parser.add_argument("--images-only", action="store_true")
    parser.add_argument("--seeds", type=int, default=3, help="of what learns from the other stores")
    options = parser.parse_args()
    paths = [*options.tuned, *options.stores]
    marked = {path: marked_demonstrations(EpisodeStore.open(path).episodes) for path in paths}
    rows = []
    for path in paths:
        others = [reader for other in paths if other != path for reader in marked[other]]
        rows.append(measure(path, path in options.tuned, not options.images_only, others, options.seeds))
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
        "like the others",
        "chosen",
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
            f"{np.mean(row['f1_like_given']):.2f}",
            f"{np.mean(row['f1_like_chosen']):.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
