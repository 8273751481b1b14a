"""Meseta: a datacenter operating system. What framework developers import.

Names are resolved when they are first used (PEP 562), so that importing one core does not load
ZeroMQ.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meseta.driver_events import ExecutorSlave as ExecutorSlave
    from meseta.errors import InvalidInput as InvalidInput
    from meseta.errors import MesetaError as MesetaError
    from meseta.errors import RequestRefused as RequestRefused
    from meseta.executor import Executor as Executor
    from meseta.executor import ExecutorDriver as ExecutorDriver
    from meseta.executor import run_executor as run_executor
    from meseta.files import SlaveFiles as SlaveFiles
    from meseta.ids import ExecutorId as ExecutorId
    from meseta.ids import FrameworkId as FrameworkId
    from meseta.ids import OfferId as OfferId
    from meseta.ids import Principal as Principal
    from meseta.ids import SlaveId as SlaveId
    from meseta.ids import TaskId as TaskId
    from meseta.model import CommandInfo as CommandInfo
    from meseta.model import ExecutorInfo as ExecutorInfo
    from meseta.model import Filters as Filters
    from meseta.model import FrameworkInfo as FrameworkInfo
    from meseta.model import KillPolicy as KillPolicy
    from meseta.model import Launch as Launch
    from meseta.model import Offer as Offer
    from meseta.model import TaskInfo as TaskInfo
    from meseta.model import TaskQuery as TaskQuery
    from meseta.model import TaskState as TaskState
    from meseta.model import TaskStatus as TaskStatus
    from meseta.resources import Resources as Resources
    from meseta.resources import parse_resources as parse_resources
    from meseta.scheduler import MesetaSchedulerDriver as MesetaSchedulerDriver
    from meseta.scheduler import Scheduler as Scheduler
    from meseta.scheduler import SchedulerDriver as SchedulerDriver
    from meseta.scheduler import Timer as Timer
    from meseta.scheduler import run as run
    from meseta.service import Service as Service
    from meseta.service_client import ServiceClient as ServiceClient

__version__ = "0.1.0"

_HOMES = {
    "CommandInfo": "meseta.model",
    "Executor": "meseta.executor",
    "ExecutorDriver": "meseta.executor",
    "ExecutorId": "meseta.ids",
    "ExecutorInfo": "meseta.model",
    "ExecutorSlave": "meseta.driver_events",
    "Filters": "meseta.model",
    "FrameworkId": "meseta.ids",
    "FrameworkInfo": "meseta.model",
    "InvalidInput": "meseta.errors",
    "KillPolicy": "meseta.model",
    "Launch": "meseta.model",
    "MesetaError": "meseta.errors",
    "MesetaSchedulerDriver": "meseta.scheduler",
    "Offer": "meseta.model",
    "OfferId": "meseta.ids",
    "Principal": "meseta.ids",
    "RequestRefused": "meseta.errors",
    "Resources": "meseta.resources",
    "Scheduler": "meseta.scheduler",
    "SchedulerDriver": "meseta.scheduler",
    "Service": "meseta.service",
    "ServiceClient": "meseta.service_client",
    "SlaveFiles": "meseta.files",
    "SlaveId": "meseta.ids",
    "TaskId": "meseta.ids",
    "TaskInfo": "meseta.model",
    "TaskQuery": "meseta.model",
    "TaskState": "meseta.model",
    "TaskStatus": "meseta.model",
    "Timer": "meseta.scheduler",
    "parse_resources": "meseta.resources",
    "run": "meseta.scheduler",
    "run_executor": "meseta.executor",
}

__all__ = [
    "CommandInfo",
    "Executor",
    "ExecutorDriver",
    "ExecutorId",
    "ExecutorInfo",
    "ExecutorSlave",
    "Filters",
    "FrameworkId",
    "FrameworkInfo",
    "InvalidInput",
    "KillPolicy",
    "Launch",
    "MesetaError",
    "MesetaSchedulerDriver",
    "Offer",
    "OfferId",
    "Principal",
    "RequestRefused",
    "Resources",
    "Scheduler",
    "SchedulerDriver",
    "Service",
    "ServiceClient",
    "SlaveFiles",
    "SlaveId",
    "TaskId",
    "TaskInfo",
    "TaskQuery",
    "TaskState",
    "TaskStatus",
    "Timer",
    "parse_resources",
    "run",
    "run_executor",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'meseta' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
