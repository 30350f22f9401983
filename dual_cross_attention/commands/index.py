"""`dcal index`: builds and changes an index of images of known individuals."""

from importlib import import_module

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

SUBCOMMANDS = {
    "build": "make an index from a folder with a subfolder per identity, or a CSV file",
    "add": "add images",
    "remove": "remove images or an identity",
    "info": "what an index holds, and whether a rebuild helps",
    "rebuild": "drop removed vectors, and make the HNSW graph anew",
}
"""By name, what it does; its `run(arguments)` is in `commands/index_NAME.py`."""
USAGE = f"""example:
  dcal index build birds.index identities/ --model runs/RUN

usage: dcal index COMMAND …   (dcal index COMMAND --help says more)

An index holds the features of images of known individuals, for dcal search and dcal identify.

{chr(10).join(f"  {name:12}{summary}" for name, summary in SUBCOMMANDS.items())}"""


def run(arguments: list[str]) -> int:
    """Runs a subcommand."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    command, *rest = arguments
    if command not in SUBCOMMANDS:
        raise InputError(f"unknown command 'index {escape(command):.60}': there is {', '.join(SUBCOMMANDS)}")
    return import_module(f"dual_cross_attention.commands.index_{command}").run(rest) or 0
