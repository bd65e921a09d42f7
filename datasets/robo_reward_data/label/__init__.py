"""What a model says of every frame of a LeRobot dataset, written where LeRobot reads it."""
