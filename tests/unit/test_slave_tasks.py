"""Command tasks through the slave's core: start, end, kill, refusals."""

import msgspec
import pytest

from meseta.errors import InvalidTransition
from meseta.ids import ContainerId, FrameworkId, SlaveId, TaskId
from meseta.messages import KillTask, ShutdownFramework, StatusUpdate, UpdateFramework
from meseta.model import CommandInfo, KillPolicy, Limitation, Reason, TaskInfo, TaskState
from meseta.resources import Resources, resources
from slave.events import (
    LaunchContainer,
    LaunchFailed,
    Persist,
    SendMaster,
    SendSupervisor,
    SupervisorLost,
    SupervisorSaid,
)
from slave.executors import REMOVAL_GRACE_LIMIT_S
from slave.launch import limits_of, sandbox_folder, user_fault
from slave.records import AcknowledgedRecord, FrameworkRecord, StartedRecord, TaskRecord, UpdateRecord
from slave.state import TASK_CHANGES, SlaveTask
from slave.supervisor_messages import Forget, KillContainer, Limits, Started, StartFailed
from tests.unit.slave_builders import (
    FRAMEWORK,
    SLAVE,
    World,
    command_task,
    config,
    framework,
    ready_world,
    run_task,
)


def kill(task_id: str = "t-1", grace_period_s: float | None = None) -> KillTask:
    return KillTask(task_id=TaskId(task_id), framework_id=FRAMEWORK, grace_period_s=grace_period_s)


def slow_world() -> World:
    """A registered slave whose supervisor's answers wait for `settle`."""
    world = ready_world()
    world.is_slow = True
    return world


def test_task_is_written_before_its_start_is_asked_for() -> None:
    world = slow_world()
    effects = world.master(run_task(command_task()))
    assert [type(effect) for effect in effects] == [Persist, LaunchContainer]
    persist, launch = effects
    assert isinstance(persist, Persist)
    assert isinstance(launch, LaunchContainer)
    record = next(record for record in persist.records if isinstance(record, TaskRecord))
    assert record.task == command_task()
    assert record.supervisor == launch.supervisor
    assert record.container_id == launch.start.container_id


def test_start_has_sandbox_limits_and_an_environment_of_its_own() -> None:
    world = ready_world()
    task = TaskInfo(
        task_id=TaskId("t-1"),
        slave_id=SLAVE,
        resources=resources(cpus=0.5, mem_mib=64),
        command=CommandInfo(
            value="echo hi", environment={"A": "1", "PATH": "/mine", "MESETA_TASK_ID": "forged"}, user="nobody"
        ),
    )
    world.master(run_task(task))
    (start,) = world.supervisor.starts
    container_id = start.container_id
    sandbox = f"/w/slaves/s-1/frameworks/f-1/tasks/t-1.{container_id}"
    assert start.arguments == ("/bin/sh", "-c", "echo hi")
    assert start.sandbox == sandbox
    assert start.user == "nobody"
    assert start.limits == Limits(cpu_milli=500, mem_bytes=64 << 20, pids=4096)
    assert start.environment == {
        "A": "1",
        "PATH": "/mine",
        "MESETA_FRAMEWORK_ID": "f-1",
        "MESETA_TASK_ID": "t-1",
        "MESETA_SLAVE_ID": "s-1",
        "MESETA_SANDBOX": sandbox,
        "MESETA_CONTAINER_ID": container_id,
        "MESETA_PYTHON": "python3",
    }


def test_running_is_written_with_the_process_and_then_sent() -> None:
    world = slow_world()
    world.master(run_task(command_task()))
    effects = world.core.handle(world.waiting.pop(0), world.now)
    persist, send = effects
    assert isinstance(persist, Persist)
    assert [type(record) for record in persist.records] == [StartedRecord, UpdateRecord]
    assert isinstance(send, SendMaster)
    assert isinstance(send.message, StatusUpdate)
    assert send.message.status.state is TaskState.RUNNING
    assert send.message.status.uuid is not None


