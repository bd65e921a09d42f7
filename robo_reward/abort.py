"""When to give up a rollout: the rule that makes the expected time to the first success shortest. NumPy only.

Attempts are repeated until one succeeds. At `check_s` into an attempt a predictor may call it hopeless (at
the first moment from then on, whose time is what is paid: where moments are far apart, `check_s` below is the
mean of those); an aborted or failed attempt costs `reset_s` before the next begins. Of n recorded attempts,
let n_as and n_af be the successes and failures that the rule would abort, n_ks and n_kf those that it keeps.
Attempts are alike and independent, so by the renewal-reward theorem the expected makespan is the mean cost of
an attempt over the chance that it is a success that is kept:

    E = T_s + ((n_as + n_af) (check_s + reset_s) + n_kf (T_f + reset_s)) / n_ks

Never aborting is E_0 = T_s + n_f / n_s (T_f + reset_s). With p = n_s / n, recall b = n_af / n_f, false alarms
a = n_as / n_s, c = check_s + reset_s and f = T_f + reset_s, aborting pays exactly where

    (1 - p) b (f - c)  >  a (p c + (1 - p) f)

that is, where the time that caught failures save is more than what the aborted successes cost: their own time
and the failures that must be sat through for another. A predictor with false alarms can be useless however
good its recall. The confusion matrix decides, and since it comes from few rollouts, a rule is used only where
it also helps on rollouts that it was not chosen on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from robo_reward.errors import ConfigError, DataError

__all__ = [
    "AbortRule",
    "Attempts",
    "Confusion",
    "Rollout",
    "choose_abort_rule",
    "expected_makespan",
    "replay",
]

_RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many attempts of each outcome a rule would abort or keep."""

    aborted_successes: int
    aborted_failures: int
    kept_successes: int
    kept_failures: int


def expected_makespan(
    confusion: Confusion, check_s: float, success_s: float, failure_s: float, reset_s: float
) -> float:
    """Expected seconds to the first success under a rule; infinite where no success is kept.

    Args:
        confusion: the rule's confusion matrix.
        check_s: mean seconds into an attempt at which it is aborted.
        success_s: mean duration of successes that are kept.
        failure_s: mean duration of failures that are kept.
        reset_s: seconds between attempts.
    """
    if not confusion.kept_successes:
        return math.inf
    aborted = confusion.aborted_successes + confusion.aborted_failures
    lost = aborted * (check_s + reset_s) + confusion.kept_failures * (failure_s + reset_s)
    return success_s + lost / confusion.kept_successes


@dataclass(frozen=True, slots=True)
class Rollout:
    """A recorded attempt, run to its end.

    time_s     f64[t], seconds since its begin, increasing
    progress   f64[t], what the model said; NaN where it did not know
    success    how it ended
    """

    time_s: Float64[np.ndarray, " t"]
    progress: Float64[np.ndarray, " t"]
    success: bool


@dataclass(frozen=True, slots=True)
class AbortRule:
    """Abort at the first moment from `check_s` on if progress is known and below `below` then.

    An aborted rollout is truncated.

    makespan_s, without_s   expected makespan with the rule and without, on the rollouts that it was chosen on
    confidence              share of resamples in which it helped rollouts that it was not chosen on
    """

    check_s: float
    below: float
    confusion: Confusion
    makespan_s: float
    without_s: float
    confidence: float

    def aborts(self, previous_s: float, now_s: float, progress: float) -> bool:
        """Whether to give up now: at the first moment at or after the check, `previous_s` being the last."""
        return previous_s < self.check_s <= now_s and progress < self.below


def choose_abort_rule(
    rollouts: Sequence[Rollout],
    reset_s: float,
    rng: np.random.Generator,
    checks: int = 10,
    confidence: float = 0.9,
) -> AbortRule | None:
    """The rule with the shortest expected makespan, or None where no rule is known to help.

    Candidates are every tenth (with `checks=10`) of the longest rollout, and thresholds between the observed
    values of progress at that time. Rollouts are resampled with replacement; each time the best rule is
    chosen anew and tried on the rollouts left out (an honest test of the choice itself).

    Raises:
        ConfigError: a reset time below 0, `checks` < 2, or a confidence outside (0, 1).
        DataError: no rollouts.
    """
    if reset_s < 0 or checks < 2 or not 0 < confidence < 1:
        raise ConfigError(
            f"reset_s={reset_s}, checks={checks}, confidence={confidence}: need reset_s >= 0, checks >= 2 "
            "and a confidence within (0, 1)"
        )
    if not rollouts:
        raise DataError("no rollouts to learn from when to give up: record some first")
    success = np.array([rollout.success for rollout in rollouts])
    duration = np.array([float(rollout.time_s[-1]) for rollout in rollouts])
    times = np.linspace(0.0, float(duration.max()), checks + 1)[1:-1]
    rules = _candidates(rollouts, times)
    if not rules or not success.any() or success.all():
        return None
    aborted = np.stack([flags for _, _, flags in rules])
    looked = {at: np.array([_looked_at(rollout, at)[0] for rollout in rollouts]) for at, _, _ in rules}
    stopped = np.stack([looked[at] for at, _, _ in rules])
    cost = np.where(aborted, stopped + reset_s, duration + np.where(success, 0.0, reset_s))
    kept = (~aborted & success).astype(np.float64)
    never_cost, never_kept = duration + np.where(success, 0.0, reset_s), success.astype(np.float64)
    # Rows of resamples, columns of rollouts: how often each was drawn, and which were left out.
    drawn = rng.multinomial(len(rollouts), np.full(len(rollouts), 1 / len(rollouts)), _RESAMPLES)
    chosen = np.argmin(_ratio(drawn @ cost.T, drawn @ kept.T), axis=1)
    left_out = (drawn == 0).astype(np.float64)
    with_rule = _ratio((left_out * cost[chosen]).sum(1), (left_out * kept[chosen]).sum(1))
    without = _ratio(left_out @ never_cost, left_out @ never_kept)
    helped = float(np.mean(with_rule < without))
    makespan = _ratio(cost.sum(1), kept.sum(1))
    best, never = int(np.argmin(makespan)), float(never_cost.sum() / never_kept.sum())
    if helped < confidence or not makespan[best] < never:
        return None
    at, below, flags = rules[best]
    return AbortRule(
        check_s=at,
        below=below,
        confusion=_confusion(flags, success),
        makespan_s=float(makespan[best]),
        without_s=never,
        confidence=helped,
    )


