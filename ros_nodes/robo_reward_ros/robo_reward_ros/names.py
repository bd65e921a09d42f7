"""Names that ROS takes on a command line: it answers others with the place in its own source."""

from __future__ import annotations

import re
from collections.abc import Iterable

from robo_reward.errors import ConfigError

__all__ = ["check_cameras", "namespace_of"]

_TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def namespace_of(given: str) -> str:
    """A namespace with one slash before it, "" for none.

    Raises:
        ConfigError: it is none.
    """
    tokens = given.strip("/").split("/") if given.strip("/") else []
    if wrong := [token for token in tokens if not _TOKEN.fullmatch(token)]:
        raise ConfigError(
            f"namespace '{given}': '{wrong[0]}' is no name in ROS, which takes letters, digits and _, no "
            "digit first"
        )
    return "".join(f"/{token}" for token in tokens)


def check_cameras(names: Iterable[str]) -> None:
    """Refuse names that cannot be in the names of parameters.

    Raises:
        ConfigError: naming one.
    """
    for name in names:
        if not _TOKEN.fullmatch(name):
            raise ConfigError(
                f"camera '{name}': ROS takes letters, digits and _ in a name, no digit first; call it "
                "otherwise, and give the model's name for it as +parameters.camera.NAME.model_name"
            )
