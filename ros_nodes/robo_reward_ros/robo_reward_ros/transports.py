"""Fast DDS's transports: how a node keeps out of shared memory.

A publisher that reaches a subscriber through shared memory waits for up to a second in `publish` when that
subscriber's process was killed (SIGKILL, out of memory), and with it all other subscribers wait
(eProsima/Fast-DDS#5469, measured here: README, ROS 2). The safety node's stops must not wait.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

__all__ = ["FASTDDS_PROFILES", "leave_shared_memory", "profile_variable"]

FASTDDS_PROFILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_RANGE, _LOCALHOST_ONLY, _PEERS = "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY", "ROS_STATIC_PEERS"
_BUILTIN = "FASTDDS_BUILTIN_TRANSPORTS"
_HERE = Path(__file__).parent


def profile_variable(environment: Mapping[str, str]) -> str:
    """Where Fast DDS looks for a profile: Jazzy's reads the old name alone, later ones warn of it."""
    new, old = FASTDDS_PROFILES
    return old if environment.get("ROS_DISTRO") == "jazzy" else new


def leave_shared_memory(environment: MutableMapping[str, str] = os.environ) -> str:
    """Make this process's Fast DDS talk through UDP alone, unless the user has chosen its transports.

    Call it before `rclpy.init`. Other middlewares than Fast DDS are left alone.

    Args:
        environment: of this process, changed in place.

    Returns:
        Why shared memory stays, as a warning for the user; empty where it does not.
    """
    if "fastrtps" not in environment.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp"):
        return ""
    stays = (
        "{} is set, so this node may use shared memory: there, a stop can wait for 1 s when a process that "
        "hears robot_command is killed. Give this node {}"
    )
    for name in FASTDDS_PROFILES:
        # Profiles of this package are for processes that publish images.
        if name in environment and Path(environment[name]).parent != _HERE:
            return stays.format(name, "a profile of its own, with UDPv4 alone")
    if environment.get(_BUILTIN, "UDPv4") not in ("UDPv4", "UDPv6"):
        return stays.format(_BUILTIN, f"{_BUILTIN}=UDPv4")
    local = environment.get(_LOCALHOST_ONLY) == "1" or environment.get(_RANGE, "").upper() == "LOCALHOST"
    if local and environment.get(_PEERS):
        return stays.format(_PEERS, f"the range SUBNET instead of LOCALHOST ({_RANGE})")
    for name in FASTDDS_PROFILES:
        environment.pop(name, None)
    if local:
        environment[profile_variable(environment)] = str(_HERE / "fastdds_localhost.xml")
        environment[_RANGE] = "SYSTEM_DEFAULT"
        environment.pop(_LOCALHOST_ONLY, None)
    else:
        environment.setdefault(_BUILTIN, "UDPv4")
    return ""
