"""Timings of the last while: quantiles and rate."""

from __future__ import annotations

import time
from collections import deque
from threading import Lock

import numpy as np

__all__ = ["Timings"]


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
