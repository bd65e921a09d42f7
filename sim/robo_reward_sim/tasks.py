"""The simulated tasks as data: one row a task. Imports no simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from robo_reward_sim import motions
from robo_reward_sim.carry_oracles import (
    CarryOracle,
    assembly_potential,
    hammer_potential,
    hammer_scene,
    object_scene,
    pick_place_potential,
    push_potential,
    ring_scene,
    shelf_potential,
)
from robo_reward_sim.contact_oracles import ContactOracle, distance_along, distance_left, door_angle_left
from robo_reward_sim.experts import Expert, PegExpert
from robo_reward_sim.oracles import PegOracle, StageOracle
from robo_reward_sim.rendering import FixedCamera, FreeCamera

__all__ = ["TASKS", "SimTask", "WrongTask"]


@dataclass(frozen=True, slots=True)
class WrongTask:
    """Something else that can be done in the scene of a task: what it would be told, and who does it."""

    instruction: str
    expert: Callable[[], Expert]


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
    cameras        places of named cameras that suit this task better than the usual ones
    wrong          other things that can be done in the same scene, for the demonstrator `wrong_task`
    max_decisions  default limit of an episode, in decisions
    show_sites     markers that stay visible because the goal has no other sign in the scene
    lasting        once done, the task stays done when the hand lets go and leaves
    """

    name: str
    env_id: str
    metaworld: str
    instruction: str
    paraphrases: tuple[str, ...]
    stage_names: tuple[str, ...]
    oracle: Callable[[], StageOracle]
    expert: Callable[[], Expert]
    wrong: tuple[WrongTask, ...] = ()
    cameras: Mapping[str, FreeCamera | FixedCamera] = field(default_factory=dict)
    max_decisions: int = 80
    show_sites: tuple[str, ...] = ()
    lasting: bool = False


def _close_up(
    x: float, y: float, z: float, distance: float = 0.8, elevation: float = -30.0
) -> Mapping[str, FreeCamera]:
    """The two cameras at the sides, nearer: for tasks whose objects are small."""
    return {
        name: FreeCamera(lookat=(x, y, z), distance=distance, azimuth=azimuth, elevation=elevation)
        for name, azimuth in (("left", 35.0), ("right", 145.0))
    }


