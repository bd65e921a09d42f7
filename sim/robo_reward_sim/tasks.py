"""The simulated tasks as data: one row a task. Imports no simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from robo_reward_sim.experts import Expert, PegExpert
from robo_reward_sim.oracles import PegOracle, StageOracle

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
)

TASKS: Mapping[str, SimTask] = {task.name: task for task in _ROWS}
"""Every task by its short name."""
