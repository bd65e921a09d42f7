"""The headline experiment in its short form: what a shaped reward buys from one demonstration.

Run with: python tests/bench/bench_improve.py [--out FOLDER] [key=value ...]. Without further keys it is one
task (peg-insert-side), one seed, the sparse and the oracle arm, 40 rollouts, and a policy that sees the
simulator's own state, so no reward model is needed: a check that the loop learns at all and a measurement of
its cost, not a result. Keys are those of `robo-reward improve +experiment=one_demo`; without `--out` nothing
is kept. Prints one JSON object an arm.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from robo_reward.cli.main import run_command

SHORT = (
    "privileged=true",
    "task_names=[peg-insert-side]",
    "arm_names=[sparse,oracle]",
    "seeds=[0]",
    "rollouts=40",
    "evaluate_every=20",
    "evaluate_episodes=10",
    "film_every=0",
)


def measure(out: Path, overrides: list[str]) -> list[dict[str, Any]]:
    run_command("improve", ["+experiment=one_demo", *SHORT, *overrides, f"out={out}"])
    found = json.loads((out / "results.json").read_text())
    rows: list[dict[str, Any]] = []
    for task, arms in found.items():
        for arm, entry in arms.items():
            runs = sorted((out / "runs" / task / arm).glob("*/metrics.json"))
            metrics = [json.loads(path.read_text()) for path in runs]
            rows.append(
                {
                    "task": task,
                    "arm": arm,
                    "seeds": entry["seeds"],
                    "rollouts": entry["curve"]["rollouts"],
                    "success": entry["curve"]["success"],
                    "area": round(entry["area"]["value"], 3),
                    "wall_minutes": [round(m["wall_seconds"] / 60, 2) for m in metrics],
                    "updates": [m["updates"] for m in metrics],
                    "robot_minutes": [round(m["robot_minutes"], 2) for m in metrics],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for row in measure(options.out or Path(scratch) / "one_demo", options.overrides):
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
