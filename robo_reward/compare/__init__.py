"""Several reward models on the same episodes in one run."""
