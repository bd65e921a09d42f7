"""What is told of the last while: timings, what the model doubted, and what of it is worth the console."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from threading import Lock

import numpy as np

__all__ = ["Doubts", "Timings", "Told"]

_LASTS_S = 3.0  # what lasts for this long is worth the console: drivers may start later than the node
_LATELY = 20  # decisions that are looked back on
_TWICE = 2  # said once it may be over: of scenes that are not strange one in a hundred counts as strange
_SURELY = 3  # decisions that are invalid, and no other, before that is an error


class Timings:
    """The last `length` measurements, added in one thread and read in another."""

    def __init__(self, length: int = 300) -> None:
        """Keep so many."""
        self._values: deque[float] = deque(maxlen=length)
        self._times: deque[float] = deque(maxlen=30)
        self._lock = Lock()

    def add(self, value: float) -> None:
        """Add a measurement, now."""
        with self._lock:
            self._values.append(value)
            self._times.append(time.monotonic())

    def quantile(self, q: float) -> float:
        """A quantile, NaN before the first measurement."""
        with self._lock:
            return float(np.quantile(np.array(self._values), q)) if self._values else float("nan")

    @property
    def rate_hz(self) -> float:
        """Measurements a second; 0 where the last one is over three of their intervals ago."""
        with self._lock:
            if len(self._times) < 2:
                return 0.0
            interval = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
            return (
                0.0
                if time.monotonic() - self._times[-1] > 3 * max(interval, 0.1)
                else 1 / max(interval, 1e-9)
            )


class Doubts:
    """What the model said of the last decisions beside their numbers, added and read by two threads."""

    def __init__(self) -> None:
        """Nothing has been decided."""
        self._last: deque[tuple[bool, str]] = deque(maxlen=_LATELY)
        self._lock = Lock()

    def add(self, valid: bool, text: str) -> None:
        """One decision: why it is invalid, or the note of one that is valid ("" where there is none)."""
        with self._lock:
            self._last.append((valid, text))

    @property
    def error(self) -> str:
        """Why there is no valid decision any more; "" where there is one, or too few of any."""
        with self._lock:
            last = list(self._last)[-_SURELY:]
        if len(last) < _SURELY or any(valid for valid, _ in last):
            return ""
        return f"no decision is valid: {last[-1][1]}"

    @property
    def warning(self) -> str:
        """The newest note or reason, where several of the last decisions had one; "" where not."""
        return self._newest("")

    @property
    def but_for_cameras(self) -> str:
        """What of `warning` is not said of a camera."""
        return "; ".join(part for part in self.warning.split("; ") if not part.startswith("camera '"))

    def of(self, camera: str) -> str:
        """What was said of a camera (by the model's name), where several of the last decisions said it."""
        return self._newest(f"camera '{camera}' ")

    def _newest(self, begin: str) -> str:
        with self._lock:
            texts = [text for _, text in self._last]
        said = [[part for part in text.split("; ") if part.startswith(begin)] for text in texts if text]
        found = [parts for parts in said if parts]
        return "; ".join(found[-1]) if len(found) >= _TWICE else ""


class Told:
    """Says what has been wrong for a while, once, and once that all is well again."""

    def __init__(
        self, say: Callable[[str], object], well: Callable[[], object], now_ns: Callable[[], int]
    ) -> None:
        """Say it with `say`, and with `well` that it is over; `now_ns` is a steady clock."""
        self._say, self._well, self._now = say, well, now_ns
        self._said: set[str] = set()  # kinds of problems
        self._trouble = ""
        self._since = self._last = now_ns()

    def note(self, text: str) -> None:
        """What is wrong now; "" where all is well. Numbers in it may change."""
        now = self._now()
        if text:
            self._last = now
            if _kind(text) != self._trouble:
                self._trouble, self._since = _kind(text), now
            elif (now - self._since) * 1e-9 >= _LASTS_S:
                self.say(text)
        elif (now - self._last) * 1e-9 >= _LASTS_S:  # a moment without is not yet well
            self._trouble = ""
            if self._said:
                self._said.clear()
                self._well()

    def say(self, text: str, how: Callable[[str], object] | None = None) -> None:
        """Say it at once, unless it has been said; `how`: by other means."""
        if _kind(text) not in self._said:
            self._said.add(_kind(text))
            (how or self._say)(text)


def _kind(text: str) -> str:
    """A problem without its numbers, which change."""
    return re.sub(r"[-+]?\d+(\.\d+)?", "#", text)
