"""Potential-based shaping of rewards by progress: exact, whatever the potentials are. NumPy only.

    F_t = gamma_t Phi_{t+1} - Phi_t,   r'_t = r_t + kappa F_t

(Ng, Harada & Russell 1999; potentials that change with time or history: Devlin & Kudenko 2012). With G_t the
product of the discounts before t, every trajectory and every sequence of potentials has

    sum_{t < T} G_t F_t = G_T Phi_T - Phi_0

so shaping cannot change which policy is best, as long as what is paid as "next" is charged as "previous".
What follows from it:

- A terminal state has discount 0 and potential 0, so the last step of an episode pays -Phi: the task reward
  must pay success. A truncated episode keeps Phi_T and its discount, and the learner bootstraps.
- A potential is evaluated once per moment and that number is used twice. Potentials of two versions of a
  model never meet in one transition: relabel whole episodes.
- Rewards at a lower rate than control use gamma^k over k steps, or gamma^(dt / reference) over dt seconds.
- What makes a potential careful (trust, pessimism, gates, bounds) happens inside Phi, where it stays exact.

Gaps. A potential that is missing (invalid, stale) is NaN. A transition from or to such a moment is not
shaped: its shaping is NaN, its task reward is kept. What had been paid before the gap is charged in the next
transition between two known moments (or at a terminal state, whose potential is known): the last known Phi_b,
divided by the discounts since, in place of that moment's own. This is the potential under which the gap pays
exactly nothing, so the identity holds from Phi_0 to the last such transition, and going blind earns nothing.
Charging the moment's own potential instead would make progress during a gap a loss. The charge grows with the
gap; past `carry_limit` times what was paid it is dropped, and the identity then holds for each span by
itself, as it does where the first potentials are missing.

`NaiveDifference` and `AbsoluteProgress` are no potential-based shaping and change what is optimal: they exist
as baselines. An objective normalized within groups of episodes (GRPO) with discount 1 turns shaping into a
bonus Phi_T - Phi_0 on the outcome.

Arrays may have leading batch axes; time is the last one. `potential` has one entry more than the transitions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Real

from robo_reward.errors import ConfigError, DataError
from robo_reward.imports import instantiate
from robo_reward.schema import ProgressEstimate, ShapedReward

__all__ = [
    "AbsoluteProgress",
    "Bounded",
    "Faded",
    "Gated",
    "NaiveDifference",
    "Pessimistic",
    "PotentialBased",
    "PotentialFunction",
    "Rule",
    "Shaper",
    "ShapingConfig",
    "Standard",
    "n_step_targets",
    "pool_steps",
    "potentials",
    "shaping_terms",
    "step_discounts",
    "time_discounts",
    "trust",
]

CARRY_LIMIT = 2.0
"""How many times larger than what was paid the charge after a gap may be."""


# --- discounts -----------------------------------------------------------------------------------------


def step_discounts(
    discount: float, steps: Real[np.ndarray, "*b t"], terminated: Bool[np.ndarray, "*b t"]
) -> Float64[np.ndarray, "*b t"]:
    """gamma^k for transitions of k control steps each; 0 where the episode terminates (never: truncates)."""
    _check_discount(discount)
    return np.where(terminated, 0.0, discount ** np.asarray(steps, np.float64))


def time_discounts(
    discount: float,
    interval_s: Float[np.ndarray, "*b t"],
    reference_s: float,
    terminated: Bool[np.ndarray, "*b t"],
) -> Float64[np.ndarray, "*b t"]:
    """gamma^(dt / reference) for transitions of dt seconds each; 0 where the episode terminates.

    Raises:
        ConfigError: a discount outside (0, 1], or a reference that is not positive.
    """
    if not reference_s > 0:
        raise ConfigError(f"reference_s={reference_s}: the time over which the discount applies is positive")
    return step_discounts(discount, np.asarray(interval_s, np.float64) / reference_s, terminated)


def _check_discount(discount: float) -> None:
    if not 0.0 < discount <= 1.0:
        raise ConfigError(f"discount={discount}: choose one in (0, 1]")


# --- shaping over arrays -------------------------------------------------------------------------------


def shaping_terms(
    potential: Float[np.ndarray, "*b t1"],
    discount: Float[np.ndarray, "*b t"],
    carry_limit: float = CARRY_LIMIT,
) -> Float64[np.ndarray, "*b t"]:
    """F_t = gamma_t Phi_{t+1} - Phi_t of whole episodes, with gaps settled as the module says.

    Args:
        potential: Phi of t + 1 moments, one episode a row; NaN where unknown. That of a terminal state is
            not looked at.
        discount: of the t transitions, in [0, 1]; 0 where the episode terminates.
        carry_limit: largest growth of a charge over a gap; 0 begins anew after every gap.

    Returns:
        The shaping terms, NaN for the transitions that are not shaped.

    Raises:
        DataError: not one potential more than discounts.
    """
    steps = discount.shape[-1]
    if potential.shape[-1] != steps + 1:
        raise DataError(f"{steps} transitions need {steps + 1} potentials, not {potential.shape[-1]}")
    phi = np.asarray(potential, np.float64).reshape(-1, steps + 1)
    gamma = np.asarray(discount, np.float64).reshape(-1, steps)
    terms = np.empty(gamma.shape)
    account = _Account.empty(gamma.shape[:1])
    for t in range(steps):
        terms[:, t], _, account = _settle(account, phi[:, t], phi[:, t + 1], gamma[:, t], carry_limit)
    return terms.reshape(discount.shape)


@dataclass(frozen=True, slots=True)
class _Account:
    """What is still to be charged for the potential paid before a gap.

    owed    NaN where nothing is; else the last paid potential over the discounts since
    growth  owed over what was paid
    """

    owed: Float64[np.ndarray, " b"]
    growth: Float64[np.ndarray, " b"]

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> _Account:
        return cls(np.full(shape, np.nan), np.ones(shape))


def _settle(
    account: _Account,
    start: Float64[np.ndarray, " b"],
    end: Float64[np.ndarray, " b"],
    discount: Float64[np.ndarray, " b"],
    carry_limit: float,
) -> tuple[Float64[np.ndarray, " b"], Float64[np.ndarray, " b"], _Account]:
    """One transition: its term (NaN where not shaped), the potential it charges, what is owed after it."""
    terminal = discount == 0.0
    after = np.where(terminal, 0.0, end)
    pending = ~np.isnan(account.owed)
    before = np.where(pending & (~np.isnan(start) | terminal), account.owed, start)
    term = discount * after - before
    unshaped = np.isnan(term) & ~terminal
    owed = np.where(pending, account.owed, start)
    growth = np.where(pending, account.growth, 1.0) / np.where(terminal, 1.0, discount)
    kept = unshaped & (growth <= carry_limit)
    owed = np.where(kept, owed / np.where(terminal, 1.0, discount), np.nan)
    return term, before, _Account(owed, np.where(kept, growth, 1.0))


def pool_steps(
    reward: Float[np.ndarray, "*b t"], discount: Float[np.ndarray, "*b t"], steps: int
) -> tuple[Float64[np.ndarray, "*b n"], Float64[np.ndarray, "*b n"]]:
    """Transitions of `steps` control steps from single ones: discounted rewards, products of discounts.

    The last one takes what is left. What follows a terminal step (discount 0) counts nothing.

    Raises:
        ConfigError: where steps < 1.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}: a transition takes at least one step")
    pooled, products = [], []
    for first in range(0, discount.shape[-1], steps):
        window = np.asarray(discount[..., first : first + steps], np.float64)
        before = np.cumprod(np.concatenate([np.ones_like(window[..., :1]), window[..., :-1]], -1), axis=-1)
        pooled.append((before * reward[..., first : first + steps]).sum(-1))
        products.append(window.prod(-1))
    return np.stack(pooled, -1), np.stack(products, -1)


