"""`robo-reward improve`: a better policy from demonstrations and rollouts. Read it from top to bottom.

The loop is: run a rollout with a little noise, store it, make as many updates as its decisions pay for, save.
A rollout is written before it is learned from, and the learner is saved after: a killed run goes on with the
rollout it was in. It ends as it would have ended without the kill but for what lives in memory alone: what
workers > 0 had in flight, and the places that promising_resets had found.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robo_reward.checkpoint import checkpoint_version, write_atomic
from robo_reward.errors import CheckpointError, ConfigError, RoboRewardError
from robo_reward.imports import instantiate
from robo_reward.improve.config import ImproveConfig, check_config
from robo_reward.improve.demonstrations import (
    annotations_digest,
    choose_demonstrations,
    demonstration_rollout,
    instruction_of,
)
from robo_reward.improve.display import ImproveDisplay
from robo_reward.improve.learner import Learner
from robo_reward.improve.observer import MAP
from robo_reward.improve.policy import save_policy
from robo_reward.improve.refresh import refresh, relabel
from robo_reward.improve.replay import Replay, Shaping
from robo_reward.improve.rollouts import Rollout, load_rollout, save_rollout
from robo_reward.improve.runners import LocalRunner, RayRunner, Runner
from robo_reward.improve.savings import PromisingStarts, abort_rule
from robo_reward.improve.trust import Scaled, outcome_trust
from robo_reward.improve.worker import Order, RolloutResult, Worker
from robo_reward.schema import EpisodeReader

__all__ = ["Evaluation", "improve", "run"]

_RUN_FILE, _STATE, _METRICS = "improve.json", "state.pt", "metrics.json"
_ATTEMPTS = 3


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


@dataclass(frozen=True)
class _Best:
    """The policy that did best in an evaluation, after so many rollouts."""

    rollouts: int
    rate: float
    weights: Mapping[str, torch.Tensor]


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
    if metrics["policy_success"]:
        success = metrics["policy_success"]
        console.print(
            f"left is the policy after {metrics['policy_after']} rollouts: success {np.mean(success):.2f} of "
            f"{len(success)} in other scenes"
        )
    console.print(f"{metrics['rollouts']} rollouts, {minutes:.1f} robot minutes, report: {report}")


def improve(config: ImproveConfig) -> dict[str, Any]:
    """Improve a policy and return what `metrics.json` says; a finished run returns it at once."""
    check_config(config)
    folder = Path(config.out)
    readers = choose_demonstrations(config)
    claim = _claim(config, readers)
    if (done := _finished(folder, claim, config.resume)) is not None:
        return done
    torch.set_num_threads(config.threads)
    instruction = instruction_of(readers)
    worker = Worker(config, instruction)
    try:
        if config.workers and worker.env.metadata.get("one_robot"):
            raise ConfigError(
                f"workers={config.workers}: each would command the one robot that there is: say workers=0"
            )
        demonstrations = [demonstration_rollout(config, worker, reader) for reader in readers]
        _tell_absent(config, worker, readers)
        if config.refresh_every and worker.model is None:
            raise ConfigError("refresh_every needs a reward model: this run reads none, say refresh_every=0")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / _RUN_FILE, json.dumps(claim, indent=1).encode())
        local = LocalRunner(worker, instruction)
        runner = RayRunner(config, instruction, config.workers) if config.workers else local
        try:
            session = _Session(config, worker, runner, instruction, demonstrations)
            session.run()
            return session.finish()
        finally:
            runner.close()
    finally:
        worker.close()


@dataclass
class _Session:
    """One run while it is going on."""

    config: ImproveConfig
    worker: Worker
    runner: Runner
    instruction: str
    demonstrations: Sequence[Rollout]
    evaluations: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0
    clone_error: float = float("nan")
    refreshed: int = 0
    trust: float = 1.0  # in the potential, by outcomes
    best: _Best | None = None

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
        self.replay = Replay(
            shaping,
            config.learner.n_step,
            config.savings.priority,
            keep_successes=config.learner.keep_successes,
            help_in_vain=config.learner.help_in_vain,
        )
        self.starts = PromisingStarts()
        for demonstration in self.demonstrations:
            self.replay.add(demonstration)
        sizes = {name: part.shape[1] for name, part in self.demonstrations[0].parts.items()}
        self.learner = Learner(
            config.learner, sum(sizes.values()), self.worker.action_size, config.seed, sizes.get(MAP, 0)
        )
        self.done = 0
        self.display: ImproveDisplay | None = None
        self.cut_told = False

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
            self.display = display
            if not begun:
                self._evaluate(display)
                self._save()
            pending = self._start(self.done)
            while self.done < config.rollouts:
                begin = time.monotonic()
                rollouts = self._finish(pending)
                # Actors go on with the policy as it is, while the learner learns from what they have brought.
                pending = self._start(self.done + len(rollouts)) if config.workers else None
                for rollout in rollouts:
                    self._take_in(rollout, begin, display)
                    begin = time.monotonic()
                pending = pending or self._start(self.done)

    def _take_in(self, rollout: Rollout, begin: float, display: ImproveDisplay) -> None:
        """Learn from one rollout, judge the policy where it is time to, and save."""
        config, model = self.config, self.worker.model
        if model is not None and rollout.model_version != model.version:
            # It was in flight while the model was refreshed: potentials of two versions never meet.
            rollout = relabel(model, rollout, self.instruction)
        self.replay.add(rollout)
        numbers = self._learn(rollout)
        self.done += 1
        if config.refresh_every and self.done % config.refresh_every == 0:
            self._refresh()
        if config.evaluate_every and (self.done % config.evaluate_every == 0 or self.done == config.rollouts):
            self._evaluate(display)
        self.seconds += time.monotonic() - begin
        self._save()
        rates = self.evaluations
        numbers |= {"decisions": float(rollout.decisions), "robot_minutes": self.robot_minutes}
        display.rollout(self.done - 1, self._recent(), rates[-1].rate if rates else None, numbers)

    def _start(self, first: int) -> tuple[list[Order], Any]:
        """Begin the next rollouts, one for each worker; what a killed run had written is not run again."""
        count = min(max(self.config.workers, 1), self.config.rollouts - first)
        orders = [self._order(index) for index in range(first, first + count)]
        missing = [order for order in orders if not self._rollout_path(order.index).is_file()]
        return orders, self.runner.start(missing, self.learner.policy)

    def _finish(self, started: tuple[list[Order], Any]) -> list[Rollout]:
        """The rollouts that were begun, each on disk before anything is learned from it."""
        orders, pending = started
        fresh = {result.rollout.source["index"]: result for result in self.runner.finish(pending)}
        rollouts: list[Rollout] = []
        for order in orders:
            path = self._rollout_path(order.index)
            if order.index in fresh:
                result = self._unbroken(fresh[order.index], order)
                if result.states and order.start is None:
                    progress, _ = self.shaping.progress(result.rollout)
                    self.starts.add(result.rollout, result.states, dict(result.first), progress)
                if order.start is not None and result.rollout.source["started_after"]:
                    self.starts.judge(order.start, success=result.rollout.succeeded)
                path.parent.mkdir(exist_ok=True)
                save_rollout(path, result.rollout)
            rollouts.append(load_rollout(path))
        return rollouts

    def _unbroken(self, result: RolloutResult, order: Order) -> RolloutResult:
        """The result of an order, or of another attempt at it where the robot broke this one off.

        A rollout that broke off at once is run again elsewhere: there is nothing to learn from it. An
        evaluation episode is run again in its scene, whenever it broke off: a robot's fault is no policy's.
        Where it breaks off every time, but never at once, the policy brings it about, and has failed there.

        Raises:
            RoboRewardError: `_ATTEMPTS` broke off, the last at once: a held robot would be reset for ever.
        """
        attempts = 1
        self._tell_cut(result.rollout, order)
        while _broken(result.rollout, order):
            if attempts == _ATTEMPTS:
                if result.rollout.decisions:
                    break
                what = "rollout" if order.learned_from else "evaluation episode"
                why = result.rollout.source.get("cut", "the physics failed")
                raise RoboRewardError(
                    f"{what} {order.index} broke off {attempts} times in a row: {why} (once that is mended, "
                    "the same command goes on from there)"
                )
            if order.learned_from:
                order = dataclasses.replace(order, seed=order.seed + 1, start=None)
            (result,) = self.runner.finish(self.runner.start([order], self.learner.policy))
            attempts += 1
        return result

    def _tell_cut(self, rollout: Rollout, order: Order) -> None:
        """Say so the first time that the robot broke off what it was to do."""
        if self.cut_told or "cut" not in rollout.source or self.display is None:
            return
        self.cut_told = True
        what = "rollout" if order.learned_from else "evaluation episode"
        self.display.say(
            f"{what} {order.index} was cut off after {rollout.decisions} decisions: {rollout.source['cut']} "
            "(told once; source['cut'] of a rollout keeps its reason)"
        )

    def _order(self, index: int) -> Order:
        """Rollout `index`."""
        config, savings = self.config, self.config.savings
        seed = _seed(config.seed, 0, index, 0)
        rng = np.random.default_rng((seed, 2))
        start = self.starts.draw(rng) if rng.random() < savings.promising_resets else None
        whole = [r for r in self.rollouts if r.conclusive and not r.source["started_after"]]
        return Order(
            index=index,
            seed=seed,
            noise=self.learner.noise(index),
            film=bool(config.film_every) and index % config.film_every == 0,
            abort=(
                abort_rule(whole, self.shaping.progress, index, rng, savings.reset_s)
                if savings.abort
                else None
            ),
            start=start,
            keep_states=savings.promising_resets > 0,
        )

    def _learn(self, rollout: Rollout) -> dict[str, float]:
        numbers = self._guide()
        return numbers | self.learner.learn(self.replay, rollout.decisions)

    def _guide(self) -> dict[str, float]:
        """How far the potential leads: less where outcomes speak against it."""
        if self.config.shaping.outcome_trust:
            conclusive = [rollout for rollout in self.rollouts if rollout.conclusive]
            self.trust = outcome_trust(conclusive, self.shaping.progress)
        potential = Scaled(self.shaping.potential, self.trust) if self.trust < 1.0 else self.shaping.potential
        shaping = dataclasses.replace(self.shaping, potential=potential)
        if shaping != self.replay.shaping:
            self.replay.relabel(self.replay.episodes, shaping)
        return {"trust": self.trust}

    def _refresh(self) -> None:
        """Let the reward model learn from the outcomes so far, and relabel every episode by it."""
        config, model = self.config, self.worker.model
        assert model is not None
        self.refreshed = self.done
        self.best = None  # policies before looked through another model
        folder = self._model_path()
        steps, seed = config.refresh_steps, _seed(config.seed, 2, self.done)
        refresh(model, self.replay.episodes, self.instruction, steps, folder, seed)
        self._use_refreshed()
        self._guide()  # as a run does that goes on here

    def _model_path(self) -> Path:
        return self.folder / "models" / f"{self.refreshed:06d}"

    def _model_place(self) -> str:
        """Where the reward model lies: from the run's folder where it is in there."""
        if self.refreshed:
            return str(self._model_path().relative_to(self.folder))
        return str(Path(self.config.model or "").resolve())

    def _use_refreshed(self) -> None:
        folder = str(self._model_path())
        self.worker.set_model(folder, self.instruction)
        self.runner.set_model(folder)
        model = self.worker.model
        assert model is not None
        # What it has said live stays: said again it differs in the last digit, and a resumed run with it.
        episodes = [
            e if e.model_version == model.version else relabel(model, e, self.instruction)
            for e in self.replay.episodes
        ]
        self.replay.relabel(episodes)

    def _evaluate(self, display: ImproveDisplay) -> None:
        """Judge the policy without noise, on the same episodes every time."""
        config = self.config
        if not (config.evaluate_every and config.evaluate_episodes):
            return
        films = 3 if config.film_every and self.done in (0, config.rollouts) else 0
        found = self._judged(1, films)
        for index, rollout in enumerate(found):
            if rollout.images and rollout.decisions:
                path = self.folder / "evaluations" / f"after_{self.done:06d}_{index:03d}.npz"
                path.parent.mkdir(exist_ok=True)
                save_rollout(path, rollout)
        evaluation = Evaluation(
            self.done, tuple(r.succeeded for r in found), tuple(r.decisions for r in found)
        )
        self.evaluations.append(evaluation)
        if self.best is None or evaluation.rate >= self.best.rate:
            weights = {name: value.clone() for name, value in self.learner.policy.state_dict().items()}
            self.best = _Best(self.done, evaluation.rate, weights)
        display.evaluation(self.done, evaluation.rate)

    def _judged(self, series: int, films: int) -> list[Rollout]:
        """Rollouts without noise from the scenes of a series, the first `films` of them filmed."""
        orders = [
            Order(
                index=index,
                seed=_seed(self.config.seed, series, index, 0),
                noise=0.0,
                film=index < films,
                estimates=index < films,
                learned_from=False,
            )
            for index in range(self.config.evaluate_episodes)
        ]
        results = self.runner.finish(self.runner.start(orders, self.learner.policy))
        pairs = zip(results, orders, strict=True)
        return [self._unbroken(result, order).rollout for result, order in pairs]

    def _choose(self) -> tuple[int, tuple[bool, ...]]:
        """Make the best policy the one that is left; after how many rollouts, and its success in new scenes.

        Evaluations that choose are no measure of what they have chosen: the best of several is lucky, too.
        """
        if not self.config.keep_best or self.best is None:
            return self.done, ()
        self.learner.policy.load_state_dict(self.best.weights)
        return self.best.rollouts, tuple(rollout.succeeded for rollout in self._judged(3, 0))

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
        """Share of successes that were the policy's own, of the last rollouts."""
        last = self.rollouts[-20:]
        return float(np.mean([r.succeeded and not r.intervened.any() for r in last])) if last else 0.0

    def _save(self) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "learner": self.learner.state_dict(),
                "done": self.done,
                "evaluations": [dataclasses.astuple(e) for e in self.evaluations],
                "seconds": self.seconds,
                "clone_error": self.clone_error,
                "refreshed": self.refreshed,
                "best": None if self.best is None else dataclasses.asdict(self.best),
            },
            buffer,
        )
        write_atomic(self.folder / _STATE, buffer.getvalue())

    def _restore(self) -> bool:
        """Whether there was a state to go on from."""
        path = self.folder / _STATE
        if not path.is_file():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.learner.load_state_dict(state["learner"])
        self.evaluations = [Evaluation(*e) for e in state["evaluations"]]
        self.done, self.seconds = state["done"], state["seconds"]
        _check_not_beyond(self.folder, self.done, self.config.rollouts)
        self.clone_error = state["clone_error"]
        self.best = None if state["best"] is None else _Best(**state["best"])
        for index in range(self.done):
            self.replay.add(load_rollout(self._rollout_path(index)))
        self.refreshed = state["refreshed"]
        if self.refreshed:
            self._use_refreshed()
        if self.rollouts:
            self._guide()
        return True

    def finish(self) -> dict[str, Any]:
        """Write the policy and the numbers; returns the numbers."""
        config, rollouts = self.config, self.rollouts
        model = self.worker.model
        after, success = self._choose()
        save_policy(
            self.folder,
            self.learner.policy,
            self.replay.observed,
            self.worker.action_bounds,
            self.instruction,
            self.demonstrations[0].proprio.shape[1],
            self.worker.decision_ns,
            (self._model_place(), model.version) if model else ("", ""),
        )
        metrics = {
            "arm": config.arm_name,
            "seed": config.seed,
            "privileged": config.privileged,
            "observe": list(self.replay.observed),
            "success_source": str(config.success.get("_target_", "")),
            "model_version": model.version if model else "",
            "refreshed_after": self.refreshed,
            "potential_trust": round(self.trust, 4),
            "rollouts": len(rollouts),
            "rollout_success": [rollout.succeeded for rollout in rollouts],
            "rollout_seconds": [round(rollout.seconds, 4) for rollout in rollouts],
            "rollout_aborted": [rollout.aborted for rollout in rollouts],
            "rollout_started_after": [rollout.source["started_after"] for rollout in rollouts],
            "rollout_decisions": [rollout.decisions for rollout in rollouts],
            "rollout_intervened_decisions": [int(rollout.intervened.sum()) for rollout in rollouts],
            "evaluations": [[e.rollouts, list(e.success)] for e in self.evaluations],
            "policy_after": after,
            "policy_success": list(success),
            "robot_minutes": self.robot_minutes,
            "wall_seconds": round(self.seconds, 1),
            "updates": self.learner.updates,
            "clone_error": self.clone_error,
        }
        write_atomic(self.folder / _METRICS, json.dumps(metrics, indent=1).encode())
        return metrics