@pytest.mark.parametrize(
    ("exit_status", "state", "message"),
    [
        (0, TaskState.FINISHED, "exited with status 0"),
        (3, TaskState.FAILED, "exited with status 3"),
        (137, TaskState.FAILED, "killed by SIGKILL"),
        (139, TaskState.FAILED, "killed by SIGSEGV"),
        (192, TaskState.FAILED, "killed by signal 64"),
        (193, TaskState.FAILED, "exited with status 193"),
        (255, TaskState.FAILED, "exited with status 255"),
    ],
)
def test_exit_status_decides_the_end(exit_status: int, state: TaskState, message: str) -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.acknowledge(world.statuses()[0])
    world.exit_task(exit_status)
    (status,) = world.statuses()
    assert (status.state, status.message, status.exit_status) == (state, message, exit_status)


def test_exit_is_forgotten_by_the_supervisor_after_its_update_is_written() -> None:
    world = slow_world()
    world.master(run_task(command_task()))
    world.settle()
    exited = world.supervisor.exit(next(iter(world.supervisor.running)))
    effects = world.core.handle(SupervisorSaid(supervisor="sup-1", report=exited), world.now)
    assert isinstance(effects[0], Persist)
    assert any(isinstance(e, SendSupervisor) and isinstance(e.message, Forget) for e in effects[1:])


def test_out_of_memory_is_told_by_the_kernels_count_with_limit_and_peak() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.acknowledge(world.statuses()[0])
    world.exit_task(137, oom_kills=1, mem_limit_bytes=64 << 20, mem_peak_bytes=64 << 20)
    (status,) = world.statuses()
    assert status.state is TaskState.FAILED
    assert status.reason is Reason.CONTAINER_LIMITATION_MEMORY
    assert status.limitation == Limitation(resource="mem", limit_milli=64000, peak_milli=64000)
    assert "64.0 MiB" in status.message


def test_start_that_fails_is_told_with_its_cause() -> None:
    world = slow_world()
    world.master(run_task(command_task()))
    world.waiting.clear()
    container_id = world.supervisor.starts[0].container_id
    world.supervisor.running.clear()
    world.handle(
        SupervisorSaid(supervisor="sup-1", report=StartFailed(container_id=container_id, message="no such program"))
    )
    (status,) = world.statuses()
    assert (status.state, status.reason) == (TaskState.FAILED, Reason.CONTAINER_LAUNCH_FAILED)
    assert "no such program" in status.message


def test_sandbox_that_cannot_be_made_fails_the_task() -> None:
    world = slow_world()
    world.master(run_task(command_task()))
    world.waiting.clear()
    world.handle(LaunchFailed(container_id=world.supervisor.starts[0].container_id, message="disk full"))
    (status,) = world.statuses()
    assert (status.state, status.reason) == (TaskState.FAILED, Reason.CONTAINER_LAUNCH_FAILED)


def test_task_that_was_accepted_before_there_was_a_supervisor_starts_when_one_is_ready() -> None:
    world = ready_world()
    world.is_slow = True
    del world.supervisors["sup-1"]
    world.handle(SupervisorLost(supervisor="sup-1"))
    world.master(run_task(command_task()))
    assert not world.supervisor.starts
    world.settle()
    assert len(world.supervisor.starts) == 1
    assert [status.state for status in world.statuses()] == [TaskState.RUNNING]


def test_doubled_run_task_starts_once() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.master(run_task(command_task()))
    assert len(world.supervisor.starts) == 1


def test_used_task_id_is_refused() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.exit_task()
    assert world.acknowledge_all() == [TaskState.RUNNING, TaskState.FINISHED]
    world.master(run_task(command_task()))
    (status,) = world.statuses()
    assert (status.state, status.reason, status.uuid) == (TaskState.ERROR, Reason.TASK_INVALID, None)
    assert len(world.supervisor.starts) == 1


def test_kill_sends_grace_period_and_ends_as_killed() -> None:
    world = slow_world()
    world.master(run_task(command_task()))
    world.settle()
    effects = world.master(kill(grace_period_s=7.0))
    container_id = world.supervisor.starts[0].container_id
    message = KillContainer(container_id=container_id, grace_period_s=7.0)
    assert effects == [SendSupervisor(supervisor="sup-1", message=message)]
    world.settle()
    assert world.acknowledge_all() == [TaskState.RUNNING, TaskState.KILLED]


def test_kill_uses_the_tasks_own_grace_period() -> None:
    world = slow_world()
    task = TaskInfo(
        task_id=TaskId("t-1"),
        slave_id=SLAVE,
        command=CommandInfo(value="x"),
        kill_policy=KillPolicy(grace_period_s=42.0),
    )
    world.master(run_task(task))
    world.settle()
    effects = world.master(kill())
    sent = [e.message for e in effects if isinstance(e, SendSupervisor)]
    assert [m.grace_period_s for m in sent if isinstance(m, KillContainer)] == [42.0]


