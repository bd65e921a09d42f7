"""Numbers that have names, such as joints: taken by these, and not by where they happen to stand."""

from __future__ import annotations

from collections.abc import Sequence

from robo_reward.errors import DataError

__all__ = ["columns"]


def columns(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Where the numbers that are wanted stand among numbers of these names.

    What nobody wants is left out. A wanted "" has no name: such take the numbers that no name asks for, in
    their order. None where either side has no names: then numbers are taken as they come.

    Raises:
        DataError: a name that is not there or is there twice, or more or fewer nameless numbers than wanted.
    """
    if not len(names) or not any(wanted):
        return None
    places = {name: place for place, name in enumerate(names)}
    if len(places) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise DataError(f"it has '{twice}' twice")
    if missing := [name for name in wanted if name and name not in places]:
        raise DataError(f"it has no '{missing[0]}', only {', '.join(names)}")
    rest = [place for name, place in places.items() if name not in wanted]
    nameless = sum(not name for name in wanted)
    if nameless and len(rest) != nameless:
        raise DataError(f"it has {len(rest)} values beside those of known names, the robot takes {nameless}")
    left = iter(rest)
    return [places[name] if name else next(left) for name in wanted]