def n_step_targets(
    reward: Float[np.ndarray, "*b t"],
    discount: Float[np.ndarray, "*b t"],
    value: Float[np.ndarray, "*b t1"],
    steps: int,
) -> Float64[np.ndarray, "*b t"]:
    """sum_{i < n} G_i r_{t+i} + G_n V_{t+n} for every t; windows end at the last moment and bootstrap there.

    A terminal step has discount 0, so nothing after it counts; a truncated one bootstraps from its value.

    Raises:
        ConfigError: where steps < 1.
        DataError: not one value more than rewards.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}: a target takes at least one step")
    length = reward.shape[-1]
    if value.shape[-1] != length + 1:
        raise DataError(f"{length} transitions need {length + 1} values, not {value.shape[-1]}")
    target = np.asarray(value, np.float64)
    r, gamma = np.asarray(reward, np.float64), np.asarray(discount, np.float64)
    last = target[..., -1:]
    for _ in range(steps):
        target = np.concatenate([r + gamma * target[..., 1:], last], -1)
    return target[..., :-1]


# --- potentials ----------------------------------------------------------------------------------------


@runtime_checkable
class PotentialFunction(Protocol):
    """Phi of one moment, from what is known up to it. Of b episodes, each by itself; NaN in, NaN out."""

    def __call__(
        self,
        progress: Float64[np.ndarray, " b"],
        std: Float64[np.ndarray, " b"],
        previous: Float64[np.ndarray, " b"],
    ) -> Float64[np.ndarray, " b"]:
        """Phi from progress, its standard deviation, and the last known Phi (NaN at the start)."""
        ...


@dataclass(frozen=True)
class Standard:
    """Phi = progress."""

    def __call__(
        self,
        progress: Float64[np.ndarray, " b"],
        std: Float64[np.ndarray, " b"],
        previous: Float64[np.ndarray, " b"],
    ) -> Float64[np.ndarray, " b"]:
        """Phi of one moment."""
        return progress


@dataclass(frozen=True)
class Bounded:
    """Phi = tanh(slope (progress - center)) / 2: centered, within (-1/2, 1/2), flat towards both ends.

    After PAR (reward shaping to mitigate hacking in RLHF): what is bounded and centered is hard to exploit.
    """

    center: float = 0.5
    slope: float = 2.0

    def __call__(
        self,
        progress: Float64[np.ndarray, " b"],
        std: Float64[np.ndarray, " b"],
        previous: Float64[np.ndarray, " b"],
    ) -> Float64[np.ndarray, " b"]:
        """Phi of one moment."""
        return np.tanh(self.slope * (progress - self.center)) / 2


@dataclass(frozen=True)
class Pessimistic:
    """Phi = progress - k std, at least 0: progress that the model is not sure of does not count."""

    k: float = 1.0

    def __call__(
        self,
        progress: Float64[np.ndarray, " b"],
        std: Float64[np.ndarray, " b"],
        previous: Float64[np.ndarray, " b"],
    ) -> Float64[np.ndarray, " b"]:
        """Phi of one moment."""
        return np.maximum(progress - self.k * std, 0.0)


def trust(std: Float64[np.ndarray, " b"], full_below: float, none_above: float) -> Float64[np.ndarray, " b"]:
    """Trust in an estimate from its own standard deviation: 1 up to one bound, linear to 0 at the other.

    The scale is that of progress, absolute and calibrated; a relative one would distrust every early moment.
    """
    return np.clip((none_above - std) / (none_above - full_below), 0.0, 1.0)


@dataclass(frozen=True)
class Faded:
    """Phi = constant + trust(std) (progress - constant): a potential that is unsure of itself fades out.

    Trust is part of Phi, not a factor of F, so shaping stays exact. Where nothing is trusted Phi is constant,
    and with the constant 0 the reward is the task reward alone. An unsure moment between sure ones is a pit
    in Phi, though, and a learner shies away from it until its critics know better: where a model is unsure on
    the way, `Gated` holds the potential instead.
    """

    full_below: float = 0.1
    none_above: float = 0.3
    constant: float = 0.0

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not 0 <= self.full_below < self.none_above:
            raise ConfigError(
                f"full_below={self.full_below}, none_above={self.none_above}: "
                "needs 0 <= full_below < none_above"
            )

    def __call__(
        self,
        progress: Float64[np.ndarray, " b"],
        std: Float64[np.ndarray, " b"],
        previous: Float64[np.ndarray, " b"],
    ) -> Float64[np.ndarray, " b"]:
        """Phi of one moment."""
        return self.constant + trust(std, self.full_below, self.none_above) * (progress - self.constant)


@dataclass(frozen=True)
class Gated:
    """Phi moves towards progress only as far as the estimate is sure: Phi_prev + w (progress - Phi_prev).

    w = exp(-(std / limit)^2), on the absolute scale of progress. The first known moment is taken as it is.
    Phi then depends on history, which shaping allows.
    """

    limit: float = 0.15

    def __post_init__(self) -> None:
        """Check the limit."""
        if not self.limit > 0:
            raise ConfigError(
                f"limit={self.limit}: the standard deviation at which a gate closes is positive"
            )

    def __call__(
        self,
        progress: Float64[np.ndarray, " b"],
        std: Float64[np.ndarray, " b"],
        previous: Float64[np.ndarray, " b"],
    ) -> Float64[np.ndarray, " b"]:
        """Phi of one moment."""
        weight = np.exp(-np.square(std / self.limit))
        return np.where(np.isnan(previous), progress, previous + weight * (progress - previous))


def potentials(
    function: PotentialFunction, progress: Float[np.ndarray, "*b t"], std: Float[np.ndarray, "*b t"]
) -> Float64[np.ndarray, "*b t"]:
    """Phi of every moment of whole episodes, each from its past only; NaN where progress is NaN."""
    p = np.asarray(progress, np.float64).reshape(-1, progress.shape[-1])
    s = np.asarray(std, np.float64).reshape(p.shape)
    phi = np.empty(p.shape)
    last = np.full(len(p), np.nan)
    for t in range(p.shape[1]):
        phi[:, t] = function(p[:, t], s[:, t], last)
        last = np.where(np.isnan(phi[:, t]), last, phi[:, t])
    return phi.reshape(progress.shape)


# --- one episode as it happens -------------------------------------------------------------------------


@runtime_checkable
class Rule(Protocol):
    """How two potentials become a reward."""

    @property
    def exact(self) -> bool:
        """Whether this is potential-based shaping: terminal potential 0, gaps settled, optima kept."""
        ...

    def __call__(self, potential: float, next_potential: float, discount: float) -> float:
        """The reward of a transition, before kappa."""
        ...


@dataclass(frozen=True)
class PotentialBased:
    """discount Phi' - Phi: what is optimal stays optimal."""

    exact = True

    def __call__(self, potential: float, next_potential: float, discount: float) -> float:
        """The reward of a transition."""
        return discount * next_potential - potential


