"""Sets of images that belong together, by their stamps, from cameras of which any may die. Pure Python.

One camera is the reference: each of its frames opens a set, which is ready as soon as every camera that is
waited for has a frame within the tolerance, or can have none any more, or at the deadline, whatever there is.
A camera that has fallen silent, or that keeps coming too late, is not waited for. When the reference falls
silent the next living camera takes over. Several sets may be open, as where a camera is later than a frame
period; they come in the order of their stamps.

A frame may be in several sets: that is how a slow camera is in all those of a fast one. The frame nearest to
a set may come half the slow one's period after it. So either the tolerance and the wait are half that period
(the wait longer by what it comes later), or the tolerance alone is all of it, and no set waits: `cure`.

Two clocks, both integer nanoseconds: stamps say what belongs together; the arrival times that are passed in
are of a steady clock and say who is alive. There is no lock and no callback here: sets are returned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

__all__ = [
    "MOST_TOLERANCE_S",
    "MOST_WAIT_S",
    "AlignedSet",
    "Aligner",
    "AlignerSettings",
    "CameraState",
    "cure",
]

MOST_TOLERANCE_S, MOST_WAIT_S = 1.0, 0.5  # that the settings may be

_MISSES = 3  # sets without it until a camera that still sends is no longer waited for
_OVERDUE = 2.5  # frame periods of silence until a camera counts as silent
_INTERVALS = 8  # arrivals that its period is estimated from
_KEPT_NS = 500_000_000  # frames are kept so long for a reference that comes late: images are large
_LATELY = 60  # sets that the share of those without a camera is taken of
_ENOUGH = 20  # of them, before there is a share
_JITTER = 1.1  # by which what is advised is more than it would be by the clock


@dataclass(frozen=True, slots=True)
class AlignerSettings:
    """How long to wait for whom. All in nanoseconds.

    tolerance_ns  frames whose stamps differ by no more than this belong together
    wait_ns       how long a set waits, from the arrival of the reference's frame: the most that one is late
    timeout_ns    a camera silent for this long is dead, whatever its rate
    jump_ns       the reference's stamp going back by more, or ahead of its arrival by more, is a jump; so is
                  another camera's turn as the reference where its stamps are behind by more
    """

    tolerance_ns: int = 25_000_000
    wait_ns: int = 15_000_000
    timeout_ns: int = 300_000_000
    jump_ns: int = 1_000_000_000


@dataclass(frozen=True, slots=True)
class AlignedSet[T]:
    """Frames of one moment.

    frames     stamp and frame by camera, in the order of the cameras
    stamp_ns   of the reference's frame
    missing    cameras that have no frame in it
    arrived_ns when the reference's frame came
    generation counts the restarts: stamps of two generations cannot be compared
    reset      why this generation began, "" for the first
    """

    frames: Mapping[str, tuple[int, T]]
    stamp_ns: int
    reference: str
    missing: tuple[str, ...]
    arrived_ns: int
    generation: int = 0
    reset: str = ""


@dataclass(frozen=True, slots=True)
class _Open:
    """A set that waits, or waited: whose frame opened it and when that came."""

    reference: str
    stamp_ns: int
    arrived_ns: int
    deadline_ns: int


@dataclass(slots=True)
class CameraState[T]:
    """What is known of one camera.

    stale   counts frames whose stamp did not advance
    jumped  its clock has, and not the reference's since
    """

    frames: deque[tuple[int, T]] = field(default_factory=deque)
    arrivals: deque[int] = field(default_factory=lambda: deque(maxlen=_INTERVALS + 1))
    stamp_ns: int | None = None
    received: int = 0
    stale: int = 0
    misses: int = 0
    jumped: bool = False
    missed: deque[bool] = field(default_factory=lambda: deque(maxlen=_LATELY))

    @property
    def missing_share(self) -> float:
        """Share of the last sets that it was missing in; 0 before there are enough."""
        return sum(self.missed) / len(self.missed) if len(self.missed) >= _ENOUGH else 0.0

    @property
    def period_ns(self) -> int | None:
        """Median time between arrivals, or None before the third frame."""
        if len(self.arrivals) < 3:
            return None
        gaps = sorted(b - a for a, b in pairwise(self.arrivals))
        return gaps[len(gaps) // 2]

    @property
    def given_up(self) -> bool:
        """Whether it has been in no set for so long that none waits for it."""
        return self.misses >= _MISSES

    def slow(self, timeout_ns: int) -> bool:
        """Whether it is dead between any two of its frames, by this timeout."""
        return (self.period_ns or 0) > timeout_ns

    def silent(self, now_ns: int, timeout_ns: int, grace_ns: int) -> bool:
        """Whether its next frame is overdue."""
        if not self.arrivals:
            return True
        period = self.period_ns
        limit = timeout_ns if period is None else min(timeout_ns, int(_OVERDUE * period) + grace_ns)
        return now_ns - self.arrivals[-1] > limit


class Aligner[T]:
    """Makes sets of the frames of several cameras; see the module."""

    def __init__(self, cameras: Sequence[str], settings: AlignerSettings | None = None) -> None:
        """Align these cameras; the first living one, in this order, is the reference."""
        self.settings = settings or AlignerSettings()
        self.cameras: dict[str, CameraState[T]] = {name: CameraState() for name in cameras}
        self._pending: deque[_Open] = deque()
        self._done: deque[_Open] = deque()  # given out: the newest, and those whose deadline is yet to come
        self._generation, self._reset = 0, ""

    @property
    def pending(self) -> bool:
        """Whether a set is waiting for its deadline: call `tick` then."""
        return bool(self._pending)

    @property
    def due_ns(self) -> int | None:
        """The next deadline, by the clock of the arrivals; None where no set waits."""
        return self._pending[0].deadline_ns if self._pending else None

    def reference(self, now_ns: int) -> str | None:
        """The camera whose frames open sets, or None while all are silent."""
        return next((name for name in self.cameras if not self._silent(name, now_ns)), None)

    def silent(self, camera: str, now_ns: int) -> bool:
        """Whether a camera's next frame is overdue."""
        return self._silent(camera, now_ns)

    def restart(self, reason: str, stamp_ns: int | None = None) -> None:
        """Forget frames and stamps, and begin a new generation of sets.

        Args:
            reason: why.
            stamp_ns: of the first frame after it. A camera that has jumped there already, as where a bag
                begins anew, keeps what it has sent since.
        """
        for state in self.cameras.values():
            there = None if not state.jumped else state.stamp_ns
            state.jumped = False
            if there is not None and stamp_ns is not None and abs(there - stamp_ns) <= self.settings.jump_ns:
                continue
            state.frames.clear()
            state.stamp_ns = None
        self._pending.clear()
        self._done.clear()
        self._generation += 1
        self._reset = reason

    def add(self, camera: str, stamp_ns: int, frame: T, now_ns: int) -> list[AlignedSet[T]]:
        """Take in a frame that arrived at `now_ns`; returns the sets that are ready, oldest first."""
        state = self.cameras[camera]
        jumped = self._note_jump(camera, stamp_ns, now_ns)
        state.received += 1
        if not jumped and state.stamp_ns is not None and stamp_ns <= state.stamp_ns:
            state.stale += 1  # and no sign of life: a relay that repeats a dead camera's last message is none
            return self.tick(now_ns)
        timeout = self.settings.timeout_ns
        if state.arrivals and now_ns - state.arrivals[-1] > timeout and not state.slow(timeout):
            state.missed.clear()  # of when it was dead
        state.arrivals.append(now_ns)
        if camera == self.reference(now_ns):
            self._note_other_clock(camera, stamp_ns)
        state.stamp_ns = stamp_ns
        state.frames.append((stamp_ns, frame))
        if camera == self.reference(now_ns) and self._is_new(camera, stamp_ns):
            self._pending.append(_Open(camera, stamp_ns, now_ns, now_ns + self.settings.wait_ns))
        elif any(now_ns <= past.deadline_ns and self._fits(stamp_ns, past.stamp_ns) for past in self._done):
            state.misses = 0  # it would have been in time: wait for it again
        ready = self.tick(now_ns)
        self._forget(now_ns)
        return ready

    def tick(self, now_ns: int) -> list[AlignedSet[T]]:
        """The sets that are complete, or whose deadline has passed, oldest first."""
        ready: list[AlignedSet[T]] = []
        while self._pending and (
            now_ns >= self._pending[0].deadline_ns or self._complete(self._pending[0], now_ns)
        ):
            ready.append(self._close(self._pending.popleft()))
        return ready

    def _complete(self, waiting: _Open, now_ns: int) -> bool:
        """Whether nothing is to come that it is worth waiting for."""
        return not any(
            self._worth_waiting(name, now_ns)
            and self._match(name, waiting.stamp_ns) is None
            and not self._gone_past(name, waiting.stamp_ns)
            for name in self.cameras
        )

    def _close(self, waiting: _Open) -> AlignedSet[T]:
        stamp = waiting.stamp_ns
        frames: dict[str, tuple[int, T]] = {}
        for name, state in self.cameras.items():
            found = self._match(name, stamp)
            state.missed.append(found is None)
            if found is None:
                state.misses += 1
                continue
            state.misses = 0
            frames[name] = found
            while state.frames and state.frames[0][0] < found[0]:
                state.frames.popleft()
        missing = tuple(name for name in self.cameras if name not in frames)
        self._done.append(waiting)
        return AlignedSet(
            frames, stamp, waiting.reference, missing, waiting.arrived_ns, self._generation, self._reset
        )

    def _forget(self, now_ns: int) -> None:
        """Let go of frames that no set can have any more, and of what was given out long ago."""
        while len(self._done) > 1 and self._done[0].deadline_ns < now_ns:
            self._done.popleft()
        oldest = self._pending[0] if self._pending else self._newest
        kept_ns = max(_KEPT_NS, self.settings.wait_ns)
        for state in self.cameras.values():
            if not state.frames:
                continue
            since = state.frames[-1][0] - kept_ns
            if oldest is not None and not state.jumped:  # what has jumped is of sets to come
                since = max(since, oldest.stamp_ns - self.settings.tolerance_ns)
            while state.frames and state.frames[0][0] < since:
                state.frames.popleft()

    @property
    def _newest(self) -> _Open | None:
        """The set that was opened last."""
        return (self._pending or self._done or (None,))[-1]

    def _gone_past(self, camera: str, stamp_ns: int) -> bool:
        """Whether a camera's stamps have gone past a moment, so that it has no more frames of it."""
        newest = self.cameras[camera].stamp_ns
        return newest is not None and newest > stamp_ns + self.settings.tolerance_ns

    def _match(self, camera: str, stamp_ns: int) -> tuple[int, T] | None:
        """The frame nearest to a stamp, within the tolerance."""
        near = [entry for entry in self.cameras[camera].frames if self._fits(entry[0], stamp_ns)]
        return min(near, key=lambda entry: abs(entry[0] - stamp_ns), default=None)

    def _fits(self, stamp_ns: int, other_ns: int) -> bool:
        return abs(stamp_ns - other_ns) <= self.settings.tolerance_ns

    def _is_new(self, camera: str, stamp_ns: int) -> bool:
        """Whether a frame may open a set: after a change of reference it may belong to one there is."""
        newest = self._newest
        if newest is None:
            return True
        return stamp_ns > newest.stamp_ns and (
            newest.reference == camera or not self._fits(stamp_ns, newest.stamp_ns)
        )

    def _note_other_clock(self, camera: str, stamp_ns: int) -> None:
        """A new reference by a clock far behind the last one's starts everything anew: no set would come."""
        newest = self._newest
        if newest is None or newest.reference == camera:
            return
        if stamp_ns < newest.stamp_ns - self.settings.jump_ns:
            behind = (newest.stamp_ns - stamp_ns) * 1e-9
            self.restart(
                f"stamps of camera '{camera}' are {behind:.3f} s behind those of '{newest.reference}'",
                stamp_ns,
            )

    def _worth_waiting(self, camera: str, now_ns: int) -> bool:
        """All may pause together; one camera is gone where the others have gone on without it."""
        state = self.cameras[camera]
        return state.misses == 0 or (not state.given_up and not self._silent(camera, now_ns))

    def _silent(self, camera: str, now_ns: int) -> bool:
        return self.cameras[camera].silent(now_ns, self.settings.timeout_ns, self.settings.wait_ns)

    def _note_jump(self, camera: str, stamp_ns: int, now_ns: int) -> bool:
        """Whether this frame's clock jumped; a jump of the reference's clock starts everything anew."""
        state = self.cameras[camera]
        if state.stamp_ns is None:
            return False
        step = stamp_ns - state.stamp_ns
        elapsed = now_ns - state.arrivals[-1]
        if -self.settings.jump_ns <= step <= elapsed + self.settings.jump_ns:
            return False
        state.frames.clear()
        alive = self.reference(now_ns)
        if alive in (None, camera):
            way = "back" if step < 0 else "ahead"
            self.restart(f"stamps of camera '{camera}' jumped {way} by {abs(step) * 1e-9:.3f} s", stamp_ns)
        else:
            state.jumped = True
        return True


