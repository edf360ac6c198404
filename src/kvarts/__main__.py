"""``python -m kvarts`` is the same as ``kvarts``."""

from kvarts.cli import main

raise SystemExit(main())
