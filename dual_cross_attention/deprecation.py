"""Earlier names of public objects, which still work and warn."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any


def renamed(module: str, name: str, renames: Mapping[str, str]) -> Any:
    """For a module's `__getattr__`: the object that `name` was the earlier name of, with a DeprecationWarning.

    Args:
        module: name of the module.
        name: attribute that the module does not have.
        renames: today's names by earlier ones.

    Raises:
        AttributeError: it is no earlier name.
    """
    if name not in renames:
        raise AttributeError(f"module '{module}' has no attribute '{name}'")
    today = renames[name]
    warnings.warn(f"{module}.{name} is now called {today}", DeprecationWarning, stacklevel=3)
    return getattr(sys.modules[module], today)
