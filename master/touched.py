"""What has changed since the followers of the event stream were last told. Only kept while there are any."""

from master.state import ExecutorEntry, FrameworkEntry, SlaveEntry, TaskEntry, TaskKey
from meseta.ids import FrameworkId, SlaveId


class Touched:
    """Keys in the order in which they were first touched. Each may be gone by now."""

    __slots__ = ("frameworks", "slaves", "tasks")

    def __init__(self) -> None:
        self.tasks: dict[TaskKey, None] = {}
        self.slaves: dict[SlaveId, None] = {}
        self.frameworks: dict[FrameworkId, None] = {}

    def task(self, task: TaskEntry) -> None:
        """Note a task, and the counts of its slave and framework."""
        framework_id, slave_id = task.framework.framework_id, task.slave.slave_id
        self.tasks[(framework_id, task.task_id)] = None
        self.frameworks[framework_id] = None
        self.slaves[slave_id] = None

    def holder(self, slave: SlaveEntry, framework: FrameworkEntry) -> None:
        """Note that a framework has something more or less of a slave."""
        self.slaves[slave.slave_id] = None
        self.frameworks[framework.framework_id] = None

    def executor(self, executor: ExecutorEntry) -> None:
        """Note an executor, which is counted by its slave and framework."""
        self.holder(executor.slave, executor.framework)
