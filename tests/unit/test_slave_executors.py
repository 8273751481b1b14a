"""Custom executors through the slave's core: start, registration, tasks, recovery, end."""

import msgspec
import pytest

from meseta.errors import InvalidTransition
from meseta.ids import ContainerId, ExecutorId, FrameworkId, SessionId, SlaveId, StatusUuid, TaskId
from meseta.messages import (
    AcknowledgeStatus,
    ExecutorLost,
    ExecutorRegistered,
    ExecutorToFramework,
    FrameworkToExecutor,
    KillTask,
    LaunchTask,
    Message,
    RegisterExecutor,
    ShutdownExecutor,
    ShutdownFramework,
    StatusUpdate,
)
from meseta.model import Reason, Source, TaskInfo, TaskState, TaskStatus
from slave.events import ExecutorConnected, ExecutorDisconnected, ExecutorSaid, SupervisorLost
from slave.executors import REMOVAL_GRACE_LIMIT_S
from slave.records import ExecutorRecord, TaskRecord
from slave.state import EXECUTOR_CHANGES, ExecutorState, SlaveExecutor
from slave.supervisor_messages import Limits
from tests.unit.slave_builders import (
    EXECUTOR,
    FRAMEWORK,
    SLAVE,
    World,
    executor_info,
    executor_task,
    framework,
    ready_world,
    run_task,
)

SESSION = SessionId(b"one")


def token_of(world: World) -> str:
    return world.supervisor.starts[-1].environment["MESETA_EXECUTOR_TOKEN"]


def connect(
    world: World,
    session: SessionId = SESSION,
    tasks: tuple[TaskInfo, ...] = (),
    unacknowledged: tuple[TaskStatus, ...] = (),
) -> None:
    world.handle(ExecutorConnected(session=session, token=token_of(world)))
    register = RegisterExecutor(
        executor_id=EXECUTOR, framework_id=FRAMEWORK, tasks=tasks, unacknowledged=unacknowledged
    )
    world.handle(ExecutorSaid(session=session, message=register))


def told(world: World) -> list[Message]:
    """Return what executors were sent, and forget it."""
    messages = [message for _, message in world.to_executors]
    world.to_executors.clear()
    return messages


def status(uuid: str, state: TaskState = TaskState.RUNNING, task_id: str = "t-1", data: bytes = b"") -> TaskStatus:
    return TaskStatus(task_id=TaskId(task_id), state=state, uuid=StatusUuid(uuid), data=data)


def say(world: World, update: TaskStatus, session: SessionId = SESSION) -> None:
    world.handle(ExecutorSaid(session=session, message=StatusUpdate(status=update)))


def running_world() -> World:
    """An executor is registered and has task t-1."""
    world = ready_world()
    world.master(run_task(executor_task()))
    connect(world)
    told(world)
    return world


def test_executor_is_started_once_and_gets_its_tasks_when_it_registers() -> None:
    world = ready_world()
    world.master(run_task(executor_task("t-1")))
    world.master(run_task(executor_task("t-2")))
    (start,) = world.supervisor.starts
    assert start.environment["MESETA_EXECUTOR_ENDPOINT"] == "ipc:///r/executors"
    assert start.environment["MESETA_EXECUTOR_ID"] == EXECUTOR
    assert start.environment["MESETA_RECOVERY_TIMEOUT_S"] == "900"
    assert "/executors/e-1.c-" in start.sandbox
    assert start.limits == Limits(cpu_milli=600, mem_bytes=96 << 20, pids=4096)
    both = Limits(cpu_milli=1100, mem_bytes=160 << 20, pids=4096)
    assert world.supervisor.limits == {start.container_id: both}
    assert world.to_executors == []
    connect(world)
    registered, first, second = told(world)
    assert isinstance(registered, ExecutorRegistered)
    assert (registered.executor_info, registered.reregistered) == (executor_info(), False)
    assert [first, second] == [LaunchTask(task=executor_task("t-1")), LaunchTask(task=executor_task("t-2"))]
    assert world.statuses() == []


