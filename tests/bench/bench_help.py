"""What a person who is called by the reward model teaches a policy that sees pixels.

For each of `--seeds` a policy is cloned from `--demonstrations` expert demonstrations (other ones for each
seed: they begin `--stride` episodes further on) and then makes `--rollouts` of its own, in arms:

- stuck   a person, the scripted expert, takes over once the model sees the policy stuck, and finishes
- random  the same person takes over in as many rollouts, at a random moment of them, and finishes
- alone   nobody does; it goes on cloning with its own successes
- more    no rollouts: instead as many more demonstrations as the person acted for in the arm `stuck`

The policies see proprioception and the feature maps of the model's encoder. All are judged without noise and
without help in the same `--scenes`. Every run is kept in `--out`: started again, it goes on where it was.
Prints success by seed after half of the rollouts and after all, the person's decisions, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robo_reward.cli.main import load_config
from robo_reward.imports import instantiate
from robo_reward.improve.demonstrations import choose_demonstrations
from robo_reward.improve.run import improve
from robo_reward.schema import ProgressEstimate

ARMS = ("stuck", "random", "alone", "more")


class HelpAtRandom:
    """The control for `HelpWhenStuck`: the same person, asked at moments that nothing chooses."""

    needs_model = False

    def __init__(self, person: Mapping[str, Any], share: float, within: int, seed: int) -> None:
        """Ask `person` in a `share` of episodes, from one of the first `within` decisions to the end."""
        self._person, self._share, self._within = instantiate(person), share, within
        self._rng = np.random.default_rng(seed)

    def begin(self, env: Any) -> None:
        self._left = int(self._rng.integers(self._within)) if self._rng.random() < self._share else None
        self._person.begin(env)

    def action(self, observation: Mapping[str, Any], estimate: ProgressEstimate | None) -> Any:
        asked = self._left == 0
        if self._left:
            self._left -= 1
        return self._person.answer(observation, asked=asked)


def run(options: argparse.Namespace, arm: str, seed: int, helped: Mapping[str, Any] | None) -> dict[str, Any]:
    """One run's numbers; `helped` are those of the arm `stuck`."""
    offset = seed * options.stride
    keys = {
        "env": f"robo_reward/{options.task}-v0",
        "model": options.model,
        "demos": options.demos,
        "out": options.out / arm / str(seed),
        "arm": "helped",
        "seed": seed,
        "demo_kinds": "[expert]",
        "demonstrations": options.demonstrations,
        "demo_offset": offset,
        "rollouts": options.rollouts,
        "evaluate_every": max(options.rollouts // 2, 1),
        "evaluate_episodes": options.scenes,
        "film_every": 0,
        "env_args.max_episode_steps": 60,
    }
    person = "{_target_: robo_reward_sim.person.ScriptedPerson}"
    if arm == "random":
        assert helped is not None
        asked = np.array(helped["rollout_intervened_decisions"])
        alone = asked == 0 if (asked == 0).any() else asked > 0
        whole = int(np.mean(np.array(helped["rollout_decisions"])[alone]))
        settings = f"person: {person}, share: {(asked > 0).mean()}, within: {whole}, seed: {seed}"
        keys |= {
            "~intervention": "",
            "+intervention": f"{{_target_: bench_help.HelpAtRandom, {settings}}}",
        }
    if arm == "alone":
        keys |= {"~intervention": "", "+intervention": "{}"}
    if arm == "more":
        assert helped is not None
        keys |= {
            "demonstrations": options.demonstrations + worth(options, offset, helped),
            "rollouts": 0,
            "evaluate_every": 1,
        }
    overrides = [key if key.startswith("~") else f"{key}={value}" for key, value in keys.items()]
    _, config = load_config("improve", overrides)
    return improve(config)


def worth(options: argparse.Namespace, offset: int, helped: Mapping[str, Any]) -> int:
    """How many more demonstrations take a person as long as helping did, as far as the store has so many."""
    keys = [f"demos={options.demos}", "demo_kinds=[expert]", f"demo_offset={offset}", "env=none", "out=none"]
    _, config = load_config("improve", [*keys, f"demonstrations={options.demonstrations}"])
    lengths = [reader.info.length for reader in choose_demonstrations(config)]
    wanted = math.ceil(sum(helped["rollout_intervened_decisions"]) / float(np.mean(lengths)))
    _, config = load_config("improve", keys)
    there = len(choose_demonstrations(config)) - options.demonstrations
    if there < wanted:
        sys.stdout.write(f"{options.demos} has {there} more demonstrations, not {wanted}\n")
    return min(wanted, there)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder of robo-reward train")
    parser.add_argument("--demos", required=True, help="store with expert demonstrations of the task")
    parser.add_argument("--task", default="PegInsertSide", help="robo_reward/<task>-v0")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_help"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--demonstrations", type=int, default=12)
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=30)
    parser.add_argument("--scenes", type=int, default=40)
    options = parser.parse_args()
    rows: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
    for seed in options.seeds:  # all arms of a seed first: what is there of a cut run can be compared
        for arm in [arm for arm in ARMS if arm in options.arms or arm == "stuck"]:
            found = run(options, arm, seed, rows["stuck"].get(seed))
            curve = [(after, float(np.mean(success))) for after, success in found["evaluations"]]
            helped = sum(found["rollout_intervened_decisions"])
            rows[arm][seed] = {**found, "curve": curve, "helped": helped}
            shown = ", ".join(f"{rate:.2f} after {after}" for after, rate in curve)
            sys.stdout.write(
                f"{options.task} {arm:<7} seed {seed}: success {shown}; {helped} decisions helped\n"
            )
            sys.stdout.flush()
    told = {
        arm: {
            seed: {"curve": row["curve"], "helped": row["helped"], "seconds": row["wall_seconds"]}
            for seed, row in by.items()
        }
        for arm, by in rows.items()
        if by
    }
    sys.stdout.write(json.dumps({"bench": "help", "task": options.task, "arms": told}) + "\n")


if __name__ == "__main__":
    main()
