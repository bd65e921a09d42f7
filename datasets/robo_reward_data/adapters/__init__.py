"""Other people's reward models as methods of `robo-reward compare`."""
