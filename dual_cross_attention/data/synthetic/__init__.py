"""The built-in toy sets, drawn by this project."""
