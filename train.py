"""`python train.py …` is `dcal train …`; without arguments it trains the built-in toy task."""

import sys

from dual_cross_attention.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
