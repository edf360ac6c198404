"""Kvarts: a compact Russian speech recogniser, QuartzNet5x5-CTC. Importing this package imports nothing else.

`Recognizer`, `Result` and `Word` are fetched from `kvarts.recogniser` when they are first named.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Recognizer", "Result", "Word", "__version__"]

if TYPE_CHECKING:
    from kvarts.recogniser import Recognizer, Result, Word
else:  # a type checker that saw this would take any name for one of this module's

    def __getattr__(name: str) -> type:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from kvarts import recogniser

        return getattr(recogniser, name)
