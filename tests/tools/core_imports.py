"""Import each core in a fresh interpreter and look for modules that a core must not load.

The linter of imports sees only what our own files say; this sees what really gets loaded.
"""

import subprocess
import sys

CORES = (
    "meseta.model",
    "meseta.messages",
    "meseta.resources",
    "meseta.scheduler_core",
    "meseta.follower_core",
    "meseta.executor_core",
    "master.core",
    "master.allocator",
    "meseta.acls",
    "master.authorizer",
    "master.registry",
    "slave.core",
    "slave.supervisor_core",
    "slave.status_updates",
    "frameworks.batch.core",
)
FORBIDDEN = frozenset(
    {
        "asyncio",
        "click",
        "kazoo",
        "logging",
        "msgpack",
        "multiprocessing",
        "pathlib",
        "psutil",
        "rich",
        "secrets",
        "selectors",
        "signal",
        "socket",
        "sqlite3",
        "subprocess",
        "threading",
        "uuid",
        "zmq",
    }
)
# The interpreter's own start and msgspec load some of these; they are measured once and subtracted.
BASELINE = "import msgspec, random, heapq, collections, functools, typing, enum, decimal, bisect, fractions"

PROBE = """
import sys
{baseline}
before = set(sys.modules)
import {core}
loaded = set(sys.modules) - before
print(" ".join(sorted(name for name in {forbidden!r} if name in loaded)))
"""


def forbidden_modules(core: str) -> list[str]:
    """Return the forbidden modules that importing `core` alone loads."""
    program = PROBE.format(baseline=BASELINE, core=core, forbidden=FORBIDDEN)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.split()


def main() -> int:
    """Print every breach and return 1 if there is one."""
    breaches = {core: found for core in CORES if (found := forbidden_modules(core))}
    for core, found in breaches.items():
        print(
            f"{core} loads {', '.join(found)}: a core decides and does no I/O (docs/architecture.md)", file=sys.stderr
        )
    print(f"{len(CORES)} cores imported in fresh interpreters, {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
