"""Off-policy learning from demonstrations and rollouts: RLPD's sampling with TD3's deterministic actor.

One update draws half of its batch from demonstrations (and from a person's interventions) and half from the
policy's own rollouts, fits an ensemble of layer-normed critics to n-step returns, and now and then moves the
actor up the critics' mean while a cloning term keeps it near the demonstrations. Sources: RLPD (Ball et al.
2023), TD3 (Fujimoto et al. 2018), TD3+BC (Fujimoto & Gu 2021).

The critics see the potential beside the observation, as one number; the actor does not need it. Shaped values
are V - Phi, and a learned Phi comes from pixels and from the past: two moments that look alike to the policy
can have different ones. Critics that cannot tell them apart take that difference for noise in the reward.

Feature maps of the reward model's frozen encoder are read by a layer of the actor's and another of the
critics'. Were it one, that the critics train, they would move the ground under a cloned actor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robo_reward.errors import RoboRewardError
from robo_reward.improve.networks import Critics, Policy
from robo_reward.improve.replay import Batch, Replay

__all__ = ["Learner", "LearnerConfig", "input_scale"]

_NETWORKS = ("policy", "target_policy", "critics", "target_critics")


@dataclass(frozen=True)
class LearnerConfig:
    """See `learner` in `configs/improve.yaml`."""

    width: int = 128
    critics: int = 6
    subset: int = 2
    batch_size: int = 128
    demo_share: float = 0.5
    keep_successes: bool = True
    help_in_vain: bool = True
    updates_per_decision: int = 4
    actor_every: int = 2
    n_step: int = 3
    discount: float = 0.95
    lr: float = 1e-3
    actor_lr: float = 3e-4
    tau: float = 0.005
    target_noise: float = 0.2
    clone_weight: float = 1.0
    clone_steps: int = 1500
    clone_lr: float = 1e-3
    clone_noise: float = 0.1
    scale_floor: float = 1.0
    value_weight: float = 1.0
    map_width: int = 64
    bounded: bool = True
    noise_start: float = 0.2
    noise_end: float = 0.1
    noise_rollouts: int = 100


class Learner:
    """The networks, their optimizers, and the one update there is."""

    def __init__(
        self, config: LearnerConfig, observation: int, action: int, seed: int, map_size: int = 0
    ) -> None:
        """Networks for `observation` numbers, the last `map_size` of which are maps."""
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0
        maps = map_size, config.map_width
        actor = observation, action, config.width, self.generator, *maps
        critics = observation + 1, action, config.width, config.critics, self.generator, *maps
        self.policy, self.target_policy = Policy(*actor), Policy(*actor)
        self.critics, self.target_critics = Critics(*critics), Critics(*critics)
        self.target_policy.load_state_dict(self.policy.state_dict())
        self.target_critics.load_state_dict(self.critics.state_dict())
        self.target_policy.requires_grad_(False)
        self.target_critics.requires_grad_(False)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), config.actor_lr, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), config.lr, fused=True)

    def fit_scale(self, observations: Iterable[Float[Tensor, "n _c"]], sizes: Sequence[int]) -> None:
        """Bring inputs to one scale, once: a policy whose inputs are rescaled later is another policy.

        Args:
            observations: their numbers from the first to the last, as many at a time as there is room for.
            sizes: of the parts of an observation, in the same order.
        """
        mean, std = input_scale(observations, sizes, self.config.scale_floor)
        for policy in (self.policy, self.target_policy):
            policy.mean.copy_(mean)
            policy.std.copy_(std)

    def clone(self, replay: Replay) -> float:
        """Start the actor from the demonstrations; returns the last mean squared error of actions.

        Raises:
            RoboRewardError: it, or a weight, is not finite.
        """
        optimizer = torch.optim.Adam(self.policy.parameters(), self.config.clone_lr, fused=True)
        error = self._imitate(replay, optimizer, self.config.clone_steps)
        self.target_policy.load_state_dict(self.policy.state_dict())
        return error

    def _imitate(self, replay: Replay, optimizer: torch.optim.Optimizer, steps: int) -> float:
        demonstrated = replay.demonstrated()
        error = float("nan")
        for _ in range(steps):
            count = len(demonstrated)
            chosen = torch.randint(count, (min(128, count),), generator=self.generator)
            observation, action = replay.decisions(demonstrated[chosen])
            x = self.policy.normalize(observation)
            # Noise on the inputs: one demonstration is a thin line, and the policy leaves it at once.
            noisy = x + self.config.clone_noise * torch.randn(x.shape, generator=self.generator)
            loss = ((self.policy.act(noisy) - action) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            error = float(loss.detach())
        if steps > 0:
            self._check_finite({"clone": error})
        return error

    def learn(self, replay: Replay, decisions: int) -> dict[str, float]:
        """The updates that `decisions` new decisions pay for; returns means over them.

        With a `value_weight` of 0 nothing needs values: the actor goes on cloning demonstrations, what a
        person did in rollouts, and successes where they are kept.

        Raises:
            RoboRewardError: a loss or a weight is not finite: whoever goes on would save a broken policy.
        """
        count = decisions * self.config.updates_per_decision
        if self.config.value_weight == 0.0:
            steps = max(count // self.config.actor_every, 1)
            self.updates += steps
            return {"clone": self._imitate(replay, self.policy_optimizer, steps)}
        sums: dict[str, Tensor] = {}
        for batch in replay.batches(count, self.config.batch_size, self.config.demo_share, self.generator):
            for name, value in self.update(batch).items():
                sums[name] = sums.get(name, torch.zeros(())) + value
        actor_steps = max(count // self.config.actor_every, 1)
        means = {
            name: float(value) / (actor_steps if name in ("actor", "clone") else max(count, 1))
            for name, value in sums.items()
        }
        self._check_finite(means)
        return means

    def _check_finite(self, losses: Mapping[str, float]) -> None:
        """Refuse to go on with these losses, or with the weights, where they are not finite."""
        broken = [
            f"the loss '{name}' is {value}" for name, value in losses.items() if not math.isfinite(value)
        ]
        broken += [
            f"weights of '{name}' are not finite"
            for name in _NETWORKS
            if not all(bool(weight.isfinite().all()) for weight in getattr(self, name).state_dict().values())
        ]
        if broken:
            raise RoboRewardError(
                f"after {self.updates} updates {', '.join(broken)}: learning has diverged, and "
                "nothing of it is saved; begin anew with another out= and smaller learner.lr, "
                "learner.actor_lr, learner.clone_lr or shaping.kappa"
            )

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critics, and every `actor_every`-th time one of the actor."""
        config = self.config
        with torch.no_grad():
            x = self.policy.normalize(batch.observation)
            next_x = self.policy.normalize(batch.next_observation)
            noise = torch.randn(batch.action.shape, generator=self.generator).clamp_(-2.5, 2.5)
            action = (self.target_policy.act(next_x) + config.target_noise * noise).clamp(-1.0, 1.0)
            values = self.target_critics(_judged(self.target_critics, next_x, batch.next_potential), action)
            members = torch.randperm(config.critics, generator=self.generator)[: config.subset]
            # The lower of a random few critics: pessimism against over-estimation (REDQ, Chen et al. 2021).
            value = values[members].amin(dim=0)
            if config.bounded:
                value = value.clamp(batch.least, batch.most)
            target = batch.reward + batch.discount * value
        seen = _judged(self.critics, x, batch.potential)
        values = self.critics(seen, batch.action)
        critic_loss = ((values - target) ** 2).mean(dim=1).sum()
        self.critic_optimizer.zero_grad(set_to_none=True)
        critic_loss.backward()
        self.critic_optimizer.step()
        _follow(self.target_critics, self.critics, config.tau)
        self.updates += 1
        told = {"critic": critic_loss.detach() / config.critics, "value": values.detach().mean()}
        if self.updates % config.actor_every == 0:
            told |= self._update_actor(batch, x, seen.detach())
        return told

    def _update_actor(self, batch: Batch, x: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """Up the critics' mean, who have `seen` the observations `x`, and towards what was demonstrated."""
        config = self.config
        action = self.policy.act(x)
        self.critics.requires_grad_(False)
        value = self.critics(seen, action).mean(dim=0)
        self.critics.requires_grad_(True)
        gain = self.config.value_weight * value.mean()
        error = ((action - batch.action) ** 2).mean(dim=1)
        shown = batch.demonstrated
        clone = (error * shown).sum() / shown.sum().clamp(min=1)
        loss = config.clone_weight * clone - gain
        self.policy_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.policy_optimizer.step()
        _follow(self.target_policy, self.policy, config.tau * config.actor_every)
        return {"actor": -gain.detach(), "clone": clone.detach()}

    def noise(self, rollout: int) -> float:
        """Standard deviation of the exploration noise of a rollout, counted from 0."""
        share = min(rollout / max(self.config.noise_rollouts, 1), 1.0)
        return self.config.noise_start + share * (self.config.noise_end - self.config.noise_start)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint needs."""
        return {
            **{name: getattr(self, name).state_dict() for name in _NETWORKS},
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in _NETWORKS:
            getattr(self, name).load_state_dict(state[name])
        self.policy_optimizer.load_state_dict(state["policy_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.generator.set_state(state["generator"])
        self.updates = int(state["updates"])


def input_scale(
    observations: Iterable[Float[Tensor, "n _c"]], sizes: Sequence[int], floor: float
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and deviation of inputs, which come some columns at a time: maps of all moments are large.

    The numbers of one part of the observation (`sizes` of them) share a unit, so one that has hardly varied
    yet (the goal, in a single demonstration) gets at least a share `floor` of its part's deviation: blown up
    to 1, the first other goal would look like nothing ever seen.
    """
    found = [(columns.mean(dim=0), columns.std(dim=0)) for columns in observations]
    mean, std = (torch.cat(parts) for parts in zip(*found, strict=True))
    common = [
        part.square().mean().sqrt().clamp(min=0.02).expand(len(part)) for part in std.split(list(sizes))
    ]
    return mean, torch.maximum(std, floor * torch.cat(common))


def _judged(critics: Critics, x: Float[Tensor, "b d"], potential: Float[Tensor, "b 1"]) -> Tensor:
    """What critics see, f32[b, _]: potentials, in [0, 1], come at about the scale of the observation."""
    return torch.cat([critics.read(x), 2.0 * potential], dim=1)


def _follow(target: torch.nn.Module, source: torch.nn.Module, tau: float) -> None:
    """Move the target's parameters a share `tau` towards the source's."""
    with torch.no_grad():
        for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
            ours.lerp_(theirs, tau)
