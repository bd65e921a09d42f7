"""Arguments of a launch file: all text to ROS 2's `launch`, typed values to the function that makes a plan.

Imports no ROS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robo_reward.errors import ConfigError

__all__ = ["Arguments", "default_text", "values"]

type Arguments = Mapping[str, tuple[Any, str]]
"""By name the default, whose type is that of the argument, and what it is.

None: a text that is required. "": a text, left to the function that makes the plan. A tuple: words.
"""

_BOOLS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


def default_text(default: Any) -> str | None:
    """A default as it would be typed on the command line; None where the argument is required."""
    if default is None:
        return None
    return " ".join(default) if isinstance(default, tuple) else str(default)


def values(arguments: Arguments, given: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments from what was typed; those that are empty are left out.

    Raises:
        ConfigError: a text that is no value of its argument's type.
    """
    return {name: _typed(name, text, type(arguments[name][0])) for name, text in given.items() if text}


def _typed(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ConfigError(f"{name} is '{text}': say true or false")
        return _BOOLS[text.lower()]
    if kind is tuple:
        return tuple(text.split())
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{name} is '{text}': say a number") from None
    return text
