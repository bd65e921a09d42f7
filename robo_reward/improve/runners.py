"""Where rollouts run: in this process, or in Ray actors beside the learner. The same worker either way."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import torch

from robo_reward.errors import ConfigError, RoboRewardError
from robo_reward.improve.config import ImproveConfig
from robo_reward.improve.worker import Order, RolloutResult, Worker

__all__ = ["LocalRunner", "RayRunner", "Runner"]

_ATTEMPTS = 3


@runtime_checkable
class Runner(Protocol):
    """Runs orders. `start` may return before they are done, `finish` gives their results in order."""

    def start(self, orders: Sequence[Order], policy: torch.nn.Module) -> Any:
        """Begin to run these with the policy as it is now."""
        ...

    def finish(self, pending: Any) -> list[RolloutResult]:
        """Wait for what `start` returned."""
        ...

    def set_model(self, folder: str) -> None:
        """Estimate progress with the (refreshed) model in `folder` in rollouts that start from now on."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class LocalRunner:
    """One worker, here: `start` only notes the orders."""

    def __init__(self, worker: Worker, instruction: str) -> None:
        """Run with this worker; it is closed by whoever made it."""
        self._worker, self._instruction = worker, instruction

    def start(self, orders: Sequence[Order], policy: torch.nn.Module) -> Any:
        """Note them."""
        return list(orders), policy

    def finish(self, pending: Any) -> list[RolloutResult]:
        """Run them one by one."""
        orders, policy = pending
        self._worker.set_policy(policy)
        return [self._worker.run(order) for order in orders]

    def set_model(self, folder: str) -> None:
        """Estimate progress with the model in `folder`."""
        self._worker.set_model(folder, self._instruction)

    def close(self) -> None:
        """Nothing of its own."""


@dataclass
class _Pending:
    orders: list[Order]
    policy: torch.nn.Module
    futures: list[Any]
    actors: list[int]


class RayRunner:
    """Workers as Ray actors. One that dies is replaced, and its order, all that it needs, is run again."""

    def __init__(self, config: ImproveConfig, instruction: str, count: int) -> None:
        """Start `count` actors, in a Ray cluster that is there already or in one on this machine.

        Raises:
            ConfigError: Ray is not installed.
        """
        try:
            self._ray: Any = import_module("ray")
        except ModuleNotFoundError as error:
            raise ConfigError(
                "workers > 0 needs Ray: install it with pip install 'robo-reward[scale]', or say workers=0"
            ) from error
        self._started = not self._ray.is_initialized()
        if self._started:
            self._ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        self._config, self._instruction = config, instruction
        self.actors = [self._make() for _ in range(count)]
        self._turn = 0
        self.replaced = 0

    def _make(self) -> Any:
        return self._ray.remote(num_cpus=1)(Worker).remote(self._config, self._instruction)

    def start(self, orders: Sequence[Order], policy: torch.nn.Module) -> Any:
        """Hand the orders out in turn; the policy travels with them as it is now."""
        frozen = copy.deepcopy(policy)
        chosen = [(self._turn + i) % len(self.actors) for i in range(len(orders))]
        self._turn += len(orders)
        futures = [self._ask(actor, order, frozen) for actor, order in zip(chosen, orders, strict=True)]
        return _Pending(list(orders), frozen, futures, chosen)

    def _ask(self, actor: int, order: Order, policy: torch.nn.Module) -> Any:
        return self.actors[actor].run_with.remote(order, policy)

    def finish(self, pending: Any) -> list[RolloutResult]:
        """Wait for the results.

        Raises:
            RoboRewardError: an order on which one actor after the other died.
        """
        results: list[RolloutResult] = []
        for order, future, actor in zip(pending.orders, pending.futures, pending.actors, strict=True):
            results.append(self._result(order, future, actor, pending.policy))
        return results

    def _result(self, order: Order, future: Any, actor: int, policy: torch.nn.Module) -> RolloutResult:
        errors: Any = import_module("ray.exceptions")
        for _ in range(_ATTEMPTS):
            try:
                return self._ray.get(future)
            except errors.RayTaskError as error:
                raise error.cause from error  # what the worker itself raised, such as a ConfigError
            except errors.RayActorError:
                # The actor may have been replaced already for an earlier order of the same batch.
                if self._dead(actor):
                    self.actors[actor] = self._make()
                    self.replaced += 1
                future = self._ask(actor, order, policy)
        raise RoboRewardError(
            f"rollout {order.index} killed its worker {_ATTEMPTS} times (out of memory, or its renderer "
            "crashes): with workers=0 the cause is shown"
        )

    def _dead(self, actor: int) -> bool:
        errors: Any = import_module("ray.exceptions")
        try:
            self._ray.get(self.actors[actor].alive.remote())
        except errors.RayActorError:
            return True
        return False

    def set_model(self, folder: str) -> None:
        """Estimate progress with the model in `folder`, in actors that are made later too."""
        self._config = dataclasses.replace(self._config, model=folder)
        for actor in self.actors:
            actor.set_model.remote(folder, self._instruction)

    def close(self) -> None:
        """End the actors, and Ray where it was started here."""
        for actor in self.actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()
