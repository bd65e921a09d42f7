"""An adversary in simulation: actions that lead to states with high estimated and low true progress.

A policy that is trained on a learned reward searches for its mistakes. Here that search is done on purpose,
from moments at which an episode has just failed: random shooting, or the cross-entropy method (Rubinstein
1999) over piecewise constant actions. What is maximized is the gap: what the reward model claims, less what
the simulator's oracle says. Candidates are simulated one after the other and judged all at once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np
from jaxtyping import Float32, Float64

from robo_reward.errors import ConfigError
from robo_reward.schema import Episode, ProgressEstimate
from robo_reward.shaping import PotentialFunction, Standard
from robo_reward_sim.demonstrators import Moment
from robo_reward_sim.rollout import demonstrate, rollout

if TYPE_CHECKING:
    from robo_reward.api import RewardModel
    from robo_reward.stream import BatchStream

__all__ = [
    "Candidate",
    "Claim",
    "Found",
    "Judge",
    "SearchPlan",
    "Start",
    "StreamJudge",
    "Told",
    "World",
    "failing_starts",
    "replay",
    "search",
]

Images = Mapping[str, np.ndarray]


class World(Protocol):
    """What is searched: an environment that can go back to a moment and tells the truth about it."""

    def set_state(self, state: Any) -> Any:
        """Go to a moment."""
        ...

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Mapping[str, Any]]:
        """As in gymnasium; the observation has `images`."""
        ...

    def oracle(self) -> Any:
        """The truth about this moment; its `progress` is in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What a model says of t moments of n candidates, NaN where it says nothing.

    progress, std, novelty   f64[n, t], see `robo_reward.schema.ProgressEstimate`
    """

    progress: Float64[np.ndarray, "n t"]
    std: Float64[np.ndarray, "n t"]
    novelty: Float64[np.ndarray, "n t"]

    @classmethod
    def of(cls, estimates: Sequence[Sequence[ProgressEstimate]]) -> Told:
        """From estimates of n candidates at each of t moments: `estimates[t][n]`."""
        numbers = np.array([[(e.progress, e.std, e.novelty) for e in row] for row in estimates], np.float64)
        progress, std, novelty = np.moveaxis(numbers, 2, 0)
        return cls(progress.T.copy(), std.T.copy(), novelty.T.copy())


class Judge(Protocol):
    """A reward model that watches n candidates which share their past."""

    def begin(self, history: Sequence[Images]) -> Told:
        """Watch the shared past; returns what is said of it, with n = 1."""
        ...

    def judge(self, futures: Sequence[Sequence[Images]]) -> Told:
        """What is said of the moments after that past, of each of at most n candidates."""
        ...


@dataclass(frozen=True, slots=True)
class Claim:
    """The progress that is paid for: a potential of the estimate, and nothing where the scene is too strange.

    potential       see `robo_reward.shaping`; `Pessimistic(k)` is progress less k standard deviations
    novelty_limit   an estimate with more novelty than this is invalid; 1 is the calibrated threshold
    """

    potential: PotentialFunction = field(default_factory=Standard)
    novelty_limit: float = float("inf")

    def __call__(self, told: Told) -> Float64[np.ndarray, "n t"]:
        """The claim at each moment, NaN where there is none."""
        claims = np.full(told.progress.shape, np.nan)
        previous = np.full(len(claims), np.nan)
        for moment in range(claims.shape[1]):
            progress, std = told.progress[:, moment], told.std[:, moment]
            known = np.isfinite(progress) & ~(told.novelty[:, moment] > self.novelty_limit)
            claims[:, moment] = np.where(known, self.potential(progress, std, previous), np.nan)
            previous = np.where(known, claims[:, moment], previous)
        return claims


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How much is searched, and how.

    population, iterations   candidates in a generation, and generations
    elites                   best candidates so far, around which the next generation is drawn
    knots, hold              a candidate is `knots` actions, each held for `hold` decisions
    refit                    cross-entropy method; False: every generation is drawn evenly (random shooting)
    """

    population: int = 24
    iterations: int = 4
    elites: int = 4
    knots: int = 4
    hold: int = 4
    refit: bool = True

    def __post_init__(self) -> None:
        """Refuse a search that cannot be.

        Raises:
            ConfigError: naming the numbers.
        """
        if min(self.population, self.iterations, self.elites, self.knots, self.hold) < 1:
            raise ConfigError(f"{self}: every number must be 1 or more")
        if self.elites > self.population:
            raise ConfigError(f"elites={self.elites} are more than population={self.population}")


