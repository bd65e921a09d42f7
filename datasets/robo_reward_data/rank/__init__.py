"""Policy rollouts put in order by a model: which are best, which to keep, where the others went wrong."""
