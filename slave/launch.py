"""What is started for a task or an executor: whether it may be, where, as whom, with which environment. Pure."""

import re

from meseta.ids import ContainerId, FrameworkId, SlaveId
from meseta.messages import RunTask
from meseta.model import ID_LIMIT, IDENTIFIER_PATTERN, CommandInfo, ExecutorInfo, FrameworkInfo, TaskInfo
from meseta.resources import MILLI, Resources
from slave.events import SlaveConfig
from slave.supervisor_messages import Limits, StartContainer

_IDENTIFIER = re.compile(IDENTIFIER_PATTERN)


def task_fault(message: RunTask) -> str | None:
    """Return what is wrong with a task that no slave could run, None if nothing is."""
    task = message.task
    if (task.command is None) == (task.executor is None):
        return "a task has either command or executor; give exactly one of them"
    names = [("task_id", task.task_id), ("framework_id", message.framework_info.id or "")]
    if task.executor is not None:
        names.append(("executor_id", task.executor.executor_id))
    for field, name in names:
        # They become folders on this machine: the master has checked them, but it is not our own.
        if len(name) > ID_LIMIT or _IDENTIFIER.fullmatch(name) is None:
            return f"{field} {name[:50]!r} is no identifier; use letters, digits and _ . : @ = + - (no . first)"
    command = task.command if task.command is not None else task.executor.command if task.executor else None
    if command is None or (command.value is None) == (not command.arguments):
        return "a command has either value or arguments; give exactly one of them"
    return None


def user_of(command: CommandInfo, framework_info: FrameworkInfo) -> str:
    """Return who the process runs as."""
    return command.user or framework_info.user


def user_fault(config: SlaveConfig, user: str) -> str | None:
    """Return why this slave cannot run anything as `user`, None if it can."""
    if config.can_switch_user or user == config.user:
        return None
    return f"this slave runs as {config.user}, not as root, and cannot run tasks as {user}; use user {config.user}"


def sandbox_folder(work_dir: str, slave_id: SlaveId, framework_id: FrameworkId, owner: str, container_id: str) -> str:
    """Return the sandbox of one run; `owner` is `tasks/TASK` or `executors/EXECUTOR`.

    One folder in all, named for both ids: each more would cost every task an inode.
    """
    longest = len(owner.partition("/")[0]) + 1 + ID_LIMIT - 1 - len(container_id)
    return f"{work_dir}/slaves/{slave_id}/frameworks/{framework_id}/{owner[:longest]}.{container_id}"


def limits_of(held: tuple[Resources, ...], pids_limit: int) -> Limits:
    """Return what the kernel shall enforce on the sum of `held`; what is not asked for is not limited."""
    cpu_milli = sum(one.get("cpus") for one in held) or None
    mem_milli = sum(one.get("mem") for one in held)
    mem_bytes = mem_milli * (1 << 20) // MILLI if mem_milli else None
    return Limits(cpu_milli=cpu_milli, mem_bytes=mem_bytes, pids=pids_limit)


def start_of_task(
    config: SlaveConfig,
    slave_id: SlaveId,
    framework_info: FrameworkInfo,
    task: TaskInfo,
    container_id: ContainerId,
) -> StartContainer:
    """Return the start of a command task."""
    assert task.command is not None, f"task {task.task_id} has no command"
    framework_id = framework_info.id or FrameworkId("")
    environment = {
        **_environment(config, slave_id, framework_id, container_id, task.command),
        "MESETA_SANDBOX": sandbox_folder(
            config.work_dir, slave_id, framework_id, f"tasks/{task.task_id}", container_id
        ),
        "MESETA_TASK_ID": task.task_id,
    }
    return _start(config, framework_info, task.command, environment, (task.resources,))


def start_of_executor(
    config: SlaveConfig,
    slave_id: SlaveId,
    framework_info: FrameworkInfo,
    executor: ExecutorInfo,
    container_id: ContainerId,
    *,
    token: str,
    held: tuple[Resources, ...],
) -> StartContainer:
    """Return the start of an executor that holds the sum of `held`, its own resources and its tasks'."""
    framework_id = framework_info.id or FrameworkId("")
    environment = {
        **_environment(config, slave_id, framework_id, container_id, executor.command),
        "MESETA_SANDBOX": sandbox_folder(
            config.work_dir, slave_id, framework_id, f"executors/{executor.executor_id}", container_id
        ),
        "MESETA_EXECUTOR_ID": executor.executor_id,
        "MESETA_EXECUTOR_ENDPOINT": config.executor_endpoint,
        "MESETA_EXECUTOR_TOKEN": token,
        "MESETA_RECOVERY_TIMEOUT_S": f"{config.executor_recovery_timeout_s:g}",
    }
    return _start(config, framework_info, executor.command, environment, held)


def _environment(
    config: SlaveConfig,
    slave_id: SlaveId,
    framework_id: FrameworkId,
    container_id: ContainerId,
    command: CommandInfo,
) -> dict[str, str]:
    """Return what all get: nothing of the daemon's own, and nobody overrides what is ours."""
    return {
        "PATH": config.task_path,
        **command.environment,
        "MESETA_FRAMEWORK_ID": framework_id,
        "MESETA_SLAVE_ID": slave_id,
        "MESETA_CONTAINER_ID": container_id,
        "MESETA_PYTHON": config.python,
    }


def _start(
    config: SlaveConfig,
    framework_info: FrameworkInfo,
    command: CommandInfo,
    environment: dict[str, str],
    held: tuple[Resources, ...],
) -> StartContainer:
    user = user_of(command, framework_info)
    return StartContainer(
        container_id=ContainerId(environment["MESETA_CONTAINER_ID"]),
        arguments=("/bin/sh", "-c", command.value) if command.value is not None else command.arguments,
        environment=environment,
        sandbox=environment["MESETA_SANDBOX"],
        user=None if user == config.user else user,
        limits=limits_of(held, config.pids_limit),
    )
