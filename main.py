"""`python main.py` trains; every setting is a Hydra override. See src/kvarts/train.py and src/kvarts/conf."""

import sys

from kvarts.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
