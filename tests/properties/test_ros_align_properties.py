"""Time alignment: whatever the cameras do, sets are in order, within the tolerance, and never late."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

# A checkout without the ROS extra has the package on no path.
sys.path.append(str(Path(__file__).resolve().parents[2] / "ros_nodes" / "robo_reward_ros"))

from robo_reward_ros.alignment import AlignedSet, Aligner, AlignerSettings, cure

MS = 1_000_000
SETTINGS = AlignerSettings(tolerance_ns=25 * MS, wait_ns=15 * MS, timeout_ns=300 * MS)
NAMES = ("a", "b", "c")


def run(
    events: list[tuple[int, str, int]], names: tuple[str, ...] = NAMES, settings: AlignerSettings = SETTINGS
) -> list[tuple[int, AlignedSet[int]]]:
    """Plays (arrival, camera, stamp) with a timer every millisecond; the sets and when each was out."""
    aligner: Aligner[int] = Aligner(names, settings)
    made: list[tuple[int, AlignedSet[int]]] = []
    now = 0
    for arrival, camera, stamp in sorted(events):
        while aligner.pending and now + MS <= arrival:
            now += MS
            made += [(now, found) for found in aligner.tick(now)]
        now = arrival
        made += [(now, found) for found in aligner.add(camera, stamp, stamp, now)]
    while (due := aligner.due_ns) is not None:
        made += [(due, found) for found in aligner.tick(due)]
    return made


def at_rate(name: str, hz: int, late: int, seconds: int = 4) -> list[tuple[int, str, int]]:
    """A camera whose frames all come so many milliseconds late."""
    stamps = [1000 * MS + index * 1000 * MS // hz for index in range(seconds * hz)]
    return [(stamp + late * MS, name, stamp) for stamp in stamps]


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, str, int]]:
    """Cameras at about 30 Hz that start and die when they like, with jitter, delay and losses."""
    events = []
    for name in NAMES:
        first, last = draw(st.integers(0, 30)), draw(st.integers(20, 60))
        phase, delay = draw(st.integers(0, 20)), draw(st.integers(0, 60))
        for index in range(first, last):
            if draw(st.integers(0, 9)) == 0:
                continue
            stamp = 1000 + 33 * index + phase + draw(st.integers(-3, 3))
            events.append(((stamp + delay + draw(st.integers(0, 5))) * MS, name, stamp * MS))
    return events


@given(streams(), st.sampled_from((0, 15, 100, 250)))
def test_sets_are_ordered_close_together_and_on_time(events: list[tuple[int, str, int]], wait: int) -> None:
    made = run(events, settings=replace(SETTINGS, wait_ns=wait * MS))
    stamps = [found.stamp_ns for _, found in made]
    assert all(later > earlier for earlier, later in pairwise(stamps))
    for given_out, found in made:
        assert given_out - found.arrived_ns <= (wait + 1) * MS
        assert set(found.frames) | set(found.missing) == set(NAMES)
        assert not set(found.frames) & set(found.missing)
        assert found.frames[found.reference][0] == found.stamp_ns
        assert all(abs(stamp - found.stamp_ns) <= SETTINGS.tolerance_ns for stamp, _ in found.frames.values())
        assert all(stamp == frame for stamp, frame in found.frames.values())
    assert all(not found.generation for _, found in made)


@given(st.tuples(*(st.integers(0, 200) for _ in NAMES)), st.randoms(use_true_random=False))
def test_a_wait_as_long_as_the_latest_camera_is_late_keeps_all_in_every_set(
    late: tuple[int, ...], random: Random
) -> None:
    """Whichever is late, the reference too: a new frame of it closed the set before, whatever wait_s was."""
    events = []
    for name, by in zip(NAMES, late, strict=True):
        events += [(at + random.randint(0, 4) * MS, name, stamp) for at, _, stamp in at_rate(name, 30, by)]
    made = run(events, settings=replace(SETTINGS, wait_ns=250 * MS))
    assert all(found.missing == () for _, found in made)
    # Until the first camera has come and has caught up, another one is the reference.
    assert len(made) >= 120 - 7
    assert made[-1][1].stamp_ns == max(stamp for _, _, stamp in events)


def test_cameras_in_step_give_one_full_set_a_frame_as_soon_as_it_is_there() -> None:
    # b comes 4 ms after a, c 8 ms after: each set is given out when its last frame arrives.
    events = [
        ((1000 + 33 * i + late) * MS, name, (1000 + 33 * i) * MS)
        for i in range(20)
        for name, late in (("a", 0), ("b", 4), ("c", 8))
    ]
    made = run(events)
    assert [found.stamp_ns // MS for _, found in made] == [1000 + 33 * i for i in range(20)]
    assert all(found.missing == () for _, found in made)
    assert [(at - found.arrived_ns) // MS for at, found in made] == [8] * 20


def test_the_death_of_a_camera_delays_three_sets_at_most_and_the_reference_is_replaced() -> None:
    alive = {"a": range(10), "b": range(40), "c": range(40)}
    events = [
        ((1000 + 33 * i) * MS, name, (1000 + 33 * i) * MS) for name, when in alive.items() for i in when
    ]
    made = run(events)
    late = [found for at, found in made if at - found.arrived_ns > 0]
    assert len(late) <= 3
    assert {found.reference for _, found in made[:10]} == {"a"}
    assert {found.reference for _, found in made[10:]} == {"b"}
    assert all(found.missing == ("a",) for _, found in made[10:])
    # Three frame periods pass until the silence is noticed; from then on nothing is lost.
    assert made[10][1].stamp_ns <= (1000 + 33 * 13) * MS
    assert made[-1][1].stamp_ns == (1000 + 33 * 39) * MS


def test_all_may_pause_together_and_then_go_on_together() -> None:
    # A robot that waits for its learner: long, uneven pauses between moments.
    moments = [1000, 1050, 2500, 2600, 9000, 9100]
    events = [
        ((t + late) * MS, name, (1000 + 50 * i) * MS)
        for i, t in enumerate(moments)
        for name, late in (("c", 0), ("b", 1), ("a", 2))
    ]
    made = run(events)
    assert [found.stamp_ns // MS for _, found in made] == [1000 + 50 * i for i in range(len(moments))]
    assert all(found.missing == () for _, found in made)


def test_a_camera_that_lags_a_second_is_left_out_without_delay_until_it_is_back() -> None:
    events = []
    for i in range(90):
        stamp = (1000 + 33 * i) * MS
        events.append((stamp, "a", stamp))
        events.append((stamp + MS, "b", stamp - 1000 * MS if 10 <= i < 60 else stamp))
    made = run([(at, name, stamp) for at, name, stamp in events if stamp > 0], ("a", "b"))
    out = [found for _, found in made if found.missing == ("b",)]
    assert len(out) == 51  # the first set after its return is out before it is noticed
    assert len([found for at, found in made if at - found.arrived_ns > MS]) <= 3
    assert all(found.missing == () for _, found in made[-25:])


def test_a_jump_of_the_references_clock_begins_a_new_generation() -> None:
    stamps = [*range(5000, 5330, 33), *range(1000, 1330, 33)]
    events = [((9000 + 33 * i) * MS, name, t * MS) for i, t in enumerate(stamps) for name in ("a", "b")]
    made = run(events, ("a", "b"))
    assert [found.stamp_ns // MS for _, found in made] == stamps
    assert [found.generation for _, found in made] == [0] * 10 + [1] * 10
    assert all("camera 'a' jumped back by 4.297 s" in found.reset for _, found in made[10:])


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_bag_that_begins_anew_loses_no_image(order: str) -> None:
    """What came before the first image of the first camera was thrown away with what was there of old."""
    stamps = [*range(5000, 5330, 33), *range(1000, 1330, 33)]
    events = [
        ((9000 + 33 * i) * MS + late, name, t * MS)
        for i, t in enumerate(stamps)
        for late, name in enumerate(order)
    ]
    made = [found for _, found in run(events, ("a", "b"))]
    assert [found.stamp_ns // MS for found in made] == stamps
    assert [found.missing for found in made] == [()] * 20
    assert [found.generation for found in made] == [0] * 10 + [1] * 10


def test_stamps_that_do_not_advance_are_counted_and_left_out() -> None:
    aligner: Aligner[int] = Aligner(["a"], SETTINGS)
    made = [len(aligner.add("a", stamp, 0, now)) for now, stamp in enumerate((100, 100, 90, 101))]
    assert made == [1, 0, 0, 1]
    assert aligner.cameras["a"].stale == 2


def test_a_camera_that_repeats_its_last_message_gives_way_to_the_next() -> None:
    """Relays of a dead camera do: it stayed the reference, and no set was made any more."""
    aligner: Aligner[int] = Aligner(["a", "b"], SETTINGS)
    made = []
    for i in range(60):
        now = stamp = (1000 + 33 * i) * MS
        made += aligner.add("a", min(stamp, 1330 * MS), 0, now)
        made += aligner.add("b", stamp, 0, now)
        made += aligner.tick(now + SETTINGS.wait_ns)
    alone = [found for found in made if found.missing == ("a",)]
    assert [found.stamp_ns for found in alone] == [(1000 + 33 * i) * MS for i in range(60 - len(alone), 60)]
    assert len(alone) >= 45
    assert aligner.silent("a", now)
    assert aligner.cameras["a"].stale == 49


def test_a_camera_by_a_clock_of_its_own_begins_a_new_generation_where_it_takes_over() -> None:
    """Stamps of the next camera were too old to open a set for as long as they were behind the dead one's."""
    events = [((9000 + 33 * i) * MS, "a", (9000 + 33 * i) * MS) for i in range(10)]
    events += [((9001 + 33 * i) * MS, "b", (20 + 33 * i) * MS) for i in range(60)]
    made = run(events, ("a", "b"))
    late = [found for _, found in made if found.reference == "b"]
    assert len(late) >= 45
    assert {found.generation for found in late} == {1}
    assert "stamps of camera 'b' are 8." in late[0].reset


