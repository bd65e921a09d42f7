"""ament_python package of the nodes: `colcon build` installs it into a ROS workspace."""

from __future__ import annotations

from setuptools import setup

NAME = "robo_reward_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    package_data={NAME: ["*.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="robo_reward maintainers",
    maintainer_email="maintainers@robo-reward.invalid",
    description="Learned progress and shaped rewards from camera topics; a robot behind topics; safety.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            f"reward_node = {NAME}.reward_node:main",
            f"safety_node = {NAME}.safety_node:main",
            f"sim_robot_node = {NAME}.sim_robot_node:main",
            f"bag_recorder = {NAME}.bag_recorder:main",
            f"bag_player = {NAME}.bag_player:main",
        ],
    },
)
