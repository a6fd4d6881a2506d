"""`python -m lora_loom.trainer` is `lora-loom`."""

import sys


def run() -> None:
    """The console entry point. Ctrl-C while the commands are imported ends like everywhere else, without a traceback."""
    try:
        from .cli.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    run()
