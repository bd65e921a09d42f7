"""Where labelling runs: in this process, in several, or on a Ray cluster. Results come as they are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from robo_reward.errors import ConfigError, DataError
from robo_reward.workers import worker_pool

__all__ = ["Pool", "Processes", "Ray"]

Task = TypeVar("Task")
Result = TypeVar("Result")


class Pool(Protocol):
    """Runs one function on many tasks."""

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """The results, in any order; `work` and `tasks` can be pickled.

        Raises:
            DataError: a worker that died.
        """
        ...


class Processes:
    """Processes of this machine; one worker is this process itself.

    Args:
        workers: How many.

    Raises:
        ConfigError: fewer than one.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = _check(workers)

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """The results, in the order in which they are ready."""
        if self._workers == 1:
            yield from map(work, tasks)
            return
        with worker_pool(min(self._workers, len(tasks)) or 1) as pool:
            waiting = [pool.submit(work, task) for task in tasks]
            try:
                for done in as_completed(waiting):
                    yield done.result()
            except BrokenProcessPool as error:
                raise DataError(
                    "a worker process died (out of memory?): run the same command again, it goes on where it "
                    "stopped; with fewer workers, or lanes, it needs less memory"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


class Ray:
    """Workers of a Ray cluster, or of one started on this machine. Every node must see the same paths.

    Args:
        workers: How many tasks run at once; each takes one CPU.
        address: Of the cluster, as `ray.init` takes it; None starts one here.

    Raises:
        ConfigError: fewer than one worker.
    """

    def __init__(self, workers: int = 1, address: str | None = None) -> None:
        self._workers, self._address = _check(workers), address

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """The results, in the order in which they are ready."""
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ConfigError("no ray here: pip install 'robo-reward[scale]'") from error
        started = not ray.is_initialized()
        if started:
            cpus = self._workers if self._address is None else None
            ray.init(address=self._address, num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        remote = ray.remote(num_cpus=1, max_retries=0)(work)
        todo, running = list(reversed(tasks)), []
        try:
            while todo or running:
                while todo and len(running) < self._workers:
                    running.append(remote.remote(todo.pop()))
                ready, running = ray.wait(running, num_returns=1)
                yield ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise DataError(f"a Ray worker died: run the same command again, it goes on ({error})") from error
        finally:
            if started:
                ray.shutdown()


def _check(workers: int) -> int:
    if workers < 1:
        raise ConfigError(f"workers is {workers}: it must be at least 1")
    return workers