def test_task_for_a_registered_executor_is_sent_at_once() -> None:
    world = running_world()
    world.master(run_task(executor_task("t-2")))
    assert told(world) == [LaunchTask(task=executor_task("t-2"))]


def test_limits_of_an_executor_follow_its_tasks_and_stay_when_the_last_has_ended() -> None:
    world = running_world()
    container_id = world.supervisor.starts[0].container_id
    world.master(run_task(executor_task("t-2")))
    assert world.supervisor.limits[container_id].mem_bytes == 160 << 20
    say(world, status("u1", TaskState.FINISHED, "t-1"))
    assert world.supervisor.limits[container_id].cpu_milli == 600
    say(world, status("u2", TaskState.FINISHED, "t-2"))
    assert world.supervisor.limits[container_id].cpu_milli == 600


def test_executor_that_waits_for_a_supervisor_starts_with_the_limits_of_all_its_tasks() -> None:
    world = ready_world()
    world.is_slow = True
    del world.supervisors["sup-1"]
    world.handle(SupervisorLost(supervisor="sup-1"))
    world.master(run_task(executor_task("t-1")))
    world.master(run_task(executor_task("t-2")))
    world.settle()
    assert world.supervisor.starts[0].limits.cpu_milli == 1100


def test_two_frameworks_have_an_executor_each_also_of_the_same_id() -> None:
    world = ready_world()
    world.master(run_task(executor_task()))
    world.master(run_task(executor_task(), framework("f-2")))
    assert len(world.supervisor.starts) == 2
    assert len({start.environment["MESETA_EXECUTOR_TOKEN"] for start in world.supervisor.starts}) == 2


def test_update_of_an_executor_is_written_acknowledged_and_sent_on() -> None:
    world = running_world()
    say(world, status("u1", data=b"x"))
    (sent,) = world.statuses()
    assert (sent.uuid, sent.data, sent.source) == ("u1", b"x", Source.EXECUTOR)
    assert (sent.slave_id, sent.executor_id) == (SLAVE, EXECUTOR)
    assert sent.timestamp_unix_s > 1e9
    assert told(world) == [
        AcknowledgeStatus(task_id=TaskId("t-1"), uuid=StatusUuid("u1"), slave_id=SLAVE, framework_id=FRAMEWORK)
    ]


def test_repeated_update_is_acknowledged_and_not_sent_twice() -> None:
    world = running_world()
    say(world, status("u1"))
    world.acknowledge_all()
    told(world)
    say(world, status("u1"))
    assert world.statuses() == []
    assert [type(message) for message in told(world)] == [AcknowledgeStatus]


@pytest.mark.parametrize("state", [TaskState.STAGING, TaskState.UNREACHABLE, TaskState.UNKNOWN])
def test_state_that_no_executor_may_report_is_dropped_and_acknowledged(state: TaskState) -> None:
    world = running_world()
    say(world, status("u1", state))
    assert world.statuses() == []
    assert [type(message) for message in told(world)] == [AcknowledgeStatus]


def test_update_after_the_end_or_of_an_unknown_task_is_dropped_and_acknowledged() -> None:
    world = running_world()
    say(world, status("u1", TaskState.FINISHED))
    world.acknowledge_all()
    say(world, status("u2", TaskState.RUNNING))
    say(world, status("u3", TaskState.RUNNING, "nobody's"))
    assert world.statuses() == []
    assert len(told(world)) == 3


def test_executor_without_tasks_stays() -> None:
    world = running_world()
    say(world, status("u1", TaskState.FINISHED))
    world.acknowledge_all()
    world.advance(3600.0)
    assert world.supervisor.running
    assert not [record for record in world.core.snapshot() if isinstance(record, TaskRecord)]


