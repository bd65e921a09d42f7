"""Chooses the OpenGL backend for off-screen rendering, and says what to install where there is none."""

from __future__ import annotations

import ctypes
import os
from importlib import import_module
from typing import Any

from robo_reward.errors import RoboRewardError

__all__ = ["GraphicsError", "choose_backend", "create_context", "require_graphics"]

_INSTALL = "apt-get install libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri"
_LIBRARIES = (
    ("egl", ("libEGL.so.1", "libEGL.so")),
    ("osmesa", ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")),
)
_BACKENDS = ("egl", "osmesa", "glfw")


class GraphicsError(RoboRewardError):
    """No way to render off screen on this machine."""


def choose_backend() -> str:
    """The backend that `MUJOCO_GL` names, or the first of EGL and OSMesa that is installed.

    Where `MUJOCO_GL` is unset the choice is written to it, so that MuJoCo and child processes agree. With a
    display and no `MUJOCO_GL`, EGL is still preferred: it needs no window.

    Raises:
        GraphicsError: `MUJOCO_GL` names something else, or neither library is installed.
    """
    named = os.environ.get("MUJOCO_GL", "").strip().lower()
    if named:
        if named not in _BACKENDS:
            raise GraphicsError(f"MUJOCO_GL='{named}' cannot render: set it to one of {', '.join(_BACKENDS)}")
        return named
    for backend, names in _LIBRARIES:
        if any(_loads(name) for name in names):
            os.environ["MUJOCO_GL"] = backend
            return backend
    raise GraphicsError(f"neither EGL nor OSMesa is installed, so cameras cannot be rendered: {_INSTALL}")


def create_context(width: int, height: int) -> Any:
    """An off-screen OpenGL context of MuJoCo's own class, not yet current.

    Raises:
        GraphicsError: the backend is there but gives no context (a missing driver, most often).
    """
    backend = choose_backend()
    if _used_by and _used_by[0] != os.getpid():
        # It would hang: the driver's threads and locks do not survive a fork.
        raise GraphicsError(
            "this process was forked from one that had rendered already: start it with the 'spawn' or "
            "'forkserver' method, such as gymnasium.make_vec(..., vector_kwargs={'context': 'spawn'})"
        )
    try:
        # The backend's own module, not mujoco.GLContext: that one was fixed when mujoco was first imported,
        # perhaps by other code and before the choice was made.
        context = import_module(f"mujoco.{backend}").GLContext(width, height)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise GraphicsError(
            f"MUJOCO_GL={backend} gives no OpenGL context ({_brief(error)}): {_INSTALL}, "
            "or set MUJOCO_GL to another of egl, osmesa"
        ) from error
    if not _used_by:
        _used_by.append(os.getpid())
    return context


_used_by: list[int] = []  # the process that made the first context


def require_graphics() -> None:
    """Return where cameras can be rendered here.

    Raises:
        GraphicsError: they cannot; the message says what to install.
    """
    create_context(16, 16).free()


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _brief(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0].strip() if lines else type(error).__name__