@dataclass(frozen=True)
class NaiveDifference:
    """Phi' - Phi. A baseline: it pays (1 - gamma) sum gamma^(t-1) Phi_t for hovering near the goal."""

    exact = False

    def __call__(self, potential: float, next_potential: float, discount: float) -> float:
        """The reward of a transition."""
        return next_potential - potential


@dataclass(frozen=True)
class AbsoluteProgress:
    """Phi' at every step. A baseline: the longer an episode almost succeeds, the more it earns."""

    exact = False

    def __call__(self, potential: float, next_potential: float, discount: float) -> float:
        """The reward of a transition."""
        return next_potential


@dataclass(frozen=True)
class ShapingConfig:
    """How to shape, as `configs/shaping/*.yaml` has it; `build()` makes the `Shaper` of an episode.

    `potential` and `rule` are components: `{"_target_": import path, **arguments}`; the rest is as in
    `Shaper`.
    """

    potential: dict[str, Any] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    discount: float = 0.99
    kappa: float = 1.0
    reference_s: float | None = None
    stale_s: float | None = None
    carry_limit: float = CARRY_LIMIT

    def build(self) -> Shaper:
        """A shaper with these settings; an empty component is the default.

        Raises:
            ConfigError: a component that does not import or take its arguments, a setting out of range.
        """
        return Shaper(
            discount=self.discount,
            kappa=self.kappa,
            potential=instantiate(self.potential) if self.potential else None,
            rule=instantiate(self.rule) if self.rule else None,
            reference_s=self.reference_s,
            stale_s=self.stale_s,
            carry_limit=self.carry_limit,
        )


