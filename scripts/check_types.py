"""mypy over the package, whatever the clone's folder is called: `python -m scripts.check_types`.

The root folder is the package `lora_loom`, so mypy needs a folder of that name: a link to it, in a folder of its own. On
Windows that is a junction, which needs no administrator.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".mypy_cache" / "package"


def link(target: Path, path: Path) -> None:
    """A link to a folder. Raises OSError."""
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(target), str(path))
    else:
        path.symlink_to(target, target_is_directory=True)


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    package = FOLDER / "lora_loom"
    if not package.exists():
        link(ROOT, package)
    environment = {**os.environ, "MYPYPATH": str(FOLDER)}
    return subprocess.run(
        [sys.executable, "-m", "mypy", *sys.argv[1:]], cwd=ROOT, env=environment, check=False
    ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
