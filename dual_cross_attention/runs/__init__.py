"""A run's folder, as those who use it see it."""