def _tell_absent(config: ImproveConfig, worker: Worker, readers: Sequence[EpisodeReader]) -> None:
    """Say which cameras of the demonstrations the policy will not have, where there are such."""
    from rich.console import Console

    shown = dict.fromkeys(camera for reader in readers for camera in reader.info.cameras)
    if worker.model is None or not worker.cameras:
        return
    if absent := [camera for camera in shown if camera not in worker.cameras]:
        Console(stderr=True).print(
            f"env={config.env} has no camera '{absent[0]}', which the demonstrations have: what is learned "
            "from it is not there in rollouts",
            highlight=False,
            markup=False,
        )


def _broken(rollout: Rollout, order: Order) -> bool:
    """Whether a rollout is of no use as it is: to learn from, or to judge the policy by."""
    return rollout.decisions == 0 if order.learned_from else "cut" in rollout.source


def _seed(*key: int) -> int:
    """A seed for the environment from what identifies an episode."""
    return int(np.random.SeedSequence(key).generate_state(1)[0] % 2**31)


def _claim(config: ImproveConfig, readers: Sequence[EpisodeReader]) -> dict[str, Any]:
    """What makes a run this one, as JSON gives it back.

    A path says nothing of what lies there: the reward model goes in by its version, and demonstrations by
    their annotations too. Not by the store's fingerprint: every episode that is added changes it.
    """
    ignored = {"out", "resume", "threads", "device", "demos", "workers"}
    claim = {
        "config": {key: value for key, value in dataclasses.asdict(config).items() if key not in ignored},
        "demonstrations": [reader.info.uid for reader in readers],
        "annotations": annotations_digest(readers),
        "model_version": _model_version(config.model),
    }
    return json.loads(json.dumps(claim))


