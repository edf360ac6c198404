"""The weights that ship with Kvarts, under the name «open»: a model to recognise with, a checkpoint to train from, a
language model. What they are, what they heard and how well they hear: open/README.md beside this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

NAME: Final = "open"
MODEL: Final = Path(__file__).parent / NAME
CHECKPOINT: Final = MODEL / "weights.safetensors"
LANGUAGE_MODEL: Final = MODEL / "lm.arpa.gz"


def model_named(name: str) -> Path:
    """The model or checkpoint of a name on the command line: a path, or «open»; a file of that name is «./open»."""
    return MODEL if name == NAME else Path(name)


def checkpoint_named(name: str | Path) -> Path:
    """Likewise the checkpoint to start a training from."""
    return CHECKPOINT if name == NAME else Path(name)


def language_model_named(name: str) -> Path:
    """Likewise the language model."""
    return LANGUAGE_MODEL if name == NAME else Path(name)
