"""One thread that works on the newest item only: what comes while it is busy replaces what is waiting."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition, Thread

__all__ = ["LatestWins"]


class LatestWins[T]:
    """Runs `work(item)` in a thread of its own; an item that is overtaken before its turn is dropped."""

    def __init__(self, work: Callable[[T], None], failed: Callable[[Exception], None], name: str) -> None:
        """Start the thread. An exception of `work` goes to `failed`, and the thread goes on."""
        self._work, self._failed = work, failed
        self._changed = Condition()
        self._waiting: list[T] = []
        self._closing = False
        self.offered = self.dropped = 0
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def offer(self, item: T) -> bool:
        """Hand over an item; False where one that waited was dropped for it."""
        with self._changed:
            overtook = bool(self._waiting)
            self._waiting[:] = [item]
            self.offered += 1
            self.dropped += overtook
            self._changed.notify()
        return not overtook

    def close(self) -> None:
        """End the thread after the item that it works on."""
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                item = self._waiting.pop()
            try:
                self._work(item)
            except Exception as error:  # the boundary of the thread: reported, never lost
                self._failed(error)
