"""`robo-reward improve`: a better policy from demonstrations and rollouts. Read it from top to bottom.

The loop is: run a rollout with a little noise, store it, make as many updates as its decisions pay for, save.
A rollout is written before it is learned from, and the learner is saved after: a killed run goes on with the
rollout it was in, and ends as it would have ended without the kill.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robo_reward.checkpoint import write_atomic
from robo_reward.errors import CheckpointError
from robo_reward.imports import instantiate
from robo_reward.improve.config import ImproveConfig, check_config
from robo_reward.improve.demonstrations import (
    choose_demonstrations,
    demonstration_rollout,
    instruction_of,
)
from robo_reward.improve.display import ImproveDisplay
from robo_reward.improve.learner import Learner
from robo_reward.improve.replay import Replay, Shaping
from robo_reward.improve.rollouts import Rollout, load_rollout, save_rollout
from robo_reward.improve.savings import PromisingStarts, abort_rule
from robo_reward.improve.trust import Scaled, outcome_trust
from robo_reward.improve.worker import Order, Worker

__all__ = ["Evaluation", "improve", "run"]

_RUN_FILE, _STATE, _METRICS = "improve.json", "state.pt", "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """The policy without noise, after so many rollouts: one entry for each evaluation episode."""

    rollouts: int
    success: tuple[bool, ...]
    decisions: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Share of successes."""
        return float(np.mean(self.success))


def run(config: ImproveConfig) -> None:
    """Improve, then write `policy.pt`, `metrics.json` and `report.html` into `out`.

    Raises:
        ConfigError, DataError: options, demonstrations or an environment that cannot be used.
        CheckpointError: `out` holds something else.
    """
    from robo_reward.improve.report import write_improve_report

    metrics = improve(config)
    report = Path(config.out) / "report.html"
    write_improve_report(Path(config.out), report)
    print_summary(metrics, report)


def print_summary(metrics: dict[str, Any], report: Path) -> None:
    """The last words of a run."""
    from rich.console import Console

    console = Console()
    for rollouts, success in metrics["evaluations"]:
        console.print(f"after {rollouts:4d} rollouts: success {np.mean(success):.2f} of {len(success)}")
    minutes = metrics["robot_minutes"]
    console.print(f"{metrics['rollouts']} rollouts, {minutes:.1f} robot minutes, report: {report}")


def improve(config: ImproveConfig) -> dict[str, Any]:
    """Improve a policy and return what `metrics.json` says; a finished run returns it at once."""
    check_config(config)
    folder = Path(config.out)
    readers = choose_demonstrations(config)
    claim = _claim(config, [reader.info.uid for reader in readers])
    if (done := _finished(folder, claim, config.resume)) is not None:
        return done
    torch.set_num_threads(config.threads)
    worker = Worker(config, instruction_of(readers))
    try:
        demonstrations = [demonstration_rollout(config, worker, reader) for reader in readers]
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / _RUN_FILE, json.dumps(claim, indent=1).encode())
        session = _Session(config, worker, demonstrations)
        session.run()
        return session.finish()
    finally:
        worker.close()


