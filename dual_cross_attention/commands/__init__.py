"""Commands of `dcal`, a file each: a dataclass of options, and `run(arguments)`, which returns the exit status or None.

A new command is registered in `cli.COMMANDS`. Nothing that imports torch is imported at the top of these files.
"""