LATE = AlignerSettings(tolerance_ns=25 * MS, wait_ns=250 * MS, timeout_ns=300 * MS)


@pytest.mark.parametrize("order", [("front", "wrist", "wifi"), ("wifi", "wrist", "front")])
@pytest.mark.parametrize("late", [100, 200, 240])
def test_a_camera_by_wifi_is_in_every_set_that_it_has_a_frame_of(order: tuple[str, ...], late: int) -> None:
    """Beside a reference of 30 Hz it was in none, whatever wait_s was; it had to be the first one."""
    events = [*at_rate("front", 30, 5), *at_rate("wrist", 15, 6), *at_rate("wifi", 15, late)]
    made = [found for _, found in run(events, order, LATE)]
    seen = {stamp for _, name, stamp in events if name == "wifi"}
    for found in made:
        assert ("wifi" not in found.missing) == any(abs(t - found.stamp_ns) <= 25 * MS for t in seen)
        assert ("wrist" not in found.missing) == ("wifi" not in found.missing)
        assert "front" not in found.missing
    assert sum(not found.missing for found in made) >= 50


def test_a_reference_that_comes_late_finds_the_frames_of_the_others() -> None:
    """Eight frames were kept: of a camera of 60 Hz an eighth of a second."""
    events = [*at_rate("wifi", 15, 300), *at_rate("front", 60, 5), *at_rate("wrist", 30, 5)]
    made = [found for _, found in run(events, ("wifi", "front", "wrist"))]
    assert sum(not found.missing for found in made) >= 54
    assert all(not found.missing for found in made if found.reference == "wifi")


