"""Importing this makes a robot behind topics known to gymnasium as `ros`: `robo-reward improve env=ros`.

It is cheap: rclpy is imported by `gymnasium.make`.
"""

from __future__ import annotations

import gymnasium

if "ros" not in gymnasium.registry:
    gymnasium.register(
        id="ros",
        entry_point="robo_reward_ros.robot_env:RosRobotEnv",
        disable_env_checker=True,  # it steps the environment: a robot moves only when it is told to
    )
