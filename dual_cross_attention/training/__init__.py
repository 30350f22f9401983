"""The loop around a task: optimiser, steps, checkpoints, and the run's folder."""
