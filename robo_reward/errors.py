"""Errors a user can act on: each names the thing, its value and the way out."""

from __future__ import annotations


class RoboRewardError(Exception):
    """Bad input or a refused request. The command line prints its message as one line and exits with 1."""


class DataError(RoboRewardError):
    """A demonstration, dataset or store that cannot be used as it is."""


class ConfigError(RoboRewardError):
    """A configuration value that is missing, of the wrong type, or out of range."""


class CheckpointError(RoboRewardError):
    """A checkpoint that is missing, corrupt, or of another schema version."""
