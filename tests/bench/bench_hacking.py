"""How far an adversary can fool a reward model, and what pessimism, a novelty gate and failure data change.

From unseen moments at which an episode has failed, a search looks for actions that lead to high estimated and
low true progress. Each defense is attacked anew (the adversary knows it): a defense that is only tried on
what was found without it looks better than it is. Failure data: what the search finds from starts of other
seeds, labelled by the oracle, is added to the training data, and training goes on; `more training` is the
same without that data. What a defense costs is measured on a store of ordinary episodes.

Every part is kept in `--out`: a run that is started again goes on with those that are missing. Prints a table
and one JSON line; pictures of the worst states are in `--out`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
import torch

import robo_reward_sim  # noqa: F401  (registers the environments)
from robo_reward.adapt import AdaptConfig
from robo_reward.adapt import run as adapt
from robo_reward.api import RewardModel, load
from robo_reward.evaluate.predict import true_labels
from robo_reward.metrics import Metric, bootstrap, mean_interval, paired_difference
from robo_reward.offline import encode_episode, estimate_episode
from robo_reward.shaping import Pessimistic
from robo_reward_data.store import EpisodeStore
from robo_reward_sim.hacking import (
    Candidate,
    Claim,
    Found,
    SearchPlan,
    Start,
    StreamJudge,
    Told,
    failing_starts,
    replay,
    search,
)

CLAIMS: Mapping[str, Claim] = {
    "progress": Claim(),
    "- 1 std": Claim(Pessimistic(1.0)),
    "- 2 std": Claim(Pessimistic(2.0)),
    "gate": Claim(novelty_limit=1.0),
    "- 1 std, gate": Claim(Pessimistic(1.0), novelty_limit=1.0),
}
FOOLED = 0.3


@dataclass(frozen=True)
class Arm:
    """One row: which model is attacked, what is claimed of its estimates, and how it is searched."""

    name: str
    model: str
    claim: str
    refit: bool = True


ARMS = (
    Arm("as trained", "trained", "progress"),
    Arm("pessimism", "trained", "- 1 std"),
    Arm("novelty gate", "trained", "gate"),
    Arm("failure data", "hardened", "progress"),
    Arm("more training", "control", "progress"),
    Arm("pessimism and gate", "trained", "- 1 std, gate"),
    Arm("failure data, pessimism and gate", "hardened", "- 1 std, gate"),
    Arm("as trained, random shooting", "trained", "progress", refit=False),
    Arm("pessimism, twice as much", "trained", "- 2 std"),
)


def make_env(env_id: str, model: RewardModel) -> gymnasium.Env[Any, Any]:
    """The environment as the model sees it, without a limit that a search could run into."""
    size = model.checkpoint.model.config.image_size
    return gymnasium.make(env_id, max_episode_steps=1000, cameras=model.cameras, image_size=size)


def attack(
    path: Path,
    env: gymnasium.Env[Any, Any],
    model: RewardModel,
    starts: Sequence[Start],
    claim: Claim,
    plan: SearchPlan,
) -> list[Found]:
    """Search from every start; what a killed run has found from the first ones is read from `path`."""
    world: Any = env.unwrapped
    judge = StreamJudge(model, plan.population, world.decision_ns)
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [from_json(json.loads(line)) for line in lines][: len(starts)]
    begin = time.process_time()
    with path.open("a") as file:
        for index in range(len(found), len(starts)):
            rng = np.random.default_rng((index, 77))
            found.append(search(world, judge, starts[index], claim, plan, rng))
            file.write(json.dumps(to_json(found[-1])) + "\n")
            file.flush()
    spent = time.process_time() - begin
    sys.stderr.write(f"{path.name}: {spent:.0f} CPU s, gaps {[round(each.gap, 2) for each in found]}\n")
    return found


def to_json(found: Found) -> dict[str, Any]:
    """What was found, so that it can be read again."""
    worst = [{**asdict(c), "actions": c.actions.tolist()} for c in found.worst]
    return {**asdict(found), "best": found.best.tolist(), "worst": worst}


def from_json(found: Mapping[str, Any]) -> Found:
    """The inverse of `to_json`."""
    worst = [Candidate(**{**c, "actions": np.array(c["actions"], np.float32)}) for c in found["worst"]]
    return Found(**{**found, "best": np.array(found["best"]), "worst": tuple(worst)})


@dataclass(frozen=True)
class Bench:
    """The models that are attacked: as trained, and after some more steps with and without failure data."""

    options: argparse.Namespace
    env: gymnasium.Env[Any, Any]
    plan: SearchPlan
    trained: RewardModel

    def model(self, name: str) -> RewardModel:
        """A model by its name in `ARMS`, trained further now where it has not been yet."""
        if name == "trained":
            return self.trained
        options = self.options
        data = [options.train] if name == "control" else [options.train, self._failures()]
        folder = options.out / f"{name}_{self.trained.version}"
        adapt(
            AdaptConfig(
                model=str(options.model),
                demos=[str(path) for path in data],
                out=str(folder),
                minutes=None,
                steps=options.steps,
                reader={"_target_": "robo_reward_data.store.EpisodeStore.open"},
            )
        )
        return load(folder)

    def _failures(self) -> Path:
        """What fools the model, as labelled episodes: the worst of each generation from each start."""
        options, version = self.options, self.trained.version
        starts = failing_starts(self.env, options.kinds, options.seeds[1], options.train_starts)
        path = options.out / f"training_starts_{version}.jsonl"
        found = attack(path, self.env, self.trained, starts, Claim(), self.plan)
        store = EpisodeStore.create(options.out / f"failures_{version}", exist_ok=True)
        for index, (start, each) in enumerate(zip(starts, found, strict=True)):
            for rank, candidate in enumerate(each.worst):
                name = f"adversarial_{index:03d}_{rank}"
                if name not in store:
                    store.write(replay(self.env, start, candidate, name))
        return store.path


def ordinary(model: RewardModel, store: Path, episodes: int) -> dict[str, tuple[float, float]]:
    """By claim, on ordinary episodes: mean absolute error of what is claimed, and share where nothing is."""
    checkpoint = model.checkpoint
    readers = list(EpisodeStore.open(store).episodes)[:episodes]
    errors: dict[str, list[np.ndarray]] = {name: [] for name in CLAIMS}
    for reader in readers:
        encoded = encode_episode(checkpoint.model, reader)
        said = estimate_episode(checkpoint.model, encoded, checkpoint.calibration)
        told = Told(*(np.float64(x)[None] for x in (said.progress, said.std, said.novelty)))
        truth = true_labels(checkpoint.model.config.tasks[0], reader.info).progress
        assert truth is not None
        for name, claim in CLAIMS.items():
            errors[name].append(np.abs(claim(told)[0] - truth[encoded.frames]))
    flat = {name: np.concatenate(parts) for name, parts in errors.items()}
    return {name: (float(np.nanmean(e)), float(np.isnan(e).mean())) for name, e in flat.items()}


def picture(
    path: Path, env: gymnasium.Env[Any, Any], starts: Sequence[Start], found: Sequence[Found]
) -> None:
    """The worst states: a row for each, what the cameras see at the start and then."""
    order = sorted(range(len(found)), key=lambda i: -found[i].gap)[:6]
    rows = []
    for index in order:
        start, worst = starts[index], found[index].worst[0]
        episode = replay(env, start, worst, "picture")
        at = len(start.actions) + worst.moment + 1
        views = [episode.frames[name][t] for t in (len(start.actions), at) for name in episode.frames]
        strip = cv2.resize(np.concatenate(views, axis=1), None, fx=2.5, fy=2.5)
        text = (
            f"{start.kind} {index}: start true {start.truth[-1]:.2f} | claimed {worst.claim:.2f} true "
            f"{worst.truth:.2f} std {worst.std:.2f} novelty {worst.novelty:.1f} after {worst.moment + 1}"
        )
        bar = np.zeros((24, strip.shape[1], 3), np.uint8)
        cv2.putText(bar, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
        rows.append(np.concatenate([bar, strip]))
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))


def shown(metric: Metric) -> str:
    """A number with its interval."""
    return f"{metric.value:5.2f} [{metric.low:5.2f}, {metric.high:5.2f}]"


def summary(arm: Arm, found: Sequence[Found], reference: Sequence[Found]) -> dict[str, Any]:
    """The numbers of one row; intervals are bootstrapped over starts."""
    gaps = np.array([each.gap for each in found])
    base = np.array([each.gap for each in reference])
    rng = np.random.default_rng(0)
    passed = np.array([max(each.passed, 0.0) for each in found])
    return {
        "arm": arm.name,
        "claim": arm.claim,
        "starts": len(gaps),
        "history": asdict(mean_interval(passed, rng)),
        "mean": asdict(mean_interval(gaps, rng)),
        "change": asdict(paired_difference(gaps, base, rng)),
        "fooled": asdict(mean_interval((gaps > FOOLED).astype(np.float64), rng)),
        "worst": asdict(bootstrap(lambda rows: float(gaps[rows].max()), len(gaps), rng)),
        "gaps": gaps.round(3).tolist(),
    }


def print_table(
    rows: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    """The table."""
    sys.stdout.write(
        f"{'gap of the worst moment, per start':<36}{'before search':>21}{'found: mean':>21}{'change':>21}"
        f"{f'share > {FOOLED}':>21}{'worst of all':>21}{'error':>8}{'silent':>8}\n"
    )
    for arm in ARMS:
        if arm.name not in rows:
            continue
        cells = [
            shown(Metric(**rows[arm.name][key])) for key in ("history", "mean", "change", "fooled", "worst")
        ]
        error, silent = costs[arm.model][arm.claim]
        columns = "".join(f"{cell:>21}" for cell in cells)
        sys.stdout.write(f"{arm.name:<36}{columns}{error:8.3f}{silent:8.3f}\n")
    sys.stdout.write("error, silent: mean absolute error and share without a claim, on ordinary episodes\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="run folder that is attacked")
    parser.add_argument("--train", type=Path, required=True, help="store that it was trained on")
    parser.add_argument("--test", type=Path, required=True, help="store of other ordinary episodes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--env", default="robo_reward/PegInsertSide-v0")
    parser.add_argument("--kinds", nargs="+", default=["near_miss", "aborted", "random_tail"])
    parser.add_argument("--arms", nargs="+", default=[arm.name for arm in ARMS], help="rows of the table")
    parser.add_argument("--starts", type=int, default=12, help="unseen starts that are attacked")
    parser.add_argument("--train-starts", type=int, default=18, help="starts from which failure data is made")
    parser.add_argument("--seeds", type=int, nargs=2, default=(2_000_000, 3_000_000), help="unseen, training")
    parser.add_argument("--population", type=int, default=24)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300, help="of further training")
    parser.add_argument("--episodes", type=int, default=60, help="ordinary episodes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    arms = [arm for arm in ARMS if arm.name in {*options.arms, ARMS[0].name}]
    trained = load(options.model)
    env = make_env(options.env, trained)
    plan = SearchPlan(population=options.population, iterations=options.iterations)
    unseen = failing_starts(env, options.kinds, options.seeds[0], options.starts)
    bench = Bench(options, env, plan, trained)
    found: dict[str, list[Found]] = {}
    costs: dict[str, Any] = {}
    for arm in arms:
        model = bench.model(arm.model)
        stem = f"{re.sub(r'[^a-z]+', '_', arm.name)}_{model.version}_{plan.population}x{plan.iterations}"
        arm_plan = replace(plan, refit=arm.refit)
        found[arm.name] = attack(
            options.out / f"{stem}.jsonl", env, model, unseen, CLAIMS[arm.claim], arm_plan
        )
        picture(options.out / f"{stem}.png", env, unseen, found[arm.name])
        if arm.model not in costs:
            costs[arm.model] = ordinary(model, options.test, options.episodes)
    rows = {arm.name: summary(arm, found[arm.name], found[ARMS[0].name]) for arm in arms}
    print_table(rows, costs)
    facts = {"model": trained.version, "plan": asdict(plan), "seeds": options.seeds, "kinds": options.kinds}
    result = {"bench": "hacking", **facts, "arms": list(rows.values()), "ordinary": costs}
    (options.out / "hacking.json").write_text(json.dumps(result))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