@dataclass(frozen=True)
class Start:
    """A moment at which an episode has failed, and what led there.

    state     of the environment
    history   images of every moment up to this one, t + 1 of them
    truth     f64[t + 1] true progress
    actions   f32[t, a] from the reset of seed `seed` to here
    """

    state: Any
    history: Sequence[Images]
    truth: Float64[np.ndarray, " t1"]
    actions: Float32[np.ndarray, "t a"]
    seed: int = 0
    kind: str = ""


@dataclass(frozen=True)
class Candidate:
    """Actions after a start, and the moment at which their gap is largest.

    actions   f32[h, a], all of them; the moment is after `moment + 1` of them
    gap       claim less true progress there
    """

    actions: Float32[np.ndarray, "h a"]
    moment: int
    gap: float
    claim: float
    truth: float
    std: float
    novelty: float


@dataclass(frozen=True)
class Found:
    """What a search has found from one start.

    worst     the candidate with the largest gap of each generation, the largest first
    passed    the largest gap at any moment of the history, before the search (NaN: nothing was claimed)
    best      f64[g] largest gap up to each generation
    judged    how many candidates were simulated
    """

    worst: tuple[Candidate, ...]
    passed: float
    best: Float64[np.ndarray, " g"]
    judged: int

    @property
    def gap(self) -> float:
        """The largest gap."""
        return self.worst[0].gap


def search(
    world: World, judge: Judge, start: Start, claim: Claim, plan: SearchPlan, rng: np.random.Generator
) -> Found:
    """Search from one start for the moment with the largest gap.

    Where nothing is claimed at any moment of any candidate, the gap is 0: nothing is paid for.
    """
    told = judge.begin(start.history)
    past = claim(told)[0] - start.truth
    size = start.actions.shape[1]
    elite, elite_gaps = np.empty((0, plan.knots, size)), np.empty(0)
    found: list[Candidate] = []
    for generation in range(plan.iterations):
        shape = (plan.population, plan.knots, size)
        if generation == 0 or not plan.refit:
            knots = rng.uniform(-1.0, 1.0, shape)
        else:
            spread = np.maximum(elite.std(axis=0), _LEAST_STD)
            knots = np.clip(rng.normal(elite.mean(axis=0), spread, shape), -1.0, 1.0)
        made = _try(world, judge, start, claim, np.repeat(knots, plan.hold, axis=1).astype(np.float32))
        gaps = np.array([candidate.gap for candidate in made])
        found.append(made[int(np.argmax(gaps))])
        elite, elite_gaps = np.concatenate([elite, knots]), np.concatenate([elite_gaps, gaps])
        order = np.argsort(-elite_gaps, kind="stable")[: plan.elites]
        elite, elite_gaps = elite[order], elite_gaps[order]
    passed = float(np.nanmax(past)) if np.isfinite(past).any() else float("nan")
    best = np.maximum.accumulate([candidate.gap for candidate in found])
    worst = tuple(sorted(found, key=lambda candidate: -candidate.gap))
    return Found(worst, passed, best, plan.population * plan.iterations)


_LEAST_STD = 0.3  # a few elites agree by chance: less, and the search settles too soon


def _try(
    world: World, judge: Judge, start: Start, claim: Claim, actions: Float32[np.ndarray, "n h a"]
) -> list[Candidate]:
    """Candidates of these actions, each simulated from the start, and judged together."""
    futures: list[list[Images]] = []
    truths = np.full(actions.shape[:2], np.nan)
    for row, series in enumerate(actions):
        world.set_state(start.state)
        frames: list[Images] = []
        for moment, action in enumerate(series):
            observation, _, terminated, truncated, info = world.step(action)
            if info.get("physics_error", False):
                break  # what is shown then is not what is true
            frames.append(observation["images"])
            truths[row, moment] = world.oracle().progress
            if terminated or truncated:
                break
        futures.append(frames)
    told = judge.judge(futures)
    horizon = actions.shape[1]
    claims = np.full(truths.shape, np.nan)
    claims[:, : told.progress.shape[1]] = claim(told)[:, :horizon]
    return [_candidate(actions[row], claims[row], truths[row], told, row) for row in range(len(actions))]


def _candidate(
    actions: Float32[np.ndarray, "h a"],
    claims: Float64[np.ndarray, " h"],
    truths: Float64[np.ndarray, " h"],
    told: Told,
    row: int,
) -> Candidate:
    gaps = claims - truths
    if not np.isfinite(gaps).any():
        nan = float("nan")
        return Candidate(actions, 0, 0.0, nan, nan, nan, nan)
    at = int(np.nanargmax(gaps))
    return Candidate(
        actions=actions,
        moment=at,
        gap=float(gaps[at]),
        claim=float(claims[at]),
        truth=float(truths[at]),
        std=float(told.std[row, at]),
        novelty=float(told.novelty[row, at]),
    )