def test_second_kill_only_shortens_the_grace_period() -> None:
    world = slow_world()
    world.master(run_task(command_task()))
    world.settle()
    world.master(kill(grace_period_s=5.0))
    assert world.master(kill(grace_period_s=9.0)) == []
    effects = world.master(kill(grace_period_s=1.0))
    assert [type(effect) for effect in effects] == [SendSupervisor]


def test_killing_is_told_to_frameworks_that_know_it() -> None:
    world = ready_world()
    world.master(run_task(command_task(), framework(FRAMEWORK, "TASK_KILLING_STATE")))
    world.master(kill())
    assert world.acknowledge_all() == [TaskState.RUNNING, TaskState.KILLING, TaskState.KILLED]


def test_task_that_ends_well_although_it_was_to_be_killed_is_finished() -> None:
    world = slow_world()
    world.master(run_task(command_task()))
    world.settle()
    exited = world.supervisor.exit(next(iter(world.supervisor.running)), 0)
    world.master(kill())
    world.waiting.clear()
    world.handle(SupervisorSaid(supervisor="sup-1", report=exited))
    world.settle()
    assert world.acknowledge_all() == [TaskState.RUNNING, TaskState.FINISHED]


def test_kill_before_any_supervisor_was_asked_is_killed_during_launch() -> None:
    world = ready_world()
    world.is_slow = True
    del world.supervisors["sup-1"]
    world.handle(SupervisorLost(supervisor="sup-1"))
    world.master(run_task(command_task()))
    world.master(kill())
    (status,) = world.statuses()
    assert (status.state, status.reason) == (TaskState.KILLED, Reason.TASK_KILLED_DURING_LAUNCH)
    world.settle()
    assert not world.supervisor.starts


def test_kill_between_request_and_start_is_sent_after_the_start() -> None:
    world = slow_world()
    world.master(run_task(command_task()))
    effects = world.master(kill())
    assert any(isinstance(e, SendSupervisor) and isinstance(e.message, KillContainer) for e in effects)
    world.settle()
    assert world.acknowledge_all()[-1] is TaskState.KILLED


@pytest.mark.parametrize(("capabilities", "state"), [((), TaskState.LOST), (("PARTITION_AWARE",), TaskState.DROPPED)])
def test_kill_of_unknown_task_is_answered(capabilities: tuple[str, ...], state: TaskState) -> None:
    world = ready_world()
    world.master(run_task(command_task("other"), framework(FRAMEWORK, *capabilities)))
    world.statuses()
    world.master(kill("never-seen"))
    (status,) = world.statuses()
    assert (status.task_id, status.state, status.uuid) == ("never-seen", state, None)


def test_kill_of_ended_task_says_nothing_new() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.exit_task()
    world.statuses()
    assert world.master(kill()) == []


@pytest.mark.parametrize("task_id", ["../../etc", ".hidden", "a/b", "a\n", ""])
def test_task_id_that_is_no_folder_name_is_refused(task_id: str) -> None:
    world = ready_world()
    world.master(run_task(command_task(task_id)))
    (status,) = world.statuses()
    assert (status.state, status.reason) == (TaskState.ERROR, Reason.TASK_INVALID)
    assert not world.supervisor.starts


def test_task_for_another_slave_is_not_run() -> None:
    world = ready_world()
    task = TaskInfo(task_id=TaskId("t-1"), slave_id=SlaveId("s-9"), command=CommandInfo(value="x"))
    world.master(run_task(task))
    assert [status.state for status in world.statuses()] == [TaskState.LOST]
    assert not world.supervisor.starts


def test_task_is_gone_with_all_its_accounting_after_its_terminal_update_is_acknowledged() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.exit_task()
    world.acknowledge_all()
    assert not [record for record in world.core.snapshot() if isinstance(record, TaskRecord)]
    assert isinstance(world.records[-1], AcknowledgedRecord)