_ROWS = (
    SimTask(
        name="peg-insert-side",
        env_id="robo_reward/PegInsertSide-v0",
        metaworld="peg-insert-side-v3",
        lasting=True,
        instruction="insert the green peg into the hole in the side of the block",
        paraphrases=(
            "put the green peg in the hole",
            "pick up the green stick and push it into the block from the side",
            "grasp the peg, line it up with the hole and slide it in",
        ),
        stage_names=("reach", "grasp", "align", "insert"),
        # One camera at the hole: from the usual places its last centimeter is a pixel or two of the usual 84.
        cameras={"right": FreeCamera(lookat=(-0.14, 0.56, 0.12), distance=0.65, azimuth=145.0)},
        oracle=PegOracle,
        expert=PegExpert,
        wrong=(
            WrongTask("lift the green peg and hold it up", partial(motions.carry_peg, (0.05, 0.55, 0.22))),
            WrongTask(
                "put the green peg at the front of the table", partial(motions.carry_peg, (0.10, 0.45, 0.03))
            ),
        ),
    ),
    SimTask(
        name="button-press",
        env_id="robo_reward/ButtonPress-v0",
        metaworld="button-press-v3",
        instruction="press the red button on the box",
        paraphrases=("push the button in", "move the gripper to the button and press it"),
        stage_names=("reach", "press"),
        oracle=partial(
            ContactOracle,
            (0.0, -0.03, 0.0),
            (0.03, 0.03, 0.05),
            left=partial(distance_along, axis=1, done=0.02),
        ),
        expert=motions.press,
        wrong=(
            WrongTask("press on the top of the box", motions.press_top),
            WrongTask("hold the gripper above the button", motions.hover_over),
        ),
    ),
    SimTask(
        name="drawer-open",
        env_id="robo_reward/DrawerOpen-v0",
        metaworld="drawer-open-v3",
        instruction="open the drawer",
        paraphrases=("pull the drawer open by its handle", "grab the handle and pull the drawer out"),
        stage_names=("reach", "pull"),
        oracle=partial(
            ContactOracle, (0.0, -0.01, -0.06), (0.04, 0.035, 0.04), left=partial(distance_left, done=0.03)
        ),
        expert=motions.open_drawer,
        wrong=(
            WrongTask("push the drawer shut", motions.push_shut),
            WrongTask("hold the gripper above the handle", motions.hover_over),
        ),
    ),
    SimTask(
        name="door-open",
        env_id="robo_reward/DoorOpen-v0",
        metaworld="door-open-v3",
        instruction="open the door of the safe",
        paraphrases=("pull the door open", "hook the handle and swing the door open"),
        stage_names=("reach", "open"),
        oracle=partial(
            ContactOracle,
            (0.0, 0.0, -0.04),
            (0.06, 0.06, 0.05),
            left=partial(door_angle_left, done=0.08),
            above=0.06,
        ),
        expert=motions.open_door,
        wrong=(
            WrongTask("push the door shut", motions.push_door_shut),
            WrongTask("hold the gripper above the handle", motions.hover_over),
        ),
    ),
    SimTask(
        name="window-open",
        env_id="robo_reward/WindowOpen-v0",
        metaworld="window-open-v3",
        lasting=True,
        instruction="slide the window open",
        paraphrases=("open the window by its handle", "push the window's handle to the right"),
        stage_names=("reach", "slide"),
        oracle=partial(
            ContactOracle,
            (-0.01, 0.0, 0.0),
            (0.03, 0.04, 0.06),
            left=partial(distance_along, axis=0, done=0.05),
        ),
        expert=motions.open_window,
        wrong=(
            WrongTask("close the window", motions.close_window),
            WrongTask("hold the gripper above the handle", motions.hover_over),
        ),
        # From the usual places the last twentieth of the way is less than a pixel of the usual 84.
        cameras={
            "left": FreeCamera(lookat=(0.0, 0.74, 0.15), distance=0.85, azimuth=42.0),
            "right": FreeCamera(lookat=(0.05, 0.72, 0.15), distance=0.8, azimuth=120.0),
        },
    ),
    SimTask(
        name="push",
        env_id="robo_reward/Push-v0",
        metaworld="push-v3",
        lasting=True,
        instruction="push the red puck to the marked spot",
        paraphrases=("move the puck onto the mark", "slide the puck along the table to the goal"),
        stage_names=("reach", "push"),
        # From above and near: how far the puck is from the mark lies flat on the table.
        cameras=_close_up(0.0, 0.78, 0.04, distance=0.55, elevation=-45.0),
        oracle=partial(CarryOracle, push_potential, object_scene),
        expert=motions.push,
        wrong=(
            WrongTask("lift the puck and hold it up", partial(motions.carry_puck, (0.0, 0.62, 0.22))),
            WrongTask(
                "bring the puck to the front of the table", partial(motions.carry_puck, (0.0, 0.48, 0.02))
            ),
        ),
        show_sites=("goal",),
    ),
    SimTask(
        name="pick-place",
        env_id="robo_reward/PickPlace-v0",
        metaworld="pick-place-v3",
        instruction="pick up the puck and bring it to the marked point",
        paraphrases=("lift the puck to the goal", "grasp the puck and hold it at the mark in the air"),
        stage_names=("reach", "grasp", "carry"),
        cameras=_close_up(0.0, 0.72, 0.10),
        oracle=partial(CarryOracle, pick_place_potential, object_scene),
        expert=motions.pick_place,
        wrong=(
            WrongTask(
                "put the puck at the front of the table", partial(motions.carry_puck, (0.0, 0.46, 0.02))
            ),
            WrongTask("put the puck on the left", partial(motions.carry_puck, (-0.25, 0.55, 0.02))),
        ),
        show_sites=("goal",),
    ),
    SimTask(
        name="shelf-place",
        env_id="robo_reward/ShelfPlace-v0",
        metaworld="shelf-place-v3",
        lasting=True,
        instruction="put the blue block on the shelf",
        paraphrases=("pick up the block and place it on the shelf", "move the blue cube onto the shelf"),
        stage_names=("reach", "grasp", "lift", "place"),
        # One camera looks into the shelf: from the usual places a block on its board is five pixels of 84.
        cameras={
            **_close_up(0.0, 0.72, 0.18, distance=1.0),
            "right": FreeCamera(lookat=(0.0, 0.77, 0.19), distance=0.75, azimuth=125.0),
        },
        oracle=partial(CarryOracle, shelf_potential, object_scene),
        expert=motions.shelf,
        wrong=(
            WrongTask(
                "put the block at the front of the table", partial(motions.carry_puck, (0.0, 0.43, 0.02))
            ),
            WrongTask("put the block beside the shelf", partial(motions.carry_puck, (-0.28, 0.65, 0.02))),
        ),
    ),
    SimTask(
        name="assembly",
        env_id="robo_reward/Assembly-v0",
        metaworld="assembly-v3",
        lasting=True,
        instruction="put the ring onto the peg",
        paraphrases=(
            "pick up the ring by its green handle and slip it over the peg",
            "assemble the nut and the peg",
        ),
        stage_names=("reach", "grasp", "carry", "lower"),
        # Both near the peg, and no hand in the way: from the usual places a ring that is one centimeter
        # beside its peg is a pixel or two.
        cameras={
            "left": FreeCamera(lookat=(0.02, 0.76, 0.09), distance=0.6, azimuth=35.0),
            "right": FreeCamera(lookat=(0.04, 0.76, 0.09), distance=0.65, azimuth=132.0, elevation=-35.0),
        },
        oracle=partial(CarryOracle, assembly_potential, ring_scene),
        expert=motions.assemble,
        wrong=(
            WrongTask(
                "put the ring at the front of the table", partial(motions.carry_ring, (0.13, 0.46, 0.02))
            ),
            WrongTask("lift the ring and hold it up", partial(motions.carry_ring, (0.20, 0.58, 0.22))),
        ),
    ),
    SimTask(
        name="hammer",
        env_id="robo_reward/Hammer-v0",
        metaworld="hammer-v3",
        lasting=True,
        instruction="hammer the nail into the block",
        paraphrases=("drive the nail in with the hammer", "pick up the red hammer and hit the nail"),
        stage_names=("reach", "grasp", "align", "drive"),
        # One camera at the nail.
        cameras={"right": FreeCamera(lookat=(0.10, 0.66, 0.10), distance=0.65, azimuth=145.0)},
        oracle=partial(CarryOracle, hammer_potential, hammer_scene),
        expert=motions.hammer,
        wrong=(
            WrongTask("lift the hammer and hold it up", partial(motions.carry_hammer, (-0.05, 0.48, 0.25))),
            WrongTask("put the hammer on the left", partial(motions.carry_hammer, (-0.25, 0.50, 0.03))),
        ),
    ),
)

TASKS: Mapping[str, SimTask] = {task.name: task for task in _ROWS}
"""Every task by its short name."""