def _model_version(folder: str | None) -> str:
    """Version of the reward model in a folder; "" where none can be read: a worker that needs it tells."""
    try:
        return "" if folder is None else checkpoint_version(folder)
    except CheckpointError:
        return ""


def _finished(folder: Path, claim: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The numbers of this very run where it is finished; None where it may be begun or gone on with.

    A run that was finished goes on where more rollouts are asked for: nothing in it depends on their number.
    """
    path = folder / _RUN_FILE
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"'{folder}' is not empty and no run of improve: choose another out=")
        return None
    if not any((folder / name).exists() for name in (_STATE, _METRICS, "rollouts")):
        return None  # it ended before anything was learned: that binds nobody, and what it was told is mended
    found = json.loads(path.read_text(encoding="utf-8"))
    if changed := _changed(found, claim):
        raise CheckpointError(
            f"'{folder}' is a run with other {', '.join(changed)}: choose another out=, or delete it"
        )
    wanted = claim["config"]["rollouts"]
    if (folder / _METRICS).is_file():
        metrics = json.loads((folder / _METRICS).read_text(encoding="utf-8"))
        if metrics["rollouts"] >= wanted:
            _check_not_beyond(folder, metrics["rollouts"], wanted)
            return metrics
    elif not resume:
        raise CheckpointError(f"'{folder}' is a half-finished run: resume=true goes on, or delete it")
    return None


def _over(usual: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A config with the default's value for each key that it does not have, its groups' too."""
    groups = {
        key: {**usual[key], **value}
        for key, value in config.items()
        if isinstance(value, dict) and isinstance(usual.get(key), dict)
    }
    return {**usual, **config, **groups}


def _check_not_beyond(folder: Path, done: int, wanted: int) -> None:
    if done > wanted:
        raise CheckpointError(
            f"'{folder}' has {done} rollouts already: say rollouts={done} or more, or choose another out="
        )


def _changed(found: dict[str, Any], claim: dict[str, Any]) -> list[str]:
    """What a claim says otherwise than the one that was found.

    A key that an older version did not have had its default's value there.
    """
    usual = json.loads(json.dumps(dataclasses.asdict(ImproveConfig(env=None, demos="", out=""))))
    old, new = _over(usual, found.get("config", {})), _over(usual, claim["config"])
    judged = {*found.get("config", {}), *claim["config"]} - {"model", "rollouts"}
    changed = sorted(key for key in judged if old.get(key) != new.get(key))
    if (old.get("model") is None) != (new.get("model") is None):
        changed.append("model")  # by its version, below, where there is one
    if found.get("demonstrations") != claim["demonstrations"]:
        changed.append("demonstrations")
    # Claims of before these were kept do not have them, and a model that is gone says nothing.
    was, now = found.get("annotations"), claim["annotations"]
    if was and now != was:
        changed.append("annotations of its demonstrations")
    was, now = found.get("model_version"), claim["model_version"]
    if was and now and now != was:
        changed.append(f"reward model ('{claim['config']['model']}' was version {was} then, is {now} now)")
    return changed
