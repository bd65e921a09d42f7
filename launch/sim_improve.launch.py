"""A simulated robot that learns through ROS: ros2 launch robo_reward_bringup sim_improve.launch.py demos:=STORE out:=RUN."""

from robo_reward_ros.launch_actions import description
from robo_reward_ros.launch_plan import sim_improve_plan


def generate_launch_description():
    return description(
        sim_improve_plan,
        {
            "demos": (None, "episode store with demonstrations"),
            "out": (None, "folder of the run"),
            "model": ("", "run folder of robo-reward train; empty: without reward node and model"),
            "env_id": (
                "robo_reward_sim:robo_reward/PegInsertSide-v0",
                "what the robot plays: a gymnasium id after the module that registers it",
            ),
            "overrides": ((), "further key=value of robo-reward improve, separated by spaces"),
            "sim_params": ("", "parameter file of the robot"),
            "safety_params": ("", "parameter file of the safety node"),
            "reward_params": ("", "parameter file of the reward node"),
        },
    )