def test_a_camera_that_is_waited_for_long_and_dies_delays_nothing_once_it_is_noticed() -> None:
    events = [*at_rate("front", 30, 5), *at_rate("wifi", 15, 200, seconds=2)]
    made = run(events, ("front", "wifi"), LATE)
    assert [found.stamp_ns for _, found in made] == [stamp for _, name, stamp in events if name == "front"]
    # Its last frame came at 3.133 s. All that waited for the next one is out as soon as that is overdue.
    delayed = [at for at, found in made if at - found.arrived_ns > MS]
    assert max(delayed) <= (3134 + 300) * MS
    assert all(found.missing == ("wifi",) for at, found in made if at > 3200 * MS)


def test_a_set_does_not_wait_for_a_camera_that_has_gone_past_it() -> None:
    """Of a camera at half the rate every other set waited to the end, for a frame that there is not."""
    made = run([*at_rate("front", 30, 5), *at_rate("wrist", 15, 5)], ("front", "wrist"), LATE)
    waited = [at - found.arrived_ns for at, found in made[:-1] if found.missing]
    assert len(waited) >= 55
    assert max(waited) <= 34 * MS


@pytest.mark.parametrize(("tolerance", "share"), [(25, 0.5), (34, 0.0)])
def test_the_share_of_sets_without_a_slow_camera_is_known(tolerance: int, share: float) -> None:
    """It was in half the sets, and never missing often enough in a row to be told of."""
    aligner: Aligner[int] = Aligner(("front", "wrist"), replace(SETTINGS, tolerance_ns=tolerance * MS))
    shares = []
    for at, name, stamp in sorted([*at_rate("front", 30, 5), *at_rate("wrist", 15, 4)]):
        aligner.add(name, stamp, 0, at)
        aligner.tick(at + SETTINGS.wait_ns)
        shares.append(aligner.cameras["wrist"].missing_share)
    assert aligner.cameras["wrist"].misses < 3
    assert shares[15] == 0.0, "before it is known"
    assert shares[-1] == pytest.approx(share, abs=0.02)
    assert aligner.cameras["front"].missing_share == 0.0


