"""
What importing a package costs a process that has imported next to nothing: time, memory, modules.

    python sides/imports.py import 1 package='"guard_agent"'

A script, not a module of `sides`: nothing may be imported before that the package needs as well.
"""

import os
import sys
import time
from importlib import import_module


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - imports nothing
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    packages = sys.argv[3].removeprefix("package=").strip('"').split(",")
    modules, memory = len(sys.modules), resident()
    cpu, wall = time.process_time(), time.perf_counter()
    for package in packages:
        import_module(package)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory, modules = resident() - memory, len(sys.modules) - modules
    import json

    figures = {"wall": wall * 1e3, "cpu": cpu * 1e3, "memory": memory / 1e6, "modules": modules}
    print(json.dumps(figures), flush=True)
    os._exit(0)  # without what the packages do at the end


if __name__ == "__main__":
    main()
