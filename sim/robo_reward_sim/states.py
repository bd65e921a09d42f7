"""Saving and restoring one moment of a simulated scene, exactly."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float64

__all__ = ["SceneState", "SimState", "restore", "save"]


@dataclass(frozen=True, slots=True)
class SceneState:
    """A Meta-World scene: all from which the next step follows.

    physics    f64[n] MuJoCo's integration state, warm start of the solver included
    body_pos   f64[m, 3], site_pos f64[s, 3]: places in the model, which a reset moves
    facts      what Meta-World's environment keeps besides, by attribute
    """

    physics: Float64[np.ndarray, " n"]
    body_pos: Float64[np.ndarray, "m 3"]
    site_pos: Float64[np.ndarray, "s 3"]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SimState:
    """A moment of an environment of `task`: its scene, and what the episode keeps besides."""

    task: str
    scene: SceneState
    episode: Mapping[str, Any]


def save(sim: Any) -> SceneState:
    """The state of a Meta-World environment."""
    mujoco: Any = import_module("mujoco")
    physics = np.empty(mujoco.mj_stateSize(sim.model, _PHYSICS), np.float64)
    mujoco.mj_getState(sim.model, sim.data, physics, _PHYSICS)
    facts = {name: copy.deepcopy(value) for name, value in vars(sim).items() if _is_fact(value, sim)}
    return SceneState(physics, sim.model.body_pos.copy(), sim.model.site_pos.copy(), facts)


def restore(sim: Any, state: SceneState) -> None:
    """Put a Meta-World environment of the same kind back into a state."""
    mujoco: Any = import_module("mujoco")
    sim.model.body_pos[:], sim.model.site_pos[:] = state.body_pos, state.site_pos
    vars(sim).update(copy.deepcopy(dict(state.facts)))
    mujoco.mj_setState(sim.model, sim.data, state.physics, _PHYSICS)
    mujoco.mj_forward(sim.model, sim.data)
    # Computing what follows from the state has moved the solver's warm start: the next step begins from it.
    mujoco.mj_setState(sim.model, sim.data, state.physics, _PHYSICS)


_PHYSICS = 8191  # mjSTATE_INTEGRATION
_PLAIN = (np.ndarray, np.generic, np.random.Generator, int, float, str, tuple, list, type(None))


def _is_fact(value: Any, sim: Any) -> bool:
    if isinstance(value, np.ndarray):
        # Some are windows into the simulation itself, which is saved as physics.
        return not any(np.shares_memory(value, array) for array in (sim.data.xpos, sim.data.site_xpos))
    return isinstance(value, _PLAIN)