@dataclass(frozen=True, slots=True)
class Attempts:
    """What attempts cost under a rule, and how they end.

    cost_s    f64[n], seconds, with the reset after those that end without success
    aborted   bool[n]
    success   bool[n], of the whole attempt, aborted or not
    """

    cost_s: Float64[np.ndarray, " n"]
    aborted: Bool[np.ndarray, " n"]
    success: Bool[np.ndarray, " n"]

    @property
    def confusion(self) -> Confusion:
        """How many of each outcome were aborted and kept."""
        return _confusion(self.aborted, self.success)

    def makespan_s(self, rows: Int64[np.ndarray, " m"] | None = None) -> float:
        """Expected seconds to the first success, of all attempts or of these `rows`; infinite without one."""
        chosen = np.arange(len(self.cost_s)) if rows is None else rows
        kept = int((self.success & ~self.aborted)[chosen].sum())
        return float(self.cost_s[chosen].sum()) / kept if kept else math.inf

    def makespans_s(self, runs: int, rng: np.random.Generator) -> Float64[np.ndarray, " r"]:
        """Seconds to the first success of `runs` runs, each of attempts drawn at random until one succeeds.

        Raises:
            DataError: no attempt that succeeds is kept: a run would never end.
        """
        kept = self.success & ~self.aborted
        if not kept.any():
            raise DataError("no attempt succeeds under this rule: its runs would never end")
        spent = np.zeros(runs)
        running = np.arange(runs)
        while len(running):
            drawn = rng.integers(len(kept), size=len(running))
            spent[running] += self.cost_s[drawn]
            running = running[~kept[drawn]]
        return spent


def replay(rollouts: Sequence[Rollout], rule: AbortRule | None, reset_s: float) -> Attempts:
    """Live rollouts again under a rule, moment by moment; None runs each to its end.

    A rollout that is aborted ends at the moment at which the rule looked. At its last moment it is over.
    """
    ended = [_ended(rollout, rule) for rollout in rollouts]
    success = np.array([rollout.success for rollout in rollouts], np.bool_)
    aborted = np.array([stopped for _, stopped in ended], np.bool_)
    seconds = np.array([at for at, _ in ended], np.float64)
    return Attempts(seconds + np.where(success & ~aborted, 0.0, reset_s), aborted, success)


def _ended(rollout: Rollout, rule: AbortRule | None) -> tuple[float, bool]:
    """When a rollout ends, and whether it was aborted then."""
    time = rollout.time_s
    for index in range(1, len(time) - 1 if rule is not None else 0):
        before, now, progress = (float(x) for x in (time[index - 1], time[index], rollout.progress[index]))
        if rule is not None and rule.aborts(before, now, progress):
            return now, True
    return float(time[-1]), False


def _candidates(
    rollouts: Sequence[Rollout], times: Float64[np.ndarray, " c"]
) -> list[tuple[float, float, Bool[np.ndarray, " n"]]]:
    """(check, threshold, which rollouts are aborted) of every rule that aborts some and not others."""
    rules: list[tuple[float, float, Bool[np.ndarray, " n"]]] = []
    for time in times:
        seen = np.array([_looked_at(rollout, float(time))[1] for rollout in rollouts])
        values = np.unique(seen[~np.isnan(seen)])
        between = (values[1:] + values[:-1]) / 2
        rules.extend((float(time), float(below), seen < below) for below in between)
    return rules


def _looked_at(rollout: Rollout, check_s: float) -> tuple[float, float]:
    """Time and progress of the moment at which a rule looks, as `AbortRule.aborts` says; NaN without one.

    That is the first at or after `check_s`. There is none where the rollout begins later than that, or is
    over by then.
    """
    index = int(np.searchsorted(rollout.time_s, check_s))
    if not 0 < index < len(rollout.time_s) - 1:
        return math.nan, math.nan
    return float(rollout.time_s[index]), float(rollout.progress[index])


def _ratio(cost: Float[np.ndarray, "*n"], kept: Float[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    return np.where(kept > 0, cost / np.maximum(kept, 1e-9), np.inf)


def _confusion(aborted: Bool[np.ndarray, " n"], success: Bool[np.ndarray, " n"]) -> Confusion:
    return Confusion(
        aborted_successes=int((aborted & success).sum()),
        aborted_failures=int((aborted & ~success).sum()),
        kept_successes=int((~aborted & success).sum()),
        kept_failures=int((~aborted & ~success).sum()),
    )
