"""Answers to frameworks that ask what became of their tasks.

Silence is an answer: while the slave that may run a task has not been heard of, nothing is said. The
question is kept, and answered as soon as that slave is back or given up.
"""

from master.cluster import Cluster
from master.state import UNHEARD, FrameworkEntry, Session, SlaveEntry, SlaveState, TaskEntry, TaskKey
from meseta.ids import SlaveId, TaskId
from meseta.messages import KillTask, ReconcileTasks, StatusUpdate
from meseta.model import Reason, TaskState

QUERIES_LIMIT = 10_000  # Kept for each slave, and for tasks of unknown slaves; drivers ask again by themselves.
KILLS_LIMIT = 10_000  # Kills of tasks that are not known, kept for the slave that may have them.


class Reconciliation:
    """Answers, now or later."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._queries: dict[TaskKey, None] = {}  # Of tasks whose slave was not named.

    def reconcile(self, session: Session, message: ReconcileTasks) -> None:
        """Answer for the tasks that are named, or for all."""
        framework = session.framework
        assert framework is not None, "only registered frameworks are heard"
        if message.tasks:
            for query in message.tasks:
                self.answer(framework, query.task_id, query.slave_id)
        else:
            for task in list(framework.tasks.values()):
                self._answer_known(framework, task)

    def kill_unknown(self, framework: FrameworkEntry, message: KillTask) -> None:
        """Take a kill of a task that is not known: it is kept, and its framework told what is known."""
        cluster = self._cluster
        if self._may_appear(message.slave_id):
            cluster.kills[(framework.framework_id, message.task_id)] = message
            if len(cluster.kills) > KILLS_LIMIT:
                del cluster.kills[next(iter(cluster.kills))]
        self.answer(framework, message.task_id, message.slave_id)

    def answer(self, framework: FrameworkEntry, task_id: TaskId, slave_id: SlaveId | None) -> None:
        """Tell a framework the state of one task, unless it must wait."""
        task = framework.tasks.get(task_id)
        if task is not None:
            self._answer_known(framework, task)
            return
        done = framework.completed.get(task_id)
        if done is not None and done.status is not None:
            self._tell(framework, task_id, done.status.state, done.slave_id, f"it has ended: {done.status.message}")
            return
        slave = None if slave_id is None else self._cluster.slaves.get(slave_id)
        key = (framework.framework_id, task_id)
        if slave is not None and slave.state in UNHEARD:
            if len(slave.queries) < QUERIES_LIMIT:
                slave.queries[key] = None
            return
        if slave is None and self._is_any_unheard():
            if len(self._queries) < QUERIES_LIMIT:
                self._queries[key] = None
            return
        state, text = _unknown_state(slave)
        if not framework.is_partition_aware:
            state = TaskState.LOST
        self._tell(framework, task_id, state, slave_id, text)

    def slave_settled(self, slave: SlaveEntry) -> None:
        """Answer what waited for a slave, which is back or given up."""
        kills = self._cluster.kills
        if slave.session is not None:
            for key in [key for key, kill in kills.items() if kill.slave_id == slave.slave_id]:
                del kills[key]  # It is back without the task.
        queries, slave.queries = slave.queries, {}
        for framework_id, task_id in queries:
            framework = self._cluster.frameworks.get(framework_id)
            if framework is not None and framework.session is not None:
                self.answer(framework, task_id, slave.slave_id)
        if self._queries and not self._is_any_unheard():
            general, self._queries = self._queries, {}
            for framework_id, task_id in general:
                framework = self._cluster.frameworks.get(framework_id)
                if framework is not None and framework.session is not None:
                    self.answer(framework, task_id, None)

    def _answer_known(self, framework: FrameworkEntry, task: TaskEntry) -> None:
        if task.head is not None:
            # Not acknowledged yet: told again as it is, so that it is known for the same update.
            task.status = task.head
            self._cluster.touch_task(task)
            if framework.session is not None:
                update = StatusUpdate(status=task.head, framework_id=framework.framework_id)
                self._cluster.send(framework.session, update)
        elif not task.state.is_terminal:
            self._tell(framework, task.task_id, task.state, task.slave.slave_id, "")
        # Else its terminal update is on its way, and may be told only once.

    def _tell(
        self, framework: FrameworkEntry, task_id: TaskId, state: TaskState, slave_id: SlaveId | None, text: str
    ) -> None:
        self._cluster.tell(framework, task_id, state, reason=Reason.RECONCILIATION, message=text, slave_id=slave_id)

    def _is_any_unheard(self) -> bool:
        return any(slave.state in UNHEARD for slave in self._cluster.slaves.values())

    def _may_appear(self, slave_id: SlaveId | None) -> bool:
        if slave_id is None:
            return self._is_any_unheard()
        slave = self._cluster.slaves.get(slave_id)
        return slave is not None and (slave.state in UNHEARD or slave.state is SlaveState.UNREACHABLE)


def _unknown_state(slave: SlaveEntry | None) -> tuple[TaskState, str]:
    """Return what is said of a task that nobody has, and why."""
    if slave is None:
        return TaskState.UNKNOWN, "no slave has such a task"
    if slave.state is SlaveState.UNREACHABLE:
        return TaskState.UNREACHABLE, f"slave {slave.slave_id} is unreachable"
    return TaskState.GONE, f"slave {slave.slave_id} has no such task"
