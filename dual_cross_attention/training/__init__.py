"""The loop around a task: optimizer, steps, checkpoints, and the run's folder."""
