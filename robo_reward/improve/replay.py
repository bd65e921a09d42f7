"""The replay buffer: whole episodes with their potentials, shaped when they are sampled.

Rewards are never stored. What is stored is the task reward and what the potential is made of, so a new reward
model, another scale or another trust relabels every episode as a whole, and shaping scale 0 is the sparse
baseline by the same path.

Maps stay where the episodes have them, in half precision: what is asked for is gathered row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from robo_reward.errors import DataError
from robo_reward.improve.observer import MAP, broken_number, joined
from robo_reward.improve.rollouts import Rollout
from robo_reward.improve.sources import ProgressSource
from robo_reward.shaping import (
    PotentialFunction,
    Rule,
    n_step_targets,
    potentials,
    shaping_terms,
    step_discounts,
)

__all__ = [
    "Batch",
    "Replay",
    "Shaping",
    "rollout_potentials",
    "shaped_rewards",
    "terminal_steps",
    "value_bounds",
]

_AT_ONCE = 2**24
"""Numbers of all observations that are laid out at a time, of single precision: 64 MiB."""


@dataclass(frozen=True)
class Shaping:
    """How task reward and progress become the reward: `task + kappa * rule(Phi, Phi', discount)`."""

    progress: ProgressSource
    potential: PotentialFunction
    rule: Rule
    kappa: float
    discount: float


@dataclass(frozen=True)
class Batch:
    """n-step transitions.

    reward        f32[b]: discounted sum over the steps;  discount f32[b]: of the value after them, 0 after
                  a terminal state
    demonstrated  f32[b]: 1 where a person or a demonstration acted, else 0
    potential     f32[b, 1]: Phi of the moment, 0 where unknown;  next_potential: of the one after the steps
    least, most   f32[b]: no policy's value after the steps is below or above
    """

    observation: Float[Tensor, "b d"]
    action: Float[Tensor, "b a"]
    reward: Float[Tensor, " b"]
    discount: Float[Tensor, " b"]
    next_observation: Float[Tensor, "b d"]
    demonstrated: Float[Tensor, " b"]
    potential: Float[Tensor, "b 1"]
    next_potential: Float[Tensor, "b 1"]
    least: Float[Tensor, " b"]
    most: Float[Tensor, " b"]


def shaped_rewards(rollout: Rollout, shaping: Shaping) -> Float64[np.ndarray, " t"]:
    """The reward of each step of an episode. A step without a valid potential keeps its task reward alone."""
    task = rollout.task_reward.astype(np.float64)
    if shaping.kappa == 0.0:
        return task
    phi = rollout_potentials(rollout, shaping)
    discount = step_discounts(shaping.discount, np.ones(rollout.decisions), terminal_steps(rollout))
    if shaping.rule.exact:
        terms = shaping_terms(phi, discount)
    else:
        steps = zip(phi[:-1], phi[1:], discount, strict=True)
        terms = np.array([shaping.rule(float(a), float(b), float(g)) for a, b, g in steps])
    return task + shaping.kappa * np.nan_to_num(terms, nan=0.0)


def rollout_potentials(rollout: Rollout, shaping: Shaping) -> Float64[np.ndarray, " t1"]:
    """Phi of every moment, NaN where unknown."""
    progress, std = shaping.progress(rollout)
    return potentials(shaping.potential, progress, std)


def terminal_steps(rollout: Rollout) -> Bool[np.ndarray, " t"]:
    """True for the step into a terminal state: the last one, unless the episode was cut off."""
    last = np.zeros(rollout.decisions, np.bool_)
    last[-1] = rollout.terminated
    return last


def _shown_potentials(rollout: Rollout, shaping: Shaping) -> Float64[np.ndarray, " t1"]:
    """What the critics see of the potentials: 0 where they are unknown, and where they shape nothing."""
    if shaping.kappa == 0.0:
        return np.zeros(rollout.decisions + 1)
    return np.nan_to_num(rollout_potentials(rollout, shaping))


def value_bounds(
    rollout: Rollout, shaping: Shaping
) -> tuple[Float64[np.ndarray, " t1"], Float64[np.ndarray, " t1"]]:
    """The least and the most that any policy can earn from each moment on.

    The task pays 1 once, so its value is in [0, 1]; exact shaping takes `kappa Phi` from every value (Ng et
    al. 1999). Infinite for rules that are not exact, and for an episode in which a potential is unknown: what
    is paid around a gap is not that of its own moment.
    """
    taken = np.zeros(rollout.decisions + 1)
    if shaping.kappa != 0.0:
        taken = shaping.kappa * rollout_potentials(rollout, shaping)
        if not (shaping.rule.exact and np.isfinite(taken).all()):
            return np.full_like(taken, -np.inf), np.full_like(taken, np.inf)
    return -taken, 1.0 - taken


def _spelled(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} of {width} numbers" for name, width in widths.items())


def _looks(episode: Rollout) -> list[Mapping[str, np.ndarray]]:
    """Its observations as they were, and under its other looks."""
    return [episode.parts, *({**episode.parts, **look} for look in episode.looks)]


def _check_finite(episode: Rollout) -> None:
    """Refuse numbers that would make every weight of policy and critics NaN in a few updates.

    Raises:
        DataError: naming the episode and the number.
    """
    tables = [(f"'{name}'", part) for parts in _looks(episode) for name, part in parts.items()]
    tables += [("the action", episode.actions), ("the task reward", episode.task_reward[:, None])]
    for what, values in tables:
        for row, numbers in enumerate(values):
            if (wrong := broken_number(what, f"moment {row}", numbers)) is not None:
                which = episode.source.get("name", f"rollout {episode.source.get('index')}")
                way_out = (
                    "correct it, or leave it out (demo_offset, demo_kinds)"
                    if episode.demonstration
                    else "what rollouts see and do must be finite, begin anew with another out="
                )
                raise DataError(f"{which}: {wrong}: {way_out}")


class Replay:
    """Episodes as rows of moments, ready to sample n-step transitions from."""

    def __init__(
        self,
        shaping: Shaping,
        n_step: int,
        priority: float = 0.0,
        *,
        keep_successes: bool = False,
        help_in_vain: bool = True,
    ) -> None:
        """Sample with this shaping.

        Args:
            shaping: turns what is stored into rewards.
            n_step: steps of a transition.
            priority: 0 samples moments evenly; above, episodes by how far they got, to this power.
            keep_successes: the policy's own successes count as demonstrations from then on, but for those
                in which a person took over: of them what the person did does.
            help_in_vain: what a person did counts as demonstrated in episodes that failed all the same, too.
        """
        self.episodes: list[Rollout] = []
        self._widths: dict[str, int] = {}
        self._shaping, self._n, self._priority = shaping, n_step, priority
        self._keep_successes, self._help_in_vain = keep_successes, help_in_vain
        self._rows: list[list[tuple[np.ndarray, ...]]] = []  # by episode, then by look
        self._fresh = False

    def add(self, rollout: Rollout) -> None:
        """Add an episode.

        Raises:
            DataError: an episode without a decision, with other observations than those before, or with
                observations, actions or task rewards that are not finite. Progress may be unknown.
        """
        if rollout.decisions == 0:
            raise DataError("an episode without a decision cannot be learned from")
        _check_finite(rollout)
        widths = {name: part.shape[1] for name, part in rollout.parts.items()}
        self._widths = self._widths or widths
        if list(widths.items()) != list(self._widths.items()):
            raise DataError(
                f"an episode observes {_spelled(widths)}, those before {_spelled(self._widths)}: "
                "demonstrations and rollouts must be of one robot, seen through one reward model"
            )
        self.episodes.append(rollout)
        self._fresh = False

    def relabel(self, episodes: Sequence[Rollout], shaping: Shaping | None = None) -> None:
        """Replace every episode by its relabelled self, or only the shaping."""
        self.episodes = list(episodes)
        self._shaping = shaping or self._shaping
        self._rows, self._fresh = [], False

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the parts of an observation, in the order of the episodes."""
        return tuple(self._widths)

    @property
    def shaping(self) -> Shaping:
        """How rewards are made now."""
        return self._shaping

    def demonstrated(self) -> Int64[Tensor, " n"]:
        """The rows of every decision that a demonstration or a person made, in every look."""
        self._refresh()
        return torch.nonzero(self._is_demo & self._is_start)[:, 0]

    def decisions(self, rows: Int64[Tensor, " b"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b a"]]:
        """Observations and actions of these rows. Maps are large: ask for a batch, not for all."""
        self._refresh()
        return self._observed(rows), self._action[rows]

    @property
    def sizes(self) -> list[int]:
        """Numbers in each part of an observation, in the order of `joined`."""
        return [self._widths[name] for name in sorted(self._widths, key=lambda name: name == MAP)]

    def observations(self) -> Iterator[Float[Tensor, "n _c"]]:
        """Every observation, some of its numbers at a time: side by side they are all of them."""
        self._refresh()
        moments, small = self._observation.shape
        step = max(_AT_ONCE // moments, 1)
        for start in range(0, sum(self.sizes), step):
            columns = self._observation[:, start : start + step]
            if self._maps and start + step > small:
                there = slice(max(start - small, 0), start + step - small)
                maps = torch.from_numpy(np.concatenate([block[:, there] for block in self._maps]))
                columns = torch.cat([columns, maps.float()], dim=1)
            yield columns

    def _observed(self, rows: Int64[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Whole observations."""
        if not self._maps:
            return self._observation[rows]
        wanted = rows.numpy()
        blocks = np.searchsorted(self._starts, wanted, side="right") - 1
        found = np.empty((len(wanted), self._maps[0].shape[1]), self._maps[0].dtype)
        places = zip(blocks.tolist(), (wanted - self._starts[blocks]).tolist(), strict=True)
        for at, (block, row) in enumerate(places):
            found[at] = self._maps[block][row]
        return torch.cat([self._observation[rows], torch.from_numpy(found).float()], dim=1)

    def batches(
        self, count: int, size: int, demo_share: float, generator: torch.Generator
    ) -> Iterator[Batch]:
        """`count` batches, `demo_share` of each demonstrated (all of it while nothing else is there)."""
        self._refresh()
        demo, own = (torch.nonzero(self._is_start & flag)[:, 0] for flag in (self._is_demo, ~self._is_demo))
        first = size if len(own) == 0 else round(size * demo_share) if len(demo) else 0
        rows = torch.cat(
            [
                self._draw(demo, (count, first), generator),
                self._draw(own, (count, size - first), generator),
            ],
            dim=1,
        )
        for chosen in rows:
            after = self._after[chosen]
            yield Batch(
                observation=self._observed(chosen),
                action=self._action[chosen],
                reward=self._reward[chosen],
                discount=self._discount[chosen],
                next_observation=self._observed(after),
                demonstrated=self._is_demo[chosen].float(),
                potential=self._potential[chosen, None],
                next_potential=self._potential[after, None],
                least=self._least[after],
                most=self._most[after],
            )

    def _draw(self, pool: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        if shape[1] == 0 or shape[0] == 0:
            return torch.empty(shape, dtype=torch.int64)
        if not self._priority:
            return pool[torch.randint(len(pool), shape, generator=generator)]
        cumulative = self._weight[pool].double().cumsum(0)
        points = torch.rand(shape, generator=generator, dtype=torch.float64) * cumulative[-1]
        return pool[torch.searchsorted(cumulative, points).clamp(max=len(pool) - 1)]

    def _refresh(self) -> None:
        """Lay the episodes out as rows: t + 1 an episode, the last of which starts no transition."""
        if self._fresh:
            return
        if not self.episodes:
            raise DataError("the replay is empty: it needs a demonstration or a rollout")
        self._rows += [
            [self._lay_out(episode, parts) for parts in _looks(episode)]
            for episode in self.episodes[len(self._rows) :]
        ]
        columns = [block for blocks in self._rows for block in blocks]
        starts = np.cumsum([0, *(len(column[3]) for column in columns)])
        after = [column[3] + start for column, start in zip(columns, starts[:-1], strict=True)]

        def columned(index: int) -> np.ndarray:
            return np.concatenate([column[index] for column in columns])

        self._maps = [parts[MAP] for episode in self.episodes for parts in _looks(episode) if MAP in parts]
        self._starts = starts[:-1]
        self._observation = torch.from_numpy(columned(0).astype(np.float32))
        self._action = torch.from_numpy(columned(1).astype(np.float32))
        self._reward = torch.from_numpy(columned(2).astype(np.float32))
        self._after = torch.from_numpy(np.concatenate(after))
        self._discount = torch.from_numpy(columned(4).astype(np.float32))
        self._is_demo, self._is_start = (torch.from_numpy(columned(index)) for index in (5, 6))
        self._weight = torch.from_numpy(columned(7).astype(np.float32))
        self._potential = torch.from_numpy(columned(8).astype(np.float32))
        self._least, self._most = (torch.from_numpy(columned(index).astype(np.float32)) for index in (9, 10))
        self._fresh = True

    def _lay_out(self, episode: Rollout, parts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Observation, action, n-step reward, row after, discount, demonstrated, starts one, weight, Phi,
        least and most value.
        """
        count, gamma = episode.decisions, self._shaping.discount
        small = {name: values for name, values in parts.items() if name != MAP}
        observation = joined(small) if small else np.empty((count + 1, 0), np.float32)
        steps = np.minimum(self._n, count - np.arange(count))
        after = np.arange(count) + steps
        discounts = step_discounts(gamma, np.ones(count), terminal_steps(episode))
        reward = n_step_targets(
            shaped_rewards(episode, self._shaping), discounts, np.zeros(count + 1), self._n
        )
        bootstrap = gamma**steps * ~((after == count) & episode.terminated)
        # Where a person had to take over, what the policy did by itself is nothing to imitate.
        alone = self._keep_successes and episode.succeeded and not episode.intervened.any()
        kept = episode.demonstration or alone
        demonstrated = (episode.intervened & (episode.succeeded or self._help_in_vain)) | kept
        pad = ((0, 1),)
        furthest = np.nanmax(np.append(self._shaping.progress(episode)[0], 0.0))
        weight = (0.05 + furthest) ** self._priority
        return (
            observation,
            np.pad(episode.actions, (*pad, (0, 0))),
            np.pad(reward, pad),
            np.append(after, count),
            np.pad(bootstrap, pad),
            np.pad(demonstrated, pad),
            np.append(np.ones(count, np.bool_), False),
            np.full(count + 1, weight),
            _shown_potentials(episode, self._shaping),
            *value_bounds(episode, self._shaping),
        )
