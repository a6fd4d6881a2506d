import importlib
import pkgutil
import sys

import bench

names = sys.argv[1:] or sorted(
    info.name
    for info in pkgutil.iter_modules(bench.__path__)
    if info.name not in ("common", "network_sizes", "__main__")
)
for name in names:
    importlib.import_module(f"bench.{name}").main()
