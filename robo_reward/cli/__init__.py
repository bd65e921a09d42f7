"""The `robo-reward` command line."""