def test_executor_that_does_not_register_in_time_is_killed_and_its_tasks_fail() -> None:
    world = ready_world()
    world.master(run_task(executor_task()))
    world.advance(59.0)
    assert world.statuses() == []
    world.advance(1.0)
    (sent,) = world.statuses()
    assert (sent.state, sent.reason) == (TaskState.FAILED, Reason.EXECUTOR_REGISTRATION_TIMEOUT)
    assert not world.supervisor.running
    assert len(world.take(ExecutorLost)) == 1


def test_end_of_the_executor_fails_its_tasks_and_is_told() -> None:
    world = running_world()
    say(world, status("u1"))
    world.acknowledge_all()
    world.exit_task(7)
    (sent,) = world.statuses()
    assert (sent.state, sent.reason) == (TaskState.FAILED, Reason.EXECUTOR_TERMINATED)
    assert "exited with status 7" in sent.message
    (lost,) = world.take(ExecutorLost)
    assert lost == ExecutorLost(executor_id=EXECUTOR, slave_id=SLAVE, framework_id=FRAMEWORK, exit_status=7)
    assert not [record for record in world.core.snapshot() if isinstance(record, ExecutorRecord)]


def test_executor_that_ran_out_of_memory_is_told_so() -> None:
    world = running_world()
    world.exit_task(137, oom_kills=1, mem_limit_bytes=96 << 20, mem_peak_bytes=96 << 20)
    assert [sent.reason for sent in world.statuses()] == [Reason.CONTAINER_LIMITATION_MEMORY]


def test_kill_before_the_executor_has_the_task_is_killed_during_launch() -> None:
    world = ready_world()
    world.master(run_task(executor_task()))
    world.master(KillTask(task_id=TaskId("t-1"), framework_id=FRAMEWORK))
    (sent,) = world.statuses()
    assert (sent.state, sent.reason) == (TaskState.KILLED, Reason.TASK_KILLED_DURING_LAUNCH)
    connect(world)
    assert [type(message) for message in told(world)] == [ExecutorRegistered]


def test_kill_is_handed_on_to_the_executor() -> None:
    world = running_world()
    world.master(KillTask(task_id=TaskId("t-1"), framework_id=FRAMEWORK, grace_period_s=2.0))
    assert told(world) == [KillTask(task_id=TaskId("t-1"), framework_id=FRAMEWORK, grace_period_s=2.0)]
    assert world.statuses() == []


def test_messages_pass_both_ways() -> None:
    world = running_world()
    down = FrameworkToExecutor(slave_id=SLAVE, executor_id=EXECUTOR, data=b"down", framework_id=FRAMEWORK)
    world.master(down)
    assert told(world) == [down]
    up = ExecutorToFramework(executor_id=ExecutorId("forged"), data=b"up", framework_id=FrameworkId("forged"))
    world.handle(ExecutorSaid(session=SESSION, message=up))
    assert world.take(ExecutorToFramework) == [
        ExecutorToFramework(executor_id=EXECUTOR, data=b"up", slave_id=SLAVE, framework_id=FRAMEWORK)
    ]


def test_token_of_another_executor_does_not_register_this_one() -> None:
    world = ready_world()
    world.master(run_task(executor_task()))
    world.handle(ExecutorConnected(session=SESSION, token=token_of(world)))
    forged = RegisterExecutor(executor_id=ExecutorId("other"), framework_id=FRAMEWORK)
    world.handle(ExecutorSaid(session=SESSION, message=forged))
    assert not any(isinstance(message, ExecutorRegistered) for message in told(world))
    assert not world.core.is_executor_admitted("guess")


def test_shutdown_is_asked_for_and_enforced_after_the_grace_period() -> None:
    world = running_world()
    world.master(ShutdownExecutor(executor_id=EXECUTOR, framework_id=FRAMEWORK))
    assert [type(message) for message in told(world)] == [ShutdownExecutor]
    assert world.supervisor.running
    world.advance(5.0)
    assert not world.supervisor.running
    (sent,) = world.statuses()
    assert (sent.state, sent.reason) == (TaskState.FAILED, Reason.EXECUTOR_TERMINATED)


