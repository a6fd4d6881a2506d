"""How the base in `assets/demo` was made: python -m scripts.demo_base --help."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "demo"
