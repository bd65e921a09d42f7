"""The reward node beside cameras that run already: ros2 launch robo_reward_bringup reward.launch.py model:=RUN."""

from robo_reward_ros.launch_actions import description
from robo_reward_ros.launch_plan import reward_plan


def generate_launch_description():
    return description(
        reward_plan,
        {
            "model": (None, "run folder of robo-reward train"),
            "params": ("", "parameter file with the cameras; empty: params/reward.yaml of this package"),
            "namespace": ("", "of the node"),
            "use_sim_time": (False, "take the time from /clock"),
        },
    )
