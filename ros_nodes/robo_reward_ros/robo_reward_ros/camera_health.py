"""What there is to say of a camera whose images come: whether sets hold them, and what is in the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from robo_reward_ros.alignment import Aligner, cure
from robo_reward_ros.cameras import Camera

__all__ = ["camera_values", "why_blind", "why_left_out", "why_missing"]

_OFTEN = 1 / 10  # share of sets without a camera that is worth a warning
_STANDS_STILL_S = 0.5


def why_left_out(aligner: Aligner[Any], camera: Camera, now: int) -> str:
    """What to say of a camera whose images come and get into no set; "" where they do."""
    name, settings = camera.settings.name, aligner.settings
    state, reference = aligner.cameras[name], aligner.reference(now)
    if not state.given_up or aligner.silent(name, now) or reference is None or reference == name:
        return ""
    newest = aligner.cameras[reference].stamp_ns
    if state.stamp_ns is None or newest is None:
        return ""
    return (
        f"left out of {state.misses} sets in a row: its newest stamp is "
        f"{(state.stamp_ns - newest) * 1e-9:+.3f} s from that of '{reference}': it comes later than "
        f"wait_s ({settings.wait_ns * 1e-9:g} s), its clock is another one, or tolerance_s is too small "
        "for its rate"
    )


def why_missing(aligner: Aligner[Any], camera: Camera, now: int) -> str:
    """What to say of a camera that is in some sets, and missing in many; "" where it is not."""
    name, settings = camera.settings.name, aligner.settings
    state = aligner.cameras[name]
    slow = state.slow(settings.timeout_ns)
    if state.missing_share <= _OFTEN or (aligner.silent(name, now) and not slow):
        return ""
    reference = aligner.reference(now)
    beside = None if reference in (None, name) else aligner.cameras[reference]
    share = f"missing in {100 * state.missing_share:.0f} % of the last sets of images"
    return f"{share}: {cure(state, beside, settings)}"


def why_blind(cameras: Iterable[Camera], silence_s: float) -> str:
    """What to say where no set of images has come for `silence_s`."""
    told = ", ".join(f"{camera.settings.name} {camera.silent_s:.1f} s{_beside(camera)}" for camera in cameras)
    return f"no image for {silence_s:.1f} s (silent: {told})"


def _beside(camera: Camera) -> str:
    """Why images that do come are in no set, where that is known."""
    if camera.silent_s > _STANDS_STILL_S:
        return ""
    if camera.problem:
        return ", " + camera.problem.removeprefix(f"camera '{camera.settings.name}': ")
    if camera.standstill_s > _STANDS_STILL_S:
        return f", its stamps stand still for {camera.standstill_s:.1f} s"
    return ""


def camera_values(camera: Camera, aligner: Aligner[Any]) -> dict[str, object]:
    """The numbers of one camera in `/diagnostics`."""
    aligned = aligner.cameras[camera.settings.name]
    return {
        "received": camera.received,
        "rate (Hz)": f"{camera.rate_hz:.1f}",
        "silent (s)": f"{camera.silent_s:.2f}",
        "unchanged (s)": f"{camera.unchanged_s:.2f}",
        "reliability": "reliable" if camera.reliable else "best_effort",
        "lost, by DDS": camera.lost,
        "without a stamp": camera.unstamped,
        "stamp did not advance": aligned.stale,
        "sets without it, in a row": aligned.misses,
        "sets without it, lately (%)": f"{100 * aligned.missing_share:.0f}",
    }
