"""The re-identification data sets by name."""
