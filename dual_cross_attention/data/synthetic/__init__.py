"""The built-in synthetic datasets."""