def test_task_for_an_executor_that_is_ending_is_refused() -> None:
    world = running_world()
    world.master(ShutdownExecutor(executor_id=EXECUTOR, framework_id=FRAMEWORK))
    world.master(run_task(executor_task("t-2")))
    (sent,) = world.statuses()
    assert (sent.task_id, sent.state, sent.reason) == ("t-2", TaskState.LOST, Reason.EXECUTOR_TERMINATED)


def test_same_executor_id_with_another_info_is_refused() -> None:
    world = running_world()
    task = executor_task("t-2")
    assert task.executor is not None
    other = msgspec.structs.replace(task, executor=msgspec.structs.replace(task.executor, data=b"other"))
    world.master(run_task(other))
    assert [sent.state for sent in world.statuses()] == [TaskState.ERROR]


def test_framework_shutdown_ends_executors_too() -> None:
    world = running_world()
    world.master(ShutdownFramework(framework_id=FRAMEWORK))
    world.advance(5.0)
    assert not world.supervisor.running
    assert [(sent.state, sent.uuid) for sent in world.statuses()] == [(TaskState.KILLED, None)]
    assert len(world.core.snapshot()) == 2


def test_executor_that_registers_again_after_a_restart_keeps_its_tasks() -> None:
    world = running_world()
    say(world, status("u1"))
    world.acknowledge_all()
    world.restart()
    world.register()
    connect(world, SessionId(b"two"), tasks=(executor_task(),))
    (registered,) = told(world)[-1:]
    assert isinstance(registered, ExecutorRegistered)
    assert registered.reregistered
    world.advance(60.0)
    assert world.supervisor.running
    say(world, status("u2", TaskState.FINISHED), SessionId(b"two"))
    assert world.acknowledge_all() == [TaskState.FINISHED]


def test_updates_that_the_executor_kept_during_the_restart_arrive() -> None:
    world = running_world()
    world.restart()
    world.register()
    kept = (status("u1"), status("u2", TaskState.FINISHED))
    connect(world, SessionId(b"two"), unacknowledged=kept)
    assert world.acknowledge_all() == [TaskState.RUNNING, TaskState.FINISHED]


def test_task_that_the_executor_never_got_is_reported_and_not_sent_again() -> None:
    world = running_world()
    world.restart()
    world.register()
    connect(world, SessionId(b"two"))
    assert not any(isinstance(message, LaunchTask) for message in told(world))
    (sent,) = world.statuses()
    assert (sent.state, sent.reason) == (TaskState.LOST, Reason.SLAVE_RESTARTED)


def test_executor_that_stays_away_after_a_restart_is_killed() -> None:
    world = running_world()
    world.restart()
    world.register()
    world.advance(10.0)
    assert not world.supervisor.running
    assert [sent.reason for sent in world.statuses()] == [Reason.EXECUTOR_REREGISTRATION_TIMEOUT]


def test_executor_that_had_not_registered_before_the_restart_has_its_full_time() -> None:
    world = ready_world()
    world.master(run_task(executor_task()))
    world.restart()
    world.register()
    world.advance(59.0)
    assert world.supervisor.running
    world.advance(1.0)
    assert [sent.reason for sent in world.statuses()] == [Reason.EXECUTOR_REGISTRATION_TIMEOUT]


def test_new_session_of_a_living_executor_gets_what_waited() -> None:
    world = running_world()
    world.handle(ExecutorDisconnected(session=SESSION))
    world.master(run_task(executor_task("t-2")))
    assert told(world) == []
    connect(world, SessionId(b"two"), tasks=(executor_task("t-1"),))
    messages = told(world)
    assert messages[1:] == [LaunchTask(task=executor_task("t-2"))]
    assert world.statuses() == []


def test_repeated_registration_in_one_session_gives_no_task_up() -> None:
    world = running_world()
    repeated = RegisterExecutor(executor_id=EXECUTOR, framework_id=FRAMEWORK)
    world.handle(ExecutorSaid(session=SESSION, message=repeated))
    assert world.statuses() == []
    assert [type(message) for message in told(world)] == [ExecutorRegistered]


