"""Meseta: a datacenter operating system. What framework developers import.

Names are resolved when they are first used (PEP 562), so that importing one core does not load
ZeroMQ.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meseta.model import FrameworkInfo as FrameworkInfo
    from meseta.model import Offer as Offer
    from meseta.model import TaskInfo as TaskInfo
    from meseta.model import TaskState as TaskState
    from meseta.model import TaskStatus as TaskStatus
    from meseta.resources import Resources as Resources

__version__ = "0.1.0"

_HOMES = {
    "FrameworkInfo": "meseta.model",
    "Offer": "meseta.model",
    "TaskInfo": "meseta.model",
    "TaskState": "meseta.model",
    "TaskStatus": "meseta.model",
    "Resources": "meseta.resources",
}

__all__ = ["FrameworkInfo", "Offer", "Resources", "TaskInfo", "TaskState", "TaskStatus"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'meseta' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
