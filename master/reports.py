"""What a returning slave reports, compared with what this master knows and frameworks were told.

The rule behind all cases: a framework hears one end of each task. A task whose framework was told of
its end, or is over, is disowned: killed, accounted for until it is dead, and not mentioned again.
"""

from master.cluster import Cluster
from master.registry import framework_record
from master.state import (
    TASK_CHANGES,
    ExecutorEntry,
    ExecutorKey,
    FrameworkEntry,
    FrameworkState,
    SlaveEntry,
    TaskEntry,
    TaskKey,
)
from meseta.ids import FrameworkId, Principal, SlaveId
from meseta.log import INFO
from meseta.messages import ReregisterSlave, ShutdownFramework, UpdateFramework
from meseta.model import Capability, FrameworkInfo, Reason, RunningExecutor, Task, TaskState
from meseta.resources import sum_resources

# What a master says of tasks that it does not hear of.
_NOT_A_SLAVES = frozenset({TaskState.UNREACHABLE, TaskState.UNKNOWN})


class Reports:
    """Merges reports of slaves into the cluster's state."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def fault(self, message: ReregisterSlave) -> str | None:
        """Return what contradicts itself in a report, None if it can be merged."""
        named = {info.id for info in message.frameworks} | self._cluster.frameworks.keys()
        for framework_id in [task.framework_id for task in message.tasks] + [
            executor.framework_id for executor in message.executors
        ]:
            if framework_id not in named:
                return f"frameworks: {framework_id} has a task or an executor here, but no FrameworkInfo; add it"
        slave = self._cluster.slaves.get(message.slave_info.id or SlaveId(""))
        for task in message.tasks:
            if task.state in _NOT_A_SLAVES:
                return f"tasks: {task.task_id} is {task.state}, which a slave cannot say of a task of its own"
            known = None if slave is None else slave.tasks.get(_key(task))
            if known is not None and not task.state.is_terminal and known.resources != task.resources:
                return f"tasks: {task.task_id} holds {task.resources}; it was launched with {known.resources}"
        if len({_key(task) for task in message.tasks}) != len(message.tasks):
            return "tasks: a task is listed twice; list each once"
        if len({_executor_key(executor) for executor in message.executors}) != len(message.executors):
            return "executors: an executor is listed twice; list each once"
        try:
            sum_resources(
                [task.resources for task in message.tasks if not task.state.is_terminal]
                + [executor.executor.resources for executor in message.executors]
            )
        except ValueError as error:
            return f"tasks: two of them hold the same resources: {error}"
        return None

    def lost_tasks(self, message: ReregisterSlave) -> list[TaskKey]:
        """Return the tasks of an unreachable slave that their frameworks took for lost."""
        infos = {info.id: info for info in message.frameworks}
        keys = []
        for task in message.tasks:
            framework = self._cluster.frameworks.get(task.framework_id)
            info = framework.info if framework is not None else infos[task.framework_id]
            if Capability.PARTITION_AWARE not in info.capabilities:
                keys.append(_key(task))
        return keys

    def merge(self, slave: SlaveEntry, message: ReregisterSlave, *, was_unreachable: bool) -> None:
        """Make the slave's tasks and executors those that it reports, and tell frameworks what that means.

        The slave is ACTIVE, known to the allocator, and nothing of it is offered.
        """
        for info in message.frameworks:
            self._learn(slave, info)
        reported = {_key(task): task for task in message.tasks}
        executors = {_executor_key(executor): executor for executor in message.executors}
        for key, task in list(slave.tasks.items()):
            if key not in reported:
                self._missing(task)
        # What has ended gives back first what another may hold by now.
        self._remove_executors(slave, executors)
        added = [report for key, report in reported.items() if key not in slave.tasks]
        for key, task in list(slave.tasks.items()):
            self._update(task, reported[key])
        self._add_executors(slave, executors)
        for report in added:
            self._add(slave, report, was_unreachable=was_unreachable)
        over = {key[0]: None for key in [*reported, *executors] if self._cluster.frameworks[key[0]].is_over}
        assert slave.session is not None, "a slave that registered has a session"
        for framework_id in over:
            self._cluster.send(slave.session, ShutdownFramework(framework_id=framework_id))
        for info in message.frameworks:
            framework = self._cluster.frameworks.get(info.id or FrameworkId(""))
            if framework is not None:
                self._cluster.release_if_over(framework)

    def lose(self, task: TaskEntry) -> None:
        """Tell a task's framework that its slave is given up; its resources are gone with the slave."""
        self._cluster.touch_task(task)
        cluster, framework = self._cluster, task.framework
        if task.is_disowned:
            cluster.forget_task(task)
            return
        told = task.head or task.status
        if told is not None and told.state.is_terminal:
            return  # The framework has its end, and need only acknowledge it.
        slave_id = task.slave.slave_id
        text = f"slave {slave_id} is unreachable"
        state = TaskState.UNREACHABLE if framework.is_partition_aware else TaskState.LOST
        if not task.state.is_terminal:
            if state is TaskState.UNREACHABLE:
                cluster.mark_unreachable(task)
            else:
                task.change(state)
        task.head = None
        task.status = cluster.tell(
            framework, task.task_id, state, reason=Reason.SLAVE_REMOVED, message=text, slave_id=slave_id
        )
        if state is TaskState.LOST:
            cluster.complete_task(task)

    # --- Private ----------------------------------------------------------------------------------

    def _learn(self, slave: SlaveEntry, info: FrameworkInfo) -> None:
        cluster = self._cluster
        if info.id is None:
            return
        framework = cluster.frameworks.get(info.id)
        if framework is not None:
            if framework.info != info and not framework.is_over and slave.session is not None:
                cluster.send(slave.session, UpdateFramework(framework_info=framework.info))
            return
        is_barred = info.id in cluster.removed_frameworks
        state = FrameworkState.REMOVED if is_barred else FrameworkState.RECOVERED
        framework = FrameworkEntry(info.id, info, Principal(""), state)
        cluster.frameworks[info.id] = framework
        cluster.touch_framework(framework)
        if not is_barred:
            framework.registered_unix_s = framework.disconnected_unix_s = cluster.unix_s()
            cluster.persist(framework_record(info.id, cluster.known_framework(framework)))
            cluster.timers.set(("failover", info.id), cluster.now + info.failover_timeout_s)
        cluster.log(INFO, "framework recovered", framework_id=info.id, slave_id=slave.slave_id, state=state.value)

    def _remove_executors(self, slave: SlaveEntry, reported: dict[ExecutorKey, RunningExecutor]) -> None:
        for key, executor in list(slave.executors.items()):
            report = reported.get(key)
            if report is None or report.executor.resources != executor.info.resources or report.role != executor.role:
                self._cluster.remove_executor(executor)

    def _add_executors(self, slave: SlaveEntry, reported: dict[ExecutorKey, RunningExecutor]) -> None:
        cluster = self._cluster
        for key, report in reported.items():
            if key not in slave.executors:
                resources = report.executor.resources
                cluster.allocator.charge(key[0], report.role, slave.slave_id, resources, cluster.now)
                cluster.add_executor(ExecutorEntry(report.executor, report.role, cluster.frameworks[key[0]], slave))

    def _missing(self, task: TaskEntry) -> None:
        """A task of ours that the slave does not know."""
        self._cluster.touch_task(task)
        cluster, framework = self._cluster, task.framework
        told = task.status
        if task.is_disowned:
            cluster.free_task(task)
            cluster.forget_task(task)
            return
        if told is None or not told.state.is_terminal:
            has_run = task.state is not TaskState.STAGING
            aware = TaskState.GONE if has_run else TaskState.DROPPED
            state = aware if framework.is_partition_aware else TaskState.LOST
            if not task.state.is_terminal:
                cluster.change_task(task, state)
            slave_id = task.slave.slave_id
            task.status = cluster.tell(
                framework,
                task.task_id,
                state,
                reason=Reason.SLAVE_RESTARTED,
                message=f"slave {slave_id} registered again without this task",
                slave_id=slave_id,
            )
        cluster.complete_task(task)

    def _update(self, task: TaskEntry, report: Task) -> None:
        """A task that both sides know."""
        self._cluster.touch_task(task)
        cluster = self._cluster
        was_unreachable = task.state is TaskState.UNREACHABLE
        if was_unreachable:
            del task.framework.unreachable[task.task_id]
        if report.state in TASK_CHANGES[task.state]:
            cluster.change_task(task, report.state)
        if was_unreachable and not task.state.is_terminal:
            cluster.charge_task(task)
            task.status = cluster.tell(
                task.framework,
                task.task_id,
                task.state,
                reason=Reason.SLAVE_REREGISTERED,
                message=f"slave {task.slave.slave_id} is back",
                slave_id=task.slave.slave_id,
            )
        task.container_id = report.container_id or task.container_id
        if task.kill is not None and task.slave.session is not None and not task.state.is_terminal:
            cluster.send(task.slave.session, task.kill)

    def _add(self, slave: SlaveEntry, report: Task, *, was_unreachable: bool) -> None:
        """A task that only the slave knows."""
        cluster = self._cluster
        key = _key(report)
        framework = cluster.frameworks[report.framework_id]
        done = framework.completed.get(report.task_id)
        if done is not None and report.state.is_terminal and _is_same_end(done, report):
            assert report.status is not None, "the same end has a status"
            cluster.acknowledge(slave, framework.framework_id, report.status)  # It was lost on the way.
            return
        task = _entry_of(report, framework, slave)
        task.is_disowned = (
            framework.is_over
            or done is not None
            or report.task_id in framework.tasks  # The id is in use on another slave by now.
            or (was_unreachable and not framework.is_partition_aware)
            or key in slave.record.disowned
        )
        cluster.add_task(task)
        if not task.state.is_terminal:
            cluster.charge_task(task)
        kill = cluster.kills.pop(key, None)
        if task.is_disowned and not framework.is_over:
            cluster.kill(task)
        elif kill is not None:
            cluster.kill(task, kill.grace_period_s)


def _key(task: Task) -> TaskKey:
    return (task.framework_id, task.task_id)


def _executor_key(executor: RunningExecutor) -> ExecutorKey:
    return (executor.framework_id, executor.executor.executor_id)


def _is_same_end(done: Task, report: Task) -> bool:
    return (
        done.status is not None
        and report.status is not None
        and report.status.uuid is not None
        and done.status.uuid == report.status.uuid
    )


def _entry_of(report: Task, framework: FrameworkEntry, slave: SlaveEntry) -> TaskEntry:
    task = TaskEntry(
        report.task_id,
        framework,
        slave,
        report.resources,
        role=report.role,
        name=report.name,
        user=report.user,
        executor_id=report.executor_id,
    )
    task.state = report.state
    task.container_id = report.container_id
    task.started_unix_s = report.started_unix_s
    return task
