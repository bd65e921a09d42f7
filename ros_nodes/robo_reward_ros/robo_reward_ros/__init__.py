"""ROS 2 nodes around `robo_reward`: rewards from cameras, a robot as an environment, safety."""