def test_task_that_the_slave_does_not_know_is_killed_at_its_executor() -> None:
    world = running_world()
    connect(world, SessionId(b"two"), tasks=(executor_task("t-1"), executor_task("stranger")))
    kills = [message for message in told(world) if isinstance(message, KillTask)]
    assert [message.task_id for message in kills] == ["stranger"]


def test_ended_tasks_of_an_ended_executor_survive_a_snapshot() -> None:
    world = running_world()
    world.exit_task(1)
    world.compact()
    before = world.records.copy()
    world.restart()
    assert world.core.snapshot() == before
    world.register()
    assert world.acknowledge_all() == [TaskState.FAILED]


@pytest.mark.parametrize("current", list(ExecutorState))
@pytest.mark.parametrize("wanted", list(ExecutorState))
def test_executor_states_follow_the_table(current: ExecutorState, wanted: ExecutorState) -> None:
    executor = SlaveExecutor((FRAMEWORK, EXECUTOR), executor_info(), ContainerId("c"), role="*", token="t")
    executor.state = current
    if wanted in EXECUTOR_CHANGES[current]:
        executor.change(wanted)
        assert executor.state is wanted
    else:
        with pytest.raises(InvalidTransition):
            executor.change(wanted)


@pytest.mark.parametrize("is_ending", [False, True])
def test_executor_of_a_removed_framework_gets_no_endless_grace(*, is_ending: bool) -> None:
    world = ready_world()
    patient = msgspec.structs.replace(executor_info(), shutdown_grace_period_s=1e10)
    world.master(run_task(msgspec.structs.replace(executor_task(), executor=patient)))
    connect(world)
    if is_ending:
        world.master(ShutdownExecutor(executor_id=EXECUTOR, framework_id=FRAMEWORK))
    world.master(ShutdownFramework(framework_id=FRAMEWORK))
    world.advance(REMOVAL_GRACE_LIMIT_S + 1)
    assert world.supervisor.running == {}


def test_executor_that_names_another_after_it_registered_loses_its_session() -> None:
    world = running_world()
    other = RegisterExecutor(executor_id=ExecutorId("e-2"), framework_id=FRAMEWORK)
    world.handle(ExecutorSaid(session=SESSION, message=other))
    told(world)
    world.master(run_task(executor_task("t-2")))
    assert told(world) == []  # It waits for the executor's next session.
    connect(world, SessionId(b"two"), tasks=(executor_task("t-1"),))
    assert LaunchTask(task=executor_task("t-2")) in told(world)


def test_task_for_an_executor_that_has_just_ended_starts_no_other() -> None:
    world = running_world()
    world.exit_task(0)
    world.acknowledge_all()
    assert len(world.take(ExecutorLost)) == 1
    late = msgspec.structs.replace(run_task(executor_task("t-2")), launch_executor=False)
    world.master(late)
    (answer,) = world.statuses()
    assert (answer.task_id, answer.state, answer.reason) == ("t-2", TaskState.LOST, Reason.EXECUTOR_TERMINATED)
    assert len(world.supervisor.starts) == 1
    assert world.take(ExecutorLost) == []  # Its end was told before.


def test_master_hears_that_no_executor_was_started_for_a_task_that_was_refused() -> None:
    world = ready_world()
    elsewhere = msgspec.structs.replace(executor_task(), slave_id=SlaveId("s-other"))
    world.master(run_task(elsewhere))
    (answer,) = world.statuses()
    assert answer.reason is Reason.SLAVE_REMOVED
    assert world.take(ExecutorLost) == [ExecutorLost(executor_id=EXECUTOR, slave_id=SLAVE, framework_id=FRAMEWORK)]
    world.master(run_task(executor_task("t-2")))
    world.master(run_task(msgspec.structs.replace(executor_task("t-3"), slave_id=SlaveId("s-other"))))
    assert world.take(ExecutorLost) == []  # That one is here.