@pytest.mark.parametrize(("hz", "late", "ways"), [(5, 20, 2), (4, 4, 2), (2, 40, 2), (1, 40, 0)])
def test_what_is_advised_for_a_slow_camera_keeps_it_in_every_set(hz: int, late: int, ways: int) -> None:
    """It was to raise the tolerance alone, to half a period, which waits for nothing.

    One that is slower than the timeout was never told of: each image was taken for a return from the dead.
    """
    events = sorted([*at_rate("front", 30, 5, seconds=12), *at_rate("slow", hz, 5 + late, seconds=12)])
    aligner: Aligner[int] = Aligner(("front", "slow"), replace(SETTINGS, tolerance_ns=600 * MS // hz))
    for at, name, stamp in events:
        aligner.add(name, stamp, 0, at)
        aligner.tick(at + SETTINGS.wait_ns)
    slow = aligner.cameras["slow"]
    assert slow.missing_share > 0.1
    advice = cure(slow, aligner.cameras["front"], aligner.settings)
    assert ("slower than camera_timeout_s (0.3 s)" in advice) == (hz < 4)
    assert advice.count(" to ") == ways
    if not ways:
        assert advice.endswith("too slow or too late for any settings")
        return
    wait, alone = (round(1e9 * float(number)) for number in re.findall(r" to (\d\.\d+) s", advice))
    timeout = max(SETTINGS.timeout_ns, 1100 * MS // hz)
    for settings in (
        replace(aligner.settings, wait_ns=wait, timeout_ns=timeout),
        replace(aligner.settings, tolerance_ns=alone),
    ):
        made = [found for _, found in run(events, ("front", "slow"), settings)][30:-30]
        assert len(made) >= 290
        assert all(found.missing == () for found in made)


def test_no_more_frames_are_kept_than_a_set_may_need() -> None:
    """Images are large."""
    aligner: Aligner[int] = Aligner(("front", "wifi", "other"), LATE)
    most = dict.fromkeys(aligner.cameras, 0)
    # The third one's clock is an hour ahead: its frames are in no set.
    ahead = [(at, name, stamp + 3_600_000 * MS) for at, name, stamp in at_rate("other", 30, 0)]
    for at, name, stamp in sorted([*at_rate("front", 30, 0), *at_rate("wifi", 30, 200), *ahead]):
        aligner.add(name, stamp, 0, at)
        if at > 1500 * MS:
            most = {key: max(most[key], len(state.frames)) for key, state in aligner.cameras.items()}
    assert most["front"] <= 9
    assert most["wifi"] <= 2
    assert most["other"] <= 16
