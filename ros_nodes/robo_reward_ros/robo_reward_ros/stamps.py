"""Stamps of messages, both ways. What a message says may be anything: rclpy's own reading raises below 0."""

from __future__ import annotations

from builtin_interfaces.msg import Time

__all__ = ["stamp_msg", "stamp_ns"]


def stamp_ns(stamp: Time) -> int:
    """A stamp in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def stamp_msg(stamp: int) -> Time:
    """A stamp from nanoseconds."""
    seconds, rest = divmod(int(stamp), 1_000_000_000)
    return Time(sec=int(seconds), nanosec=int(rest))
