"""Kvarts: a compact Russian speech recogniser, QuartzNet5x5-CTC. Importing this package never imports PyTorch."""

__version__ = "0.1.0"
