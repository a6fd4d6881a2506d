import importlib
import pkgutil
import sys

import bench

NOT_MEASUREMENTS = ("bases", "common", "peers", "real", "network_sizes", "__main__")
given = sys.argv[1:]
options = next((i for i, word in enumerate(given) if word.startswith("-")), len(given))
"""From the first option on, arguments are the benchmark's own."""
names = given[:options] or sorted(info.name for info in pkgutil.iter_modules(bench.__path__) if info.name not in NOT_MEASUREMENTS)  # fmt: skip
for name in names:
    importlib.import_module(f"bench.{name}").main()
