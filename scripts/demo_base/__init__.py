"""How the base in `assets/demo` was made: python -m scripts.demo_base --help."""
