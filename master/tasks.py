"""Tasks: updates from slaves to frameworks, acknowledgements back, kills, and messages between them."""

import msgspec

from master.cluster import Cluster
from master.reconciliation import Reconciliation
from master.state import TASK_CHANGES, FrameworkEntry, Session, SlaveEntry, TaskEntry
from meseta.ids import FrameworkId, SlaveId
from meseta.log import DEBUG, INFO
from meseta.messages import (
    AcknowledgeStatus,
    ExecutorLost,
    ExecutorToFramework,
    FrameworkToExecutor,
    KillTask,
    ShutdownExecutor,
    StatusUpdate,
)
from meseta.model import TaskState, TaskStatus


class Tasks:
    """What slaves and frameworks say about tasks."""

    def __init__(self, cluster: Cluster, reconciliation: Reconciliation) -> None:
        self._cluster = cluster
        self._reconciliation = reconciliation

    # --- From slaves ------------------------------------------------------------------------------

    def status_update(self, session: Session, message: StatusUpdate) -> None:
        """Take an update, account for it and hand it on."""
        slave = session.slave
        assert slave is not None, "only registered slaves are heard"
        status, framework_id = message.status, message.framework_id
        if framework_id is None:
            self._cluster.refuse(session, "invalid", "framework_id: an update must name its framework")
            return
        if status.slave_id not in (None, slave.slave_id):
            text = f"status.slave_id: {status.slave_id} is not who sends this, {slave.slave_id}"
            self._cluster.refuse(session, "invalid", text)
            return
        task = slave.tasks.get((framework_id, status.task_id))
        if task is None:
            self._update_of_unknown(slave, framework_id, status)
            return
        self._cluster.touch_task(task)
        latest = message.latest_state or status.state
        if latest is not task.state and latest in TASK_CHANGES[task.state] and latest is not TaskState.UNREACHABLE:
            self._cluster.change_task(task, latest)
        if status.container_id is not None:
            task.container_id = status.container_id
        if task.is_disowned:
            self._end_disowned(task, status)
        elif status.uuid is None:
            self._told_once(task, status)
        elif status.uuid == task.acked:
            self._cluster.acknowledge(slave, framework_id, status)  # The acknowledgement was lost on the way.
        elif status.state.is_terminal or task.head is None or not task.head.state.is_terminal:
            # Else it is late: its stream has come to its end already.
            task.head = status
            framework = task.framework
            if framework.session is not None:
                task.status = status
                self._cluster.send(framework.session, StatusUpdate(status=status, framework_id=framework_id))

    def _told_once(self, task: TaskEntry, status: TaskStatus) -> None:
        """Hand on an update that nobody will acknowledge; it may be the end."""
        framework = task.framework
        if task.head is not None and task.head.state.is_terminal:
            return
        task.status = status
        if framework.session is not None:
            self._cluster.send(framework.session, StatusUpdate(status=status, framework_id=framework.framework_id))
        if task.state.is_terminal and status.state.is_terminal:
            self._cluster.complete_task(task)

    def _end_disowned(self, task: TaskEntry, status: TaskStatus) -> None:
        cluster = self._cluster
        cluster.acknowledge(task.slave, task.framework.framework_id, status)
        if status.state.is_terminal:
            if task.framework.is_over:
                task.status = status
                task.framework.completed[task.task_id] = task.view()
            cluster.free_task(task)
            cluster.forget_task(task)

    def _update_of_unknown(self, slave: SlaveEntry, framework_id: FrameworkId, status: TaskStatus) -> None:
        """Take an update of a task that this slave should not have."""
        cluster = self._cluster
        framework = cluster.frameworks.get(framework_id)
        if framework is None or framework.is_over or status.task_id in framework.completed:
            cluster.acknowledge(slave, framework_id, status)
        elif status.task_id not in framework.tasks and framework.session is not None:
            cluster.send(framework.session, StatusUpdate(status=status, framework_id=framework_id))

    def executor_lost(self, session: Session, message: ExecutorLost) -> None:
        """An executor has ended: its resources are free, its framework is told."""
        slave = session.slave
        assert slave is not None, "only registered slaves are heard"
        framework = self._framework_of(message.framework_id)
        if framework is None:
            return
        executor = slave.executors.get((framework.framework_id, message.executor_id))
        if executor is not None:
            self._cluster.remove_executor(executor)
            self._cluster.log(
                INFO,
                "executor lost",
                executor_id=message.executor_id,
                framework_id=framework.framework_id,
                slave_id=slave.slave_id,
                exit_status=message.exit_status,
            )
        if framework.session is not None:
            lost = msgspec.structs.replace(message, slave_id=slave.slave_id)
            self._cluster.send(framework.session, lost)

    def to_framework(self, session: Session, message: ExecutorToFramework) -> None:
        """Hand on an executor's message, if its scheduler is there."""
        slave = session.slave
        assert slave is not None, "only registered slaves are heard"
        framework = self._framework_of(message.framework_id)
        if framework is not None and framework.session is not None:
            self._cluster.send(framework.session, msgspec.structs.replace(message, slave_id=slave.slave_id))

    # --- From frameworks --------------------------------------------------------------------------

    def acknowledge(self, session: Session, message: AcknowledgeStatus) -> None:
        """Hand on an acknowledgement; the acknowledged end of a task is its last."""
        framework = session.framework
        assert framework is not None, "only registered frameworks are heard"
        task = framework.tasks.get(message.task_id)
        slave = task.slave if task is not None else self._cluster.slaves.get(message.slave_id or SlaveId(""))
        if slave is not None and slave.session is not None:
            answer = AcknowledgeStatus(
                task_id=message.task_id,
                uuid=message.uuid,
                slave_id=slave.slave_id,
                framework_id=framework.framework_id,
            )
            self._cluster.send(slave.session, answer)
        if task is None:
            return
        head = task.head
        if head is not None and head.uuid == message.uuid:
            task.head = None
            task.acked = message.uuid
            if head.state.is_terminal:
                self._cluster.complete_task(task)

    def kill(self, session: Session, message: KillTask) -> None:
        """Have a task killed, now or when its slave is back."""
        framework = session.framework
        assert framework is not None, "only registered frameworks are heard"
        task = framework.tasks.get(message.task_id)
        if task is None:
            self._reconciliation.kill_unknown(framework, message)
        else:
            self._cluster.kill(task, message.grace_period_s)
            if task.slave.session is None:
                self._cluster.log(DEBUG, "kill waits for slave", task_id=task.task_id, slave_id=task.slave.slave_id)

    def to_executor(self, session: Session, message: FrameworkToExecutor) -> None:
        """Hand on a framework's message, if the slave is there."""
        framework = session.framework
        assert framework is not None, "only registered frameworks are heard"
        slave = self._cluster.slaves.get(message.slave_id)
        if slave is not None and slave.session is not None:
            self._cluster.send(slave.session, msgspec.structs.replace(message, framework_id=framework.framework_id))

    def shutdown_executor(self, session: Session, message: ShutdownExecutor) -> None:
        """Have an executor end."""
        framework = session.framework
        assert framework is not None, "only registered frameworks are heard"
        for (slave_id, executor_id), executor in list(framework.executors.items()):
            is_meant = executor_id == message.executor_id and message.slave_id in (None, slave_id)
            if is_meant and executor.slave.session is not None:
                order = msgspec.structs.replace(message, slave_id=slave_id, framework_id=framework.framework_id)
                self._cluster.send(executor.slave.session, order)

    def _framework_of(self, framework_id: FrameworkId | None) -> FrameworkEntry | None:
        return None if framework_id is None else self._cluster.frameworks.get(framework_id)