@dataclass
class _Session:
    """One run while it is going on."""

    config: ImproveConfig
    worker: Worker
    demonstrations: Sequence[Rollout]
    evaluations: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0
    clone_error: float = float("nan")

    def __post_init__(self) -> None:
        config = self.config
        self.folder = Path(config.out)
        shaping = Shaping(
            progress=instantiate(config.shaping.progress),
            potential=instantiate(config.shaping.potential),
            rule=instantiate(config.shaping.rule),
            kappa=config.shaping.kappa,
            discount=config.learner.discount,
        )
        self.shaping = shaping
        self.replay = Replay(shaping, config.learner.n_step, config.savings.priority)
        self.starts = PromisingStarts()
        for demonstration in self.demonstrations:
            self.replay.add(demonstration)
        observation = sum(part.shape[1] for part in self.demonstrations[0].parts.values())
        self.learner = Learner(config.learner, observation, self.worker.action_size, config.seed)
        self.done = 0

    # --- the loop ---

    def run(self) -> None:
        """Everything up to the last rollout."""
        config = self.config
        begun = self._restore()
        if not begun:
            self.learner.fit_scale(self.replay.observations(), self.replay.sizes)
            self.clone_error = self.learner.clone(self.replay)
        title = f"improve ({config.arm_name}, seed {config.seed})"
        with ImproveDisplay(self.folder, config.rollouts, self.done, title) as display:
            if not begun:
                self._evaluate(display)
                self._save()
            while self.done < config.rollouts:
                begin = time.monotonic()
                rollout = self._next_rollout()
                self.replay.add(rollout)
                numbers = self._learn(rollout)
                self.done += 1
                if config.evaluate_every and (
                    self.done % config.evaluate_every == 0 or self.done == config.rollouts
                ):
                    self._evaluate(display)
                self.seconds += time.monotonic() - begin
                self._save()
                rates = self.evaluations
                numbers |= {"decisions": float(rollout.decisions), "robot_minutes": self.robot_minutes}
                display.rollout(self.done - 1, self._recent(), rates[-1].rate if rates else None, numbers)

    def _next_rollout(self) -> Rollout:
        """The rollout that a killed run had written already, or a new one."""
        path = self._rollout_path(self.done)
        if path.is_file():
            return load_rollout(path)
        self.worker.set_policy(self.learner.behavior(self.done))
        order = self._order()
        rollout, states = self.worker.run(order)
        while rollout.decisions == 0:  # the physics failed at once: there is nothing to learn from
            order = dataclasses.replace(order, seed=order.seed + 1, start=None)
            rollout, states = self.worker.run(order)
        if states and order.start is None:
            self.starts.add(rollout, states, self.worker.first_images, self.shaping.progress(rollout)[0])
        path.parent.mkdir(exist_ok=True)
        save_rollout(path, rollout)
        return rollout

    def _order(self) -> Order:
        """The next rollout to run."""
        config, savings = self.config, self.config.savings
        seed = _seed(config.seed, 0, self.done, 0)
        rng = np.random.default_rng((seed, 2))
        start = self.starts.draw(rng) if rng.random() < savings.promising_resets else None
        whole = [rollout for rollout in self.rollouts if not rollout.source["started_after"]]
        return Order(
            index=self.done,
            seed=seed,
            noise=self.learner.noise(self.done),
            film=bool(config.film_every) and self.done % config.film_every == 0,
            abort=abort_rule(whole, self.shaping.progress, self.done, rng) if savings.abort else None,
            start=start,
            keep_states=savings.promising_resets > 0,
        )

    def _learn(self, rollout: Rollout) -> dict[str, float]:
        numbers: dict[str, float] = {}
        if self.config.shaping.outcome_trust:
            numbers["trust"] = self._fade()
        return numbers | self.learner.learn(self.replay, rollout.decisions)

    def _fade(self) -> float:
        """Scale the potential of every episode by how well it has told successes from failures."""
        trust = outcome_trust(self.rollouts, self.shaping.progress)
        potential = Scaled(self.shaping.potential, trust)
        self.replay.relabel(self.replay.episodes, dataclasses.replace(self.shaping, potential=potential))
        return trust

    def _evaluate(self, display: ImproveDisplay) -> None:
        """Judge the policy without noise, on the same episodes every time."""
        config = self.config
        if not (config.evaluate_every and config.evaluate_episodes):
            return
        self.worker.set_policy(self.learner.behavior(self.done))
        found: list[Rollout] = []
        for index in range(config.evaluate_episodes):
            film = index < 3 and bool(config.film_every) and self.done in (0, config.rollouts)
            order = Order(index=index, seed=_seed(config.seed, 1, index, 0), noise=0.0, film=film)
            rollout, _ = self.worker.run(order)
            found.append(rollout)
            if film and rollout.decisions:
                path = self.folder / "evaluations" / f"after_{self.done:06d}_{index:03d}.npz"
                path.parent.mkdir(exist_ok=True)
                save_rollout(path, rollout)
        self.evaluations.append(
            Evaluation(self.done, tuple(r.succeeded for r in found), tuple(r.decisions for r in found))
        )
        display.evaluation(self.done, self.evaluations[-1].rate)

    # --- what is kept ---

    def _rollout_path(self, index: int) -> Path:
        return self.folder / "rollouts" / f"{index:06d}.npz"

    @property
    def rollouts(self) -> list[Rollout]:
        """The policy's own, so far."""
        return self.replay.episodes[len(self.demonstrations) :]

    @property
    def robot_minutes(self) -> float:
        """How long the robot was busy with rollouts."""
        return sum(rollout.seconds for rollout in self.rollouts) / 60

    def _recent(self) -> float:
        last = self.rollouts[-20:]
        return float(np.mean([rollout.succeeded for rollout in last])) if last else 0.0

    def _save(self) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "learner": self.learner.state_dict(),
                "done": self.done,
                "evaluations": [dataclasses.astuple(e) for e in self.evaluations],
                "seconds": self.seconds,
                "clone_error": self.clone_error,
            },
            buffer,
        )
        write_atomic(self.folder / _STATE, buffer.getvalue())

    def _restore(self) -> bool:
        """Whether there was a state to go on from."""
        path = self.folder / _STATE
        if not path.is_file():
            return False
        state = torch.load(path, weights_only=True)
        self.learner.load_state_dict(state["learner"])
        self.evaluations = [Evaluation(*e) for e in state["evaluations"]]
        self.done, self.seconds = state["done"], state["seconds"]
        self.clone_error = state["clone_error"]
        for index in range(self.done):
            self.replay.add(load_rollout(self._rollout_path(index)))
        return True

    def finish(self) -> dict[str, Any]:
        """Write the policy and the numbers; returns the numbers."""
        config, rollouts = self.config, self.rollouts
        buffer = io.BytesIO()
        torch.save(
            {"controller": self.learner.controller.state_dict(), "observe": list(self.replay.observed)},
            buffer,
        )
        write_atomic(self.folder / "policy.pt", buffer.getvalue())
        metrics = {
            "arm": config.arm_name,
            "seed": config.seed,
            "privileged": config.privileged,
            "observe": list(self.replay.observed),
            "success_source": str(config.success.get("_target_", "")),
            "model_version": self.worker.model.version if self.worker.model else "",
            "rollouts": len(rollouts),
            "rollout_success": [rollout.succeeded for rollout in rollouts],
            "rollout_seconds": [round(rollout.seconds, 4) for rollout in rollouts],
            "rollout_aborted": [rollout.aborted for rollout in rollouts],
            "rollout_started_after": [rollout.source["started_after"] for rollout in rollouts],
            "rollout_intervened": [bool(rollout.intervened.any()) for rollout in rollouts],
            "evaluations": [[e.rollouts, list(e.success)] for e in self.evaluations],
            "robot_minutes": self.robot_minutes,
            "wall_seconds": round(self.seconds, 1),
            "updates": self.learner.updates,
            "clone_error": self.clone_error,
        }
        write_atomic(self.folder / _METRICS, json.dumps(metrics, indent=1).encode())
        return metrics


def _seed(*key: int) -> int:
    """A seed for the environment from what identifies an episode."""
    return int(np.random.SeedSequence(key).generate_state(1)[0] % 2**31)


def _claim(config: ImproveConfig, uids: Sequence[str]) -> dict[str, Any]:
    ignored = {"out", "resume", "threads", "demos", "workers"}
    kept = {key: value for key, value in dataclasses.asdict(config).items() if key not in ignored}
    return json.loads(json.dumps({"config": kept, "demonstrations": list(uids)}))


def _finished(folder: Path, claim: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The numbers of this very run where it is finished; None where it may be begun or gone on with."""
    path = folder / _RUN_FILE
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"'{folder}' is not empty and no run of improve: choose another out=")
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != claim:
        old, new = found.get("config", {}), claim["config"]
        changed = sorted(key for key in new if old.get(key) != new[key]) or ["demonstrations"]
        raise CheckpointError(
            f"'{folder}' is a run with other {', '.join(changed)}: choose another out=, or delete it"
        )
    if (folder / _METRICS).is_file():
        return json.loads((folder / _METRICS).read_text(encoding="utf-8"))
    if not resume:
        raise CheckpointError(f"'{folder}' is a half-finished run: resume=true goes on, or delete it")
    return None
