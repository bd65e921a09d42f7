"""Better policies: learning from demonstrations and online rollouts, with shaped rewards."""