class Shaper:
    """Shapes the rewards of one episode after another, moment by moment.

    Example:
        >>> shaper = Shaper(discount=0.99)
        >>> shaper.start(0.1)
        >>> shaper.push(0.3, task_reward=0.0).shaping
        0.197
        >>> shaper.push(0.9, task_reward=1.0, terminated=True).value
        0.7
    """

    def __init__(
        self,
        discount: float = 0.99,
        kappa: float = 1.0,
        potential: PotentialFunction | None = None,
        rule: Rule | None = None,
        reference_s: float | None = None,
        stale_s: float | None = None,
        carry_limit: float = CARRY_LIMIT,
    ) -> None:
        """Shape with these settings.

        Args:
            discount: gamma of one control step, or of `reference_s` seconds where that is given.
            kappa: scale of shaping; 0 is the task reward alone, by the same path.
            potential: Phi from progress and its uncertainty; `Standard()` by default.
            rule: `PotentialBased()` by default; the others are baselines.
            reference_s: seconds over which `discount` applies; None counts control steps.
            stale_s: an estimate older than this at its moment is invalid; None: never.
            carry_limit: see the module on gaps.

        Raises:
            ConfigError: a setting out of range.
        """
        _check_discount(discount)
        if not math.isfinite(kappa):
            raise ConfigError(f"kappa={kappa}: the scale of shaping is a finite number")
        if reference_s is not None and not reference_s > 0:
            raise ConfigError(f"reference_s={reference_s}: the time over which discount applies is positive")
        self.discount, self.kappa = discount, kappa
        self.potential: PotentialFunction = potential or Standard()
        self.rule: Rule = rule or PotentialBased()
        self.reference_s, self.stale_s, self.carry_limit = reference_s, stale_s, carry_limit
        self._now: _Moment | None = None
        self._last_known = math.nan
        self._account = _Account.empty((1,))

    @property
    def started(self) -> bool:
        """Whether an episode is under way."""
        return self._now is not None

    def start(
        self, estimate: ProgressEstimate | float | None, *, std: float = 0.0, stamp_ns: int | None = None
    ) -> None:
        """Begin an episode at its first moment (`reset` of an environment).

        Args:
            estimate: a model's, or a plain potential with its `std`; None where there is none yet.
            std: of a plain potential.
            stamp_ns: of the moment; None takes the estimate's own.
        """
        self._last_known = math.nan
        self._account = _Account.empty((1,))
        self._now = self._evaluate(estimate, std, stamp_ns)

    def push(
        self,
        estimate: ProgressEstimate | float | None,
        task_reward: float = 0.0,
        *,
        std: float = 0.0,
        stamp_ns: int | None = None,
        terminated: bool = False,
        truncated: bool = False,
        steps: int = 1,
    ) -> ShapedReward:
        """The reward of the transition to a new moment.

        Args:
            estimate: of the new moment. None holds the last one (rewards at a lower rate than control), which
                pays what the identity asks for, until it is stale.
            task_reward: of the transition; over several steps, their discounted sum.
            std: of a plain potential.
            stamp_ns: of the new moment; None takes the estimate's own. Needed with `reference_s`.
            terminated: the new moment is a terminal state. Its estimate is not looked at by exact shaping.
            truncated: the episode is cut here; its last potential is kept, and the learner bootstraps.
            steps: control steps of the transition.

        Raises:
            ConfigError: an episode that was not started, no stamp where one is needed, or `steps` < 1.
            DataError: a stamp that is not after the last one.
        """
        before = self._now
        if before is None:
            raise ConfigError("no episode is under way: call start() with the first estimate of each episode")
        if steps < 1:
            raise ConfigError(f"steps={steps}: a transition takes at least one control step")
        after = self._hold(before, stamp_ns) if estimate is None else self._evaluate(estimate, std, stamp_ns)
        interval_s = _interval(before, after)
        discount = 0.0 if terminated else self._discount(interval_s, steps)
        shaped = self._shape(before, after, task_reward, discount, interval_s)
        self._now = None if terminated or truncated else after
        return shaped

    def _evaluate(
        self, estimate: ProgressEstimate | float | None, std: float, stamp_ns: int | None
    ) -> _Moment:
        """Phi of a new moment, evaluated this once."""
        if estimate is None:
            return _Moment(math.nan, "no estimate yet", stamp_ns, stamp_ns, "")
        if isinstance(estimate, ProgressEstimate):
            moment = stamp_ns if stamp_ns is not None else estimate.stamp_ns
            progress, spread, made, version = (
                estimate.progress,
                estimate.std,
                estimate.stamp_ns,
                estimate.model_version,
            )
            reason = "" if estimate.valid else estimate.reason or "the estimate is invalid"
        else:
            moment, progress, spread, made, version, reason = stamp_ns, estimate, std, stamp_ns, "", ""
        reason = reason or self._stale_reason(made, moment)
        if not reason and not (math.isfinite(progress) and math.isfinite(spread)):
            reason = f"progress {progress} with std {spread} is not finite"
        if reason:
            return _Moment(math.nan, reason, moment, made, version)
        phi = float(
            self.potential(
                np.array([progress], np.float64), np.array([spread], np.float64), np.array([self._last_known])
            )[0]
        )
        self._last_known = phi
        return _Moment(phi, "", moment, made, version)

    def _hold(self, before: _Moment, stamp_ns: int | None) -> _Moment:
        """The moment after, where nothing new is known."""
        reason = before.reason or self._stale_reason(before.made_ns, stamp_ns)
        phi = math.nan if reason else before.phi
        return _Moment(phi, reason, stamp_ns, before.made_ns, before.version)

    def _stale_reason(self, made_ns: int | None, stamp_ns: int | None) -> str:
        if self.stale_s is None or made_ns is None or stamp_ns is None:
            return ""
        age = (stamp_ns - made_ns) * 1e-9
        return f"the estimate is {age:.3g} s old, stale_s={self.stale_s:g}" if age > self.stale_s else ""

    def _discount(self, interval_s: float, steps: int) -> float:
        if self.reference_s is None:
            return self.discount**steps
        if math.isnan(interval_s):
            raise ConfigError("reference_s is set: give stamp_ns with every moment")
        return self.discount ** (interval_s / self.reference_s)

    def _shape(
        self, before: _Moment, after: _Moment, task_reward: float, discount: float, interval_s: float
    ) -> ShapedReward:
        terminal = discount == 0.0
        start, end = before.phi, after.phi
        reason = ("" if terminal and self.rule.exact else after.reason) or before.reason
        changed = bool(before.version and after.version and before.version != after.version)
        if changed and not terminal:
            reason = f"the model changed from {before.version} to {after.version}: relabel whole episodes"
            end = math.nan
        if self.rule.exact:
            term, charged, account = _settle(
                self._account, np.array([start]), np.array([end]), np.array([discount]), self.carry_limit
            )
            self._account = _Account.empty((1,)) if changed else account
            start, end, raw = float(charged[0]), 0.0 if terminal else after.phi, float(term[0])
        else:
            raw = math.nan if reason else self.rule(start, end, discount)
        valid = math.isfinite(raw)
        shaping = self.kappa * raw
        return ShapedReward(
            task_reward=float(task_reward),
            shaping=shaping,
            value=float(task_reward) + (shaping if valid else 0.0),
            potential=start,
            next_potential=end,
            discount=discount,
            interval_s=interval_s,
            valid=valid,
            reason="" if valid else reason,
            stamp_ns=-1 if after.stamp_ns is None else after.stamp_ns,
            model_version=after.version or before.version,
        )


@dataclass(frozen=True, slots=True)
class _Moment:
    """Phi of one moment (NaN where `reason` says why), its stamp, and when its estimate was made."""

    phi: float
    reason: str
    stamp_ns: int | None
    made_ns: int | None
    version: str


def _interval(before: _Moment, after: _Moment) -> float:
    if before.stamp_ns is None or after.stamp_ns is None:
        return math.nan
    if after.stamp_ns <= before.stamp_ns:
        raise DataError(f"stamp {after.stamp_ns} is not after {before.stamp_ns}: push moments in order")
    return (after.stamp_ns - before.stamp_ns) * 1e-9
