"""How the base in `assets/demo` was made: python -m scripts.demo_base --help."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "demo"
TWO_BLOCKS = ASSETS.parents[1] / "bench" / "two_blocks"
"""The base that was shipped before: it keeps the figures of bench/ comparable, and the present one grew out of it."""
