"""Tasks judged one by one, in order, against what is left of the accepted offers, and launched."""

import re

from master.cluster import Cluster
from master.state import ExecutorEntry, FrameworkEntry, SlaveEntry, TaskEntry
from meseta.acls import Action
from meseta.log import WARNING
from meseta.messages import RunTask
from meseta.model import ID_LIMIT, IDENTIFIER_PATTERN, CommandInfo, ExecutorInfo, Reason, TaskInfo, TaskState
from meseta.resources import Resources

USERS_LIMIT = 1000  # Answers of the authorizer that are kept for one framework.

_IS_IDENTIFIER = re.compile(IDENTIFIER_PATTERN).match


class Launching:
    """Judges and launches."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def launch(
        self, framework: FrameworkEntry, slave: SlaveEntry, role: str, offered: Resources, tasks: list[TaskInfo]
    ) -> Resources:
        """Launch each task that is sound and fits; return what is left of `offered`.

        What the launched tasks take stays charged in the allocator, as the offers charged it.
        """
        left = offered
        for task in tasks:
            fault = _fault(task, framework, slave)
            if fault is not None:
                self._refuse(framework, task, Reason.TASK_INVALID, fault)
                continue
            user = _user(task, framework)
            refusal = self._refusal(framework, user)
            if refusal is not None:
                self._refuse(framework, task, Reason.TASK_UNAUTHORIZED, refusal)
                continue
            new_executor = _new_executor(task, framework, slave)
            needed = task.resources if new_executor is None else task.resources + new_executor.resources
            if not needed <= left:
                self._refuse(framework, task, Reason.TASK_INVALID, _shortage(task, left, needed))
                continue
            left = left - needed
            self._start(framework, slave, task, role=role, user=user, new_executor=new_executor)
        return left

    def _start(
        self,
        framework: FrameworkEntry,
        slave: SlaveEntry,
        task: TaskInfo,
        *,
        role: str,
        user: str,
        new_executor: ExecutorInfo | None,
    ) -> None:
        cluster = self._cluster
        if new_executor is not None:
            cluster.add_executor(ExecutorEntry(new_executor, role, framework, slave))
        executor_id = None if task.executor is None else task.executor.executor_id
        entry = TaskEntry(
            task.task_id,
            framework,
            slave,
            task.resources,
            role=role,
            name=task.name,
            user=user,
            executor_id=executor_id,
        )
        entry.is_charged = True
        framework.completed.pop(task.task_id, None)
        cluster.add_task(entry)
        assert slave.session is not None, "offers of a slave without session are rescinded"
        is_new = executor_id is None or new_executor is not None
        run = RunTask(framework_info=framework.info, task=task, role=role, launch_executor=is_new)
        cluster.send(slave.session, run)

    def _refusal(self, framework: FrameworkEntry, user: str) -> str | None:
        """Return why the framework may not run tasks as `user`; asked once for each user."""
        try:
            return framework.refusals_by_user[user]
        except KeyError:
            refusal = self._cluster.authorize(framework.principal, Action.RUN_TASK, user)
            if len(framework.refusals_by_user) >= USERS_LIMIT:
                framework.refusals_by_user.clear()
            framework.refusals_by_user[user] = refusal
            return refusal

    def _refuse(self, framework: FrameworkEntry, task: TaskInfo, reason: Reason, text: str) -> None:
        cluster = self._cluster
        cluster.log(
            WARNING, "task refused", task_id=task.task_id, framework_id=framework.framework_id, reason=reason, why=text
        )
        if task.task_id in framework.tasks:
            # An error about this id would be taken for the end of the task that has it.
            assert framework.session is not None, "it has just called"
            cluster.refuse(framework.session, "invalid", text)
            return
        cluster.end_unlaunched(framework, task, TaskState.ERROR, reason=reason, message=text)


def _fault(task: TaskInfo, framework: FrameworkEntry, slave: SlaveEntry) -> str | None:
    """Return which field is wrong and the remedy, None if the task is sound."""
    task_id = task.task_id
    if not _IS_IDENTIFIER(task_id) or len(task_id) > ID_LIMIT:
        return _bad_identifier("task_id", task_id)
    if task_id in framework.tasks or (framework.framework_id, task_id) in slave.tasks:
        return f"task_id: {task_id} is in use by a task that has not ended; give each task an id of its own"
    if task.slave_id != slave.slave_id:
        return f"slave_id: {task.slave_id} is not the slave of the offers; write {slave.slave_id}"
    if (task.command is None) == (task.executor is None):
        return "command, executor: exactly one of them must be set"
    if not task.resources:
        return "resources: a task must ask for some, as cpus:0.1;mem:32MiB"
    if task.command is not None:
        return _command_fault("command", task.command)
    assert task.executor is not None, "one of them is set"
    executor = task.executor
    if not _IS_IDENTIFIER(executor.executor_id) or len(executor.executor_id) > ID_LIMIT:
        return _bad_identifier("executor.executor_id", executor.executor_id)
    try:
        _ = task.resources + executor.resources
    except ValueError as error:
        return f"executor.resources: {error}; the task and its executor cannot both have them"
    running = slave.executors.get((framework.framework_id, executor.executor_id))
    if running is not None and running.info != executor:
        text = f"executor: {executor.executor_id} runs on {slave.slave_id} with another ExecutorInfo"
        return f"{text}; give this one another executor_id"
    return _command_fault("executor.command", executor.command)


def _command_fault(field: str, command: CommandInfo) -> str | None:
    if (command.value is None) == (not command.arguments):
        return f"{field}: exactly one of value and arguments must be set"
    return None


def _bad_identifier(field: str, text: str) -> str:
    shown = text if len(text) <= 80 else text[:80] + "…"
    return f"{field}: {shown!r} must start with a letter, digit or _ and go on with those or .:@=+-, {ID_LIMIT} at most"


def _user(task: TaskInfo, framework: FrameworkEntry) -> str:
    command = task.command if task.executor is None else task.executor.command
    return (command.user if command is not None else None) or framework.info.user


def _new_executor(task: TaskInfo, framework: FrameworkEntry, slave: SlaveEntry) -> ExecutorInfo | None:
    """Return the executor that the task brings along, None if it needs none or it is there."""
    executor = task.executor
    if executor is None or (framework.framework_id, executor.executor_id) in slave.executors:
        return None
    return executor


def _shortage(task: TaskInfo, left: Resources, needed: Resources) -> str:
    lacking = left.shortfall(needed)
    more = "" if needed == task.resources else " with its executor"
    return f"resources: the task needs {needed}{more}, of which the offers lack {lacking}; ask for less"