def cure(camera: CameraState[Any], reference: CameraState[Any] | None, settings: AlignerSettings) -> str:
    """What would have a camera that is missing in many sets of `reference` in all of them."""
    of = camera.period_ns or 0, settings.tolerance_ns, settings.wait_ns
    period, tolerance, wait = (value * 1e-9 for value in of)
    late = max(0.0, _lateness_s(camera) - (_lateness_s(reference) if reference else 0.0))
    near = tolerance >= period / 2
    if not period or tolerance >= period + late or (near and wait >= period / 2 + late):
        return f"it comes later than wait_s ({wait:g} s): raise that, or its images get lost"
    half, whole = _JITTER * period / 2, _JITTER * period + late
    ways = list[str]()
    if half + late <= MOST_WAIT_S:
        nearer = "" if near else f"tolerance_s to {half:.3f} s (it is {tolerance:g} s) and "
        ways.append(f"{nearer}wait_s to {half + late:.3f} s (it is {wait:g} s)")
    if whole <= MOST_TOLERANCE_S:
        ways.append(f"tolerance_s alone to {whole:.3f} s (it is {tolerance:g} s)")
    told = f"it has an image every {period:.3f} s"
    if camera.slow(settings.timeout_ns):
        told += (
            f", slower than camera_timeout_s ({settings.timeout_ns * 1e-9:g} s), and counts as dead between"
        )
        if len(ways) == 2:
            ways[0] = f"camera_timeout_s above its period, {ways[0]}"
    return f"{told}: " + (f"raise {', or '.join(ways)}" if ways else "too slow or too late for any settings")


def _lateness_s(camera: CameraState[Any]) -> float:
    """How late its newest frame came, by its own clock: only differences mean anything."""
    if camera.stamp_ns is None or not camera.arrivals:
        return 0.0
    return (camera.arrivals[-1] - camera.stamp_ns) * 1e-9
