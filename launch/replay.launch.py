"""A bag in, rewards out: ros2 launch robo_reward_bringup replay.launch.py bag:=FOLDER model:=RUN."""

from robo_reward_ros.launch_actions import description
from robo_reward_ros.launch_plan import replay_plan


def generate_launch_description():
    return description(
        replay_plan,
        {
            "bag": (None, "folder of the bag"),
            "model": (None, "run folder of robo-reward train"),
            "params": ("", "parameter file with the cameras; empty: params/reward.yaml of this package"),
            "rate": (1.0, "times faster than it was recorded"),
            "namespace": ("", "of the nodes"),
            "markers": ("/episode_marker", "topic of the episode markers; a bag without is one episode"),
            "topics": (
                (),
                "what to play, separated by spaces; empty: what the reward node reads, and markers",
            ),
        },
    )
