"""`dcos master` and `dcos slave`: the daemons themselves, in the foreground.

Imported when one of them is called; each attribute loads its daemon only then.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("master", "slave"):
        raise AttributeError(f"module 'cli.daemons' has no attribute {name!r}")
    return import_module(f"{name}.options").command
