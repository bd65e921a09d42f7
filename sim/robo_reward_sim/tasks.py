"""The simulated tasks as data: one row a task. Imports no simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from robo_reward_sim.experts import Expert, MetaWorldExpert, PegExpert
from robo_reward_sim.oracles import ContactOracle, PegOracle, StageOracle

__all__ = ["TASKS", "SimTask"]


@dataclass(frozen=True, slots=True)
class SimTask:
    """One task.

    name           its short name
    env_id         its gymnasium id
    metaworld      the Meta-World environment that simulates it
    instruction    what the robot is told; `paraphrases` say the same in other words
    stage_names    names of the k stages, in order
    oracle         makes the oracle, whose potential is in [0, k]
    expert         makes the scripted expert
    max_decisions  default limit of an episode, in decisions
    show_sites     markers that stay visible because the goal has no other sign in the scene
    """

    name: str
    env_id: str
    metaworld: str
    instruction: str
    paraphrases: tuple[str, ...]
    stage_names: tuple[str, ...]
    oracle: Callable[[], StageOracle]
    expert: Callable[[], Expert]
    max_decisions: int = 80
    show_sites: tuple[str, ...] = ()


def _apart(sim: Any, done: float) -> float:
    """Distance of the object from its goal, less the radius within which the simulator calls it done."""
    return float(np.linalg.norm(sim._get_pos_objects() - sim._target_pos)) - done


def _along(sim: Any, axis: int, done: float) -> float:
    """The same along one axis of the world."""
    return abs(float(sim._get_pos_objects()[axis] - sim._target_pos[axis])) - done


_ROWS = (
    SimTask(
        name="peg-insert-side",
        env_id="robo_reward/PegInsertSide-v0",
        metaworld="peg-insert-side-v3",
        instruction="insert the green peg into the hole in the side of the block",
        paraphrases=(
            "put the green peg in the hole",
            "pick up the green stick and push it into the block from the side",
            "grasp the peg, line it up with the hole and slide it in",
        ),
        stage_names=("reach", "grasp", "align", "insert"),
        oracle=PegOracle,
        expert=PegExpert,
    ),
    SimTask(
        name="button-press",
        env_id="robo_reward/ButtonPress-v0",
        metaworld="button-press-v3",
        instruction="press the red button on the box",
        paraphrases=("push the button in", "move the gripper to the button and press it"),
        stage_names=("reach", "press"),
        oracle=partial(
            ContactOracle, (0.0, -0.05, -0.11), (1.5, 1.0, 1.5), partial(_along, axis=1, done=0.02)
        ),
        expert=partial(MetaWorldExpert, "button-press-v3"),
    ),
    SimTask(
        name="drawer-open",
        env_id="robo_reward/DrawerOpen-v0",
        metaworld="drawer-open-v3",
        instruction="open the drawer",
        paraphrases=("pull the drawer open by its handle", "grab the handle and pull the drawer out"),
        stage_names=("reach", "pull"),
        oracle=partial(ContactOracle, (0.0, 0.0, -0.05), (2.0, 2.0, 1.0), partial(_apart, done=0.03)),
        expert=partial(MetaWorldExpert, "drawer-open-v3"),
    ),
    SimTask(
        name="door-open",
        env_id="robo_reward/DoorOpen-v0",
        metaworld="door-open-v3",
        instruction="open the door of the safe",
        paraphrases=("pull the door open", "hook the handle and swing the door open"),
        stage_names=("reach", "open"),
        oracle=partial(
            ContactOracle, (0.0, 0.03, -0.05), (1.0, 1.0, 1.0), partial(_along, axis=0, done=0.08)
        ),
        expert=partial(MetaWorldExpert, "door-open-v3"),
    ),
    SimTask(
        name="push",
        env_id="robo_reward/Push-v0",
        metaworld="push-v3",
        instruction="push the red puck to the marked spot",
        paraphrases=("move the puck onto the mark", "slide the puck along the table to the goal"),
        stage_names=("reach", "push"),
        oracle=partial(ContactOracle, (0.0, 0.0, -0.015), (2.0, 2.0, 1.0), partial(_apart, done=0.05)),
        expert=partial(MetaWorldExpert, "push-v3"),
        show_sites=("goal",),
    ),
    SimTask(
        name="pick-place",
        env_id="robo_reward/PickPlace-v0",
        metaworld="pick-place-v3",
        instruction="pick up the puck and bring it to the marked point",
        paraphrases=("lift the puck to the goal", "grasp the puck and hold it at the mark in the air"),
        stage_names=("reach", "grasp", "carry"),
        oracle=partial(
            ContactOracle, (0.0, 0.0, -0.015), (2.0, 2.0, 1.0), partial(_apart, done=0.07), grasps=True
        ),
        expert=partial(MetaWorldExpert, "pick-place-v3"),
        show_sites=("goal",),
    ),
)

TASKS: Mapping[str, SimTask] = {task.name: task for task in _ROWS}
"""Every task by its short name."""
