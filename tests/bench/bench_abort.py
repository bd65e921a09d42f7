"""What giving up early saves on a task with restarts, measured on rollouts that the rule was not chosen on.

A policy that succeeds about every second time (a mix of scripted demonstrators, good and bad) is run again
and again until it succeeds. Nobody tells it that it has failed: a failed attempt lasts to the time limit. The
rule is chosen by the learned model's estimates on one set of rollouts, and rollouts of other seeds are
replayed with and without it. Two more rules are chosen and judged alike: one that knows true progress, and
one that knows only the clock (give up after so long): a learned model has to beat the clock. `asked` is the
confidence without which no rule is used: 0.9 is what `improve` asks for; at 0.5 a rule is more likely to help
than not. One split says little, so rules are also chosen on random halves of all rollouts and judged on the
others. The first attempts are lived in the simulator too, aborts and all, and must take as long as their
replay.

Estimates of rollouts are kept in `--out`. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float32

import robo_reward_sim  # noqa: F401  (registers the environments)
from robo_reward.abort import AbortRule, Attempts, Confusion, Rollout, choose_abort_rule, replay
from robo_reward.api import RewardModel, load
from robo_reward.metrics import Metric, bootstrap, mean_interval
from robo_reward.offline import encode_episode, estimate_episode
from robo_reward.testing import MemoryReader
from robo_reward_sim.demonstrators import Moment, demonstrator
from robo_reward_sim.rollout import rollout

MIX = {"expert": 0.35, "noisy": 0.2, "near_miss": 0.25, "random_tail": 0.2}
RESETS_S = (0.0, 2.0, 10.0)
ASKED = (0.9, 0.5)
_ALWAYS = 2.0  # progress is always below


@dataclass(frozen=True)
class Lived:
    """One attempt as it went: estimated and true progress at every moment, and how it ended."""

    time_s: list[float]
    progress: list[float]
    truth: list[float]
    success: bool
    kind: str

    def attempt(self, values: Sequence[float]) -> Rollout:
        """The attempt with this for progress."""
        return Rollout(np.array(self.time_s), np.array(values, np.float64), self.success)


def policy(env: gymnasium.Env[Any, Any], seed: int) -> tuple[str, Any, int]:
    """The kind of attempt `seed`, how it acts (it stands still where its plan has ended), and its scene."""
    rng = np.random.default_rng((seed, 4))
    kind = str(rng.choice(list(MIX), p=list(MIX.values())))
    plan = demonstrator(kind)(env.unwrapped.task, rng)

    def act(moment: Moment) -> Float32[np.ndarray, " 4"]:
        action = plan.act(moment)
        return np.append(np.zeros(3), moment.last[3]).astype(np.float32) if action is None else action

    return kind, act, int(rng.integers(2**31))


def live(env: gymnasium.Env[Any, Any], model: RewardModel, seed: int) -> Lived:
    """One attempt to its end, or to the time limit."""
    kind, act, scene = policy(env, seed)
    episode = rollout(env, act, seed=scene)
    checkpoint, info = model.checkpoint, episode.info
    encoded = encode_episode(checkpoint.model, MemoryReader(episode))
    said = estimate_episode(checkpoint.model, encoded, checkpoint.calibration)
    assert info.truth is not None
    assert info.success is not None
    truth = (info.truth.stage + info.truth.tau) / len(info.stage_names)
    return Lived(
        time_s=(info.stamp_ns * 1e-9).tolist(),
        progress=said.progress.tolist(),
        truth=truth.tolist(),
        success=bool(info.success[-1]),
        kind=kind,
    )


def lived(path: Path, env: gymnasium.Env[Any, Any], model: RewardModel, seed: int, count: int) -> list[Lived]:
    """Attempts `seed`, `seed + 1`, ...; those that a killed run has made are read."""
    lines = path.read_text().splitlines() if path.is_file() else []
    made = [Lived(**json.loads(line)) for line in lines][:count]
    with path.open("a") as file:
        for index in range(len(made), count):
            made.append(live(env, model, seed + index))
            file.write(json.dumps(asdict(made[-1])) + "\n")
            file.flush()
    return made


def live_again(
    env: gymnasium.Env[Any, Any], model: RewardModel, seed: int, count: int, rule: AbortRule | None
) -> list[float]:
    """Seconds that attempts take in the simulator, each judged by a live stream and aborted by the rule."""
    base: Any = env.unwrapped
    seconds: list[float] = []
    for index in range(count):
        _, act, scene = policy(env, seed + index)
        stream, now, before, over = model.stream(), 0, 0, False
        observation, _ = env.reset(seed=scene)
        last = np.zeros(4, np.float32)
        estimate = stream.push(observation["images"], 0)
        while not over:
            last = act(Moment(now // base.decision_ns, base.privileged_state(), base.oracle(), last))
            observation, _, terminated, truncated, _ = env.step(last)
            before, now = now, now + base.decision_ns
            estimate = stream.push(observation["images"], now)
            over = terminated or truncated
            hopeless = rule is not None and rule.aborts(before * 1e-9, now * 1e-9, estimate.progress)
            over = over or hopeless
        seconds.append(now * 1e-9)
    return seconds


def clock_rule(rollouts: Sequence[Rollout], reset_s: float) -> AbortRule | None:
    """Give up after so long, whatever is seen: the time with the shortest makespan, if any is shorter."""
    longest = max(float(rollout.time_s[-1]) for rollout in rollouts)
    without = replay(rollouts, None, reset_s).makespan_s()
    nothing = Confusion(0, 0, 0, 0)
    rules = [
        AbortRule(float(t), _ALWAYS, nothing, 0.0, without, 1.0) for t in np.linspace(0, longest, 41)[1:-1]
    ]
    judged = [replay(rollouts, rule, reset_s) for rule in rules]
    spans = [attempts.makespan_s() for attempts in judged]
    best = int(np.argmin(spans))
    if spans[best] >= without:
        return None
    return replace(rules[best], confusion=judged[best].confusion, makespan_s=spans[best])


def chosen(knows: str, known: Sequence[Lived], reset_s: float, seed: int) -> AbortRule | None:
    """The best rule on these attempts, however sure it is that it helps."""
    rollouts = [each.attempt(seen(knows, each)) for each in known]
    if knows == "the clock":
        return clock_rule(rollouts, reset_s)
    return choose_abort_rule(rollouts, reset_s, np.random.default_rng(seed), confidence=1e-3)


def seen(knows: str, attempt: Lived) -> list[float]:
    """What a rule that knows this looks at; to the clock, only that the attempt goes on matters."""
    return attempt.progress if knows == "estimates" else attempt.truth


def judged(
    knows: str, rule: AbortRule | None, unseen: Sequence[Lived], reset_s: float, asked: float
) -> dict[str, Any]:
    """A rule on rollouts that it was not chosen on; intervals are bootstrapped over them."""
    rng = np.random.default_rng(0)
    used = rule if rule is not None and rule.confidence >= asked else None
    rollouts = [each.attempt(seen(knows, each)) for each in unseen]
    with_rule, without = replay(rollouts, used, reset_s), replay(rollouts, None, reset_s)

    def saved(rows: np.ndarray) -> float:
        return 1.0 - with_rule.makespan_s(rows) / without.makespan_s(rows)

    return {
        "knows": knows,
        "reset_s": reset_s,
        "asked": asked,
        "rule": None if used is None else asdict(used),
        "confusion": asdict(with_rule.confusion),
        "without_s": asdict(interval(without)),
        "with_s": asdict(interval(with_rule)),
        "saved": asdict(bootstrap(saved, len(unseen), rng)),
        "replayed_s": asdict(mean_interval(with_rule.makespans_s(1000, rng), rng)),
        "replayed_without_s": asdict(mean_interval(without.makespans_s(1000, rng), rng)),
    }


def halves(
    knows: str, attempts: Sequence[Lived], reset_s: float, splits: int
) -> dict[float, tuple[float, float, float]]:
    """Over random halves, by the confidence asked: mean and least share saved, share with a rule."""
    saved: dict[float, list[float]] = {asked: [] for asked in ASKED}
    used: dict[float, int] = dict.fromkeys(ASKED, 0)
    for split in range(splits):
        order = np.random.default_rng((split, 9)).permutation(len(attempts))
        first, second = ([attempts[i] for i in part] for part in np.array_split(order, 2))
        rule = chosen(knows, first, reset_s, split)
        rollouts = [each.attempt(seen(knows, each)) for each in second]
        without = replay(rollouts, None, reset_s).makespan_s()
        for asked in ASKED:
            sure = rule is not None and rule.confidence >= asked
            used[asked] += sure
            with_rule = replay(rollouts, rule if sure else None, reset_s).makespan_s()
            saved[asked].append(1.0 - with_rule / without)
    return {
        asked: (float(np.mean(values)), min(values), used[asked] / splits) for asked, values in saved.items()
    }


def interval(attempts: Attempts) -> Metric:
    """The makespan with its interval, over the same resamples whatever the rule."""
    return bootstrap(attempts.makespan_s, len(attempts.cost_s), np.random.default_rng(0))


def shown(metric: Mapping[str, float], percent: bool = False) -> str:
    """A number with its interval."""
    scale, digits = (100.0, 0) if percent else (1.0, 1)
    value, low, high = (scale * metric[key] for key in ("value", "low", "high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table."""
    sys.stdout.write(
        f"{'reset':>6}  {'knows':<14}{'asked':>6}{'looks at':>10}{'gives up below':>16}{'without, s':>20}"
        f"{'with, s':>20}{'saved, %':>16}{'aborted F, S':>15}   halves: saved (least), used, %\n"
    )
    for row in rows:
        rule, confusion = row["rule"], row["confusion"]
        look = "never" if rule is None else f"{rule['check_s']:.2f} s"
        below = "" if rule is None else "always" if rule["below"] == _ALWAYS else f"{rule['below']:.2f}"
        failures = confusion["aborted_failures"] + confusion["kept_failures"]
        successes = confusion["aborted_successes"] + confusion["kept_successes"]
        aborted = f"{confusion['aborted_failures']}/{failures}, {confusion['aborted_successes']}/{successes}"
        mean, least, used = (100.0 * value for value in row["halves"])
        sys.stdout.write(
            f"{row['reset_s']:>4.0f} s  {row['knows']:<14}{row['asked']:>6.1f}{look:>10}{below:>16}"
            f"{shown(row['without_s']):>20}{shown(row['with_s']):>20}{shown(row['saved'], percent=True):>16}"
            f"{aborted:>15}   {mean:.0f} ({least:.0f}), {used:.0f}\n"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--env", default="robo_reward/PegInsertSide-v0")
    parser.add_argument(
        "--rollouts", type=int, default=60, help="on which rules are chosen, and as many others"
    )
    parser.add_argument(
        "--seeds", type=int, nargs=2, default=(4_000_000, 5_000_000), help="chosen on, judged on"
    )
    parser.add_argument("--splits", type=int, default=12, help="random halves")
    parser.add_argument("--live", type=int, default=6, help="attempts that are lived again with the rule")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    model = load(options.model)
    size = model.checkpoint.model.config.image_size
    env = gymnasium.make(options.env, cameras=model.cameras, image_size=size)
    known, unseen = (
        lived(options.out / f"rollouts_{model.version}_{seed}.jsonl", env, model, seed, options.rollouts)
        for seed in options.seeds
    )
    rows: list[dict[str, Any]] = []
    lookers: list[AbortRule] = []
    for reset_s in RESETS_S:
        for knows in ("estimates", "the clock", "true progress"):
            rule = chosen(knows, known, reset_s, 1)
            over = halves(knows, [*known, *unseen], reset_s, options.splits)
            for asked in ASKED:
                row = judged(knows, rule, unseen, reset_s, asked)
                rows.append({**row, "halves": over[asked]})
            if knows == "estimates" and rule is not None:
                lookers.append(rule)
    print_table(rows)
    learned = lookers[0] if lookers else None
    again = live_again(env, model, options.seeds[1], options.live, learned)
    attempts = [each.attempt(each.progress) for each in unseen[: options.live]]
    apart = float(np.abs(replay(attempts, learned, 0.0).cost_s - again).max()) if again else 0.0
    sys.stdout.write(f"{options.live} attempts lived again with the rule: {apart:.3f} s from their replay\n")
    rates = {"chosen_on": known, "judged_on": unseen}
    facts = {
        "model": model.version,
        "mix": MIX,
        "rollouts": options.rollouts,
        "success": {name: float(np.mean([each.success for each in half])) for name, half in rates.items()},
        "live_apart_s": apart,
    }
    sys.stdout.write(json.dumps({"bench": "abort", **facts, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