class StreamJudge:
    """A trained model as a judge: streams that share their past, forked for each generation."""

    def __init__(
        self, model: RewardModel, streams: int, period_ns: int, instruction: str | None = None
    ) -> None:
        """Judge up to `streams` candidates at once, whose moments are `period_ns` apart."""
        self._model, self._streams, self._period = model, streams, period_ns
        self._instruction = instruction
        self._past: BatchStream | None = None
        self._moments = 0

    def begin(self, history: Sequence[Images]) -> Told:
        """See `Judge`."""
        self._past = self._model.batch_stream(self._streams, self._instruction)
        said: list[list[ProgressEstimate]] = []
        for moment, images in enumerate(history):
            stamps = [moment * self._period] * self._streams
            said.append(self._past.push([images] * self._streams, stamps)[:1])
        self._moments = len(history)
        return Told.of(said)

    def judge(self, futures: Sequence[Sequence[Images]]) -> Told:
        """See `Judge`.

        Raises:
            ConfigError: no past yet, or more candidates than streams.
        """
        if self._past is None or len(futures) > self._streams:
            raise ConfigError(
                f"{len(futures)} candidates for {self._streams} streams: begin(...) with the shared past "
                "first, and judge no more at once"
            )
        stream = _fork(self._past, self._model)
        padded = [*futures, *[[]] * (self._streams - len(futures))]
        said: list[list[ProgressEstimate]] = []
        for moment in range(max(1, *(len(future) for future in padded))):
            images = [future[moment] if moment < len(future) else {} for future in padded]
            stamps = [(self._moments + moment) * self._period] * self._streams
            said.append(stream.push(images, stamps)[: len(futures)])
        return Told.of(said)


def _fork(stream: BatchStream, model: RewardModel) -> BatchStream:
    """A copy of a stream that goes its own way; weights are shared."""
    import torch

    shared: list[Any] = [model.checkpoint, model.checkpoint.model, model.checkpoint.calibration]
    with torch.inference_mode():
        return copy.deepcopy(stream, {id(part): part for part in shared})


def failing_starts(env: gymnasium.Env[Any, Any], kinds: Sequence[str], seed: int, count: int) -> list[Start]:
    """Last moments of failed episodes of these kinds of demonstrator, in turn.

    Args:
        env: an environment of this package, with the cameras that the model looks through.
        kinds: keys of `robo_reward_sim.demonstrators.DEMONSTRATORS`.
        seed: of the series of episodes.
        count: how many starts.

    Raises:
        ConfigError: so few episodes of these kinds fail that they cannot be had.
    """
    base: Any = env.unwrapped
    starts: list[Start] = []
    for index in range(4 * count):
        if len(starts) == count:
            break
        kind = kinds[index % len(kinds)]
        episode = demonstrate(env, kind, seed, index)
        info = episode.info
        if base.oracle().success or info.source["physics_error"] or info.length < 2:
            continue
        starts.append(_start(episode, base.get_state(), kind))
    if len(starts) < count:
        raise ConfigError(f"only {len(starts)} of {4 * count} episodes of {', '.join(kinds)} fail")
    return starts


def _start(episode: Episode, state: Any, kind: str) -> Start:
    info = episode.info
    assert info.truth is not None
    assert episode.actions is not None
    stages = len(info.stage_names)
    return Start(
        state=state,
        history=[{name: frames[t] for name, frames in episode.frames.items()} for t in range(info.length)],
        truth=(info.truth.stage + info.truth.tau.astype(np.float64)) / stages,
        actions=episode.actions[:-1],
        seed=int(info.source["reset_seed"]),
        kind=kind,
    )


def replay(env: gymnasium.Env[Any, Any], start: Start, candidate: Candidate, name: str) -> Episode:
    """The whole episode that a candidate makes of a start, labelled by the oracle: data about a failure.

    `env` must allow for its length.
    """
    actions = np.concatenate([start.actions, candidate.actions])

    def act(moment: Moment) -> Float32[np.ndarray, " 4"] | None:
        return actions[moment.decision] if moment.decision < len(actions) else None

    source = {"start": start.kind, "fooled_at": len(start.actions) + candidate.moment + 1}
    return rollout(env, act, seed=start.seed, name=name, kind="adversarial", source=source)