def test_framework_shutdown_kills_its_tasks_and_keeps_no_updates() -> None:
    world = ready_world()
    world.master(run_task(command_task("t-1")))
    world.master(run_task(command_task("t-2")))
    other = framework("f-2")
    world.master(run_task(command_task("t-3"), other))
    world.statuses()
    world.master(ShutdownFramework(framework_id=FRAMEWORK))
    ends = world.statuses()
    assert [(s.task_id, s.state, s.reason, s.uuid) for s in ends] == [
        ("t-1", TaskState.KILLED, Reason.FRAMEWORK_REMOVED, None),
        ("t-2", TaskState.KILLED, Reason.FRAMEWORK_REMOVED, None),
    ]
    assert [r.task.task_id for r in world.core.snapshot() if isinstance(r, TaskRecord)] == ["t-3"]


def test_framework_that_was_shut_down_is_forgotten_after_a_restart() -> None:
    world = ready_world()
    world.master(run_task(command_task("t-1")))
    world.master(ShutdownFramework(framework_id=FRAMEWORK))
    world.restart()
    assert not [record for record in world.core.snapshot() if isinstance(record, TaskRecord | FrameworkRecord)]


def test_run_task_of_framework_that_is_being_shut_down_is_refused() -> None:
    world = slow_world()
    world.master(run_task(command_task("t-1")))
    world.settle()
    world.master(ShutdownFramework(framework_id=FRAMEWORK))
    world.statuses()
    world.master(run_task(command_task("t-2")))
    (status,) = world.statuses()
    assert (status.task_id, status.reason) == ("t-2", Reason.FRAMEWORK_REMOVED)


def test_shut_down_framework_is_killed_also_after_a_restart() -> None:
    world = slow_world()
    world.master(run_task(command_task("t-1")))
    world.settle()
    world.master(ShutdownFramework(framework_id=FRAMEWORK))
    world.waiting.clear()
    world.is_slow = False
    world.restart()
    world.settle()
    assert not world.supervisor.running
    assert not [record for record in world.core.snapshot() if isinstance(record, TaskRecord)]


def test_updated_framework_is_known_by_its_new_task_key() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    info = framework()
    world.master(UpdateFramework(framework_info=msgspec.structs.replace(info, task_public_key="K" * 40)))
    assert world.core.framework_of_key("K" * 40) == FRAMEWORK
    assert world.core.framework_of_key("L" * 40) is None


def test_container_that_nobody_knows_is_killed_and_forgotten() -> None:
    world = ready_world()
    stranger = ContainerId("c-stranger")
    started = Started(container_id=stranger, pid=7, start_ticks=7)
    world.supervisor.running[stranger] = started
    world.handle(SupervisorSaid(supervisor="sup-1", report=started))
    assert not world.supervisor.running
    assert not world.supervisor.exits


def test_user_that_an_unprivileged_slave_cannot_become_is_refused_in_words() -> None:
    own = msgspec.structs.replace(config(), user="ann", can_switch_user=False)
    assert user_fault(own, "ann") is None
    assert "ann" in (user_fault(own, "bob") or "")


def test_longest_ids_still_name_a_folder() -> None:
    path = sandbox_folder("/w", SLAVE, FRAMEWORK, "tasks/" + 255 * "t", "c-0123456789abcdef")
    name = path.rpartition("/")[2]
    assert len(name) == 255
    assert name.endswith("t.c-0123456789abcdef")
    assert "/tasks/t" in path


def test_no_memory_in_the_task_means_no_memory_limit() -> None:
    assert limits_of((Resources(),), 10) == Limits(cpu_milli=None, mem_bytes=None, pids=10)


@pytest.mark.parametrize("current", list(TASK_CHANGES))
@pytest.mark.parametrize("wanted", list(TaskState))
def test_task_state_changes_follow_the_table(current: TaskState, wanted: TaskState) -> None:
    task = SlaveTask((FrameworkId("f"), TaskId("t")), command_task(), ContainerId("c"), role="*", user="root")
    task.state = current
    if wanted in TASK_CHANGES[current]:
        task.change(wanted)
        assert task.state is wanted
    else:
        with pytest.raises(InvalidTransition):
            task.change(wanted)


def test_task_of_a_removed_framework_gets_no_endless_grace() -> None:
    world = slow_world()
    task = msgspec.structs.replace(command_task(), kill_policy=KillPolicy(grace_period_s=1e10))
    world.master(run_task(task))
    world.settle()
    world.master(kill())
    effects = world.master(ShutdownFramework(framework_id=FRAMEWORK))
    (ordered,) = [effect.message for effect in effects if isinstance(effect, SendSupervisor)]
    assert isinstance(ordered, KillContainer)
    assert ordered.grace_period_s == REMOVAL_GRACE_LIMIT_S
