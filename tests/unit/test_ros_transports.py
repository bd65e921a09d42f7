"""Which Fast DDS transports the safety node chooses, and when it leaves them to the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from robo_reward_ros import transports
from robo_reward_ros.transports import leave_shared_memory

HERE = Path(transports.__file__).parent
LOCALHOST = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "SYSTEM_DEFAULT"}
NEW, OLD = transports.FASTDDS_PROFILES
PROFILE = str(HERE / "fastdds_localhost.xml")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}),
        ({"ROS_LOCALHOST_ONLY": "0"}, {"ROS_LOCALHOST_ONLY": "0", "FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}),
        ({NEW: str(HERE / "fastdds_large_images.xml")}, {"FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}),
        ({"FASTDDS_BUILTIN_TRANSPORTS": "UDPv6"}, {"FASTDDS_BUILTIN_TRANSPORTS": "UDPv6"}),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "localhost"}, {**LOCALHOST, NEW: PROFILE}),
        ({"ROS_LOCALHOST_ONLY": "1"}, {**LOCALHOST, NEW: PROFILE}),
        (
            {"ROS_LOCALHOST_ONLY": "1", "ROS_DISTRO": "jazzy"},
            {**LOCALHOST, OLD: PROFILE, "ROS_DISTRO": "jazzy"},
        ),
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}),
    ],
)
def test_udp_alone_is_chosen(given: dict[str, str], expected: dict[str, str]) -> None:
    environment = dict(given)
    assert leave_shared_memory(environment) == ""
    assert environment == expected
    assert Path(environment.get(NEW, PROFILE)).is_file()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({NEW: "mine.xml"}, NEW),
        ({OLD: "mine.xml"}, OLD),
        ({"FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"}, "FASTDDS_BUILTIN_TRANSPORTS"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_STATIC_PEERS": "robot"}, "ROS_STATIC_PEERS"),
    ],
)
def test_what_the_user_chose_stays_with_a_warning(given: dict[str, str], named: str) -> None:
    environment = dict(given)
    assert leave_shared_memory(environment).startswith(f"{named} is set")
    assert environment == given
