"""Times of receipt in a bag, related to the clock of its messages' stamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

__all__ = ["LATEST_NS", "Clock", "Heard", "of_episode", "soonest_clock"]

_ALIKE_NS = 10_000_000  # topics whose lateness differs by less are alike: that is jitter
LATEST_NS = 2 * 10**9  # what seems later than this has stamps of another clock


@dataclass(frozen=True)
class Heard:
    """Stamps (0: none) and times of receipt of a topic, from an episode's start to a while after its end.

    within  how many of its messages were received before the end
    """

    topic: str
    stamps: Int64[np.ndarray, " n"]
    received: Int64[np.ndarray, " n"]
    within: int

    @classmethod
    def of(cls, topic: str, times: Sequence[tuple[int, int]], end_ns: int) -> Heard:
        """From (stamp, time of receipt) of each message."""
        stamps, received = np.array(times, np.int64).reshape(-1, 2).T
        return cls(topic, stamps, received, int(np.searchsorted(received, end_ns)))

    @property
    def stamped(self) -> bool:
        """Whether it has messages before the end, all with stamps."""
        return self.within > 0 and bool((self.stamps[: self.within] > 0).all())


@dataclass(frozen=True)
class Clock:
    """Times of receipt on the clock of the stamps, as one topic relates the two."""

    stamps: Int64[np.ndarray, " n"]
    received: Int64[np.ndarray, " n"]

    def at(self, received_ns: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        """The stamps that this topic would have had, had it been received then."""
        late = self.received - self.stamps
        # Float64 holds no nanoseconds since 1970: from the first message on it does.
        first, least = self.received[0], late[0]
        more = np.interp(received_ns - first, self.received - first, late - least)
        return received_ns - least - np.rint(more).astype(np.int64)

    def late_ns(self, heard: Heard) -> float:
        """How much later than this clock's topic another one is received: its median."""
        within = slice(heard.within)
        return float(np.median(self.at(heard.received[within]) - heard.stamps[within]))


def soonest_clock(own: Clock, first: Heard, others: Sequence[Heard]) -> Clock:
    """That of the topic that is received soonest; the first camera's, where that one is not later."""
    if not first.stamped:
        return own
    late_ns = {each.topic: own.late_ns(each) for each in others if each.stamped}
    soonest = min(
        (each for each in others if -LATEST_NS < late_ns.get(each.topic, 0) < -_ALIKE_NS),
        key=lambda each: late_ns[each.topic],
        default=None,
    )
    if soonest is None:
        return own
    return Clock(soonest.stamps[: soonest.within], soonest.received[: soonest.within])


def of_episode(heard: Heard, clock: Clock, span: tuple[int, int]) -> slice:
    """Which messages are of the episode: by their stamps where they come late, else by their receipt."""
    start, stop = 0, heard.within
    if heard.stamped and _ALIKE_NS < clock.late_ns(heard) < LATEST_NS:
        stamps, (begin_ns, end_ns) = heard.stamps, span
        # Where stamps go back the clock jumped: a simulator began its next episode.
        while stop < len(stamps) and stamps[stop - 1] <= stamps[stop] < end_ns:
            stop += 1
        while start < stop and stamps[start] < begin_ns:
            start += 1
    return slice(start, stop)
