"""What operators ask and order, and the event stream of the master; `meseta/messages.py` is the door."""

from meseta.ids import FrameworkId, SlaveId, TaskId
from meseta.messages_session import PAGE_LIMIT, Limit, RequestId, Sequence, WireMessage
from meseta.model import FrameworkView, Name, Node, Seconds, Task
from meseta.resources import Resources

# --- Questions, orders and answers ---------------------------------------------------------------


class GetMaster(WireMessage, frozen=True, kw_only=True):
    """Ask for the master's own state."""

    request_id: RequestId


class MasterStatus(WireMessage, frozen=True, kw_only=True):
    """Answer to `GetMaster`. Resource sums are over registered slaves."""

    request_id: RequestId
    epoch: int
    version: str
    uptime_s: Seconds
    slaves_active: int
    slaves_unreachable: int
    frameworks_active: int
    frameworks_disconnected: int
    tasks_active: int
    offers_outstanding: int
    resources_total: Resources
    resources_used: Resources
    resources_offered: Resources
    events_endpoint: Name = ""  # Where the event stream is; an address of * means the master's own.


class GetNodes(WireMessage, frozen=True, kw_only=True):
    """One page of slaves, in the order of their ids, after `after`."""

    request_id: RequestId
    after: str = ""
    limit: Limit = PAGE_LIMIT


class Nodes(WireMessage, frozen=True, kw_only=True):
    """Answer to `GetNodes`; `next` is the `after` of the next page, None on the last."""

    request_id: RequestId
    nodes: tuple[Node, ...]
    next: str | None = None
    sequence: Sequence = 0  # At which the page was taken; see `StreamPosition`.


class GetFrameworks(WireMessage, frozen=True, kw_only=True):
    """One page of frameworks, in the order of their ids."""

    request_id: RequestId
    after: str = ""
    limit: Limit = PAGE_LIMIT
    name: str | None = None  # Only frameworks of this name.
    include_completed: bool = False


class Frameworks(WireMessage, frozen=True, kw_only=True):
    """Answer to `GetFrameworks`."""

    request_id: RequestId
    frameworks: tuple[FrameworkView, ...]
    next: str | None = None
    sequence: Sequence = 0  # At which the page was taken; see `StreamPosition`.


class GetTasks(WireMessage, frozen=True, kw_only=True):
    """One page of tasks in the order of `framework id/task id`, active ones and, if asked, completed ones."""

    request_id: RequestId
    after: str = ""
    limit: Limit = PAGE_LIMIT
    framework_id: FrameworkId | None = None
    slave_id: SlaveId | None = None
    include_completed: bool = False


class Tasks(WireMessage, frozen=True, kw_only=True):
    """Answer to `GetTasks`. A completed task's `status` says how it ended."""

    request_id: RequestId
    tasks: tuple[Task, ...]
    next: str | None = None
    sequence: Sequence = 0  # At which the page was taken; see `StreamPosition`.


class OperatorKillTask(WireMessage, frozen=True, kw_only=True):
    """Kill a task whoever's it is; its framework hears of it by a status update."""

    request_id: RequestId
    framework_id: FrameworkId
    task_id: TaskId
    grace_period_s: Seconds | None = None


class Done(WireMessage, frozen=True, kw_only=True):
    """The request was carried out (a kill: was sent to the slave)."""

    request_id: RequestId


# --- The event stream ----------------------------------------------------------------------------


class NodeChanged(WireMessage, frozen=True, kw_only=True):
    """Published: a slave is new or has changed; `node` is all of it."""

    sequence: Sequence
    node: Node


class NodeRemoved(WireMessage, frozen=True, kw_only=True):
    """Published: a slave was forgotten."""

    sequence: Sequence
    slave_id: SlaveId


class FrameworkChanged(WireMessage, frozen=True, kw_only=True):
    """Published: a framework is new or has changed. `framework.waiting` is never set: ask with `GetFrameworks`."""

    sequence: Sequence
    framework: FrameworkView


class FrameworkRemoved(WireMessage, frozen=True, kw_only=True):
    """Published: a completed framework was forgotten, and its tasks with it, each with a `TaskRemoved`."""

    sequence: Sequence
    framework_id: FrameworkId


class TaskChanged(WireMessage, frozen=True, kw_only=True):
    """Published: a task is new or has changed, or ended."""

    sequence: Sequence
    task: Task


class TaskRemoved(WireMessage, frozen=True, kw_only=True):
    """Published: a completed task was forgotten."""

    sequence: Sequence
    framework_id: FrameworkId
    task_id: TaskId


class StreamPosition(WireMessage, frozen=True, kw_only=True):
    """Published when a follower has come, and every `interval_s`: the sequence of the last event before it."""

    sequence: Sequence
    interval_s: Seconds
