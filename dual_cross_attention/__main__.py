"""`python -m dual_cross_attention COMMAND …` is `dcal COMMAND …`."""

import sys

from dual_cross_attention.cli import main

if __name__ == "__main__":
    sys.exit(main())
