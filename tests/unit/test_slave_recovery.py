"""What the slave knows again after a crash, and what becomes of what it does not."""

import pytest

from meseta.errors import InvalidTransition
from meseta.ids import ContainerId
from meseta.messages import KillTask
from meseta.model import Reason, TaskState
from slave.events import KillOrphans, SupervisorLost, SupervisorStartFailed
from slave.records import AcknowledgedRecord, FrameworkRecord, StartedRecord, TaskRecord, UpdateRecord
from slave.state import CONTAINER_CHANGES, Container, ContainerState
from slave.supervisor_messages import StartContainer, Started
from tests.unit.slave_builders import (
    FRAMEWORK,
    command_task,
    framework,
    ready_world,
    run_task,
)


def test_running_task_goes_on_and_its_end_is_reported_once() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.acknowledge_all()
    world.restart()
    world.register()
    assert world.statuses() == []
    world.exit_task(0)
    assert world.acknowledge_all() == [TaskState.FINISHED]
    assert len(world.supervisor.starts) == 1


def test_exit_that_happened_while_the_daemon_was_dead_is_reported_once() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.acknowledge_all()
    world.supervisor.exit(next(iter(world.supervisor.running)), 3)
    world.restart()
    world.register()
    assert world.acknowledge_all() == [TaskState.FAILED]
    assert len(world.supervisor.starts) == 1
    assert not world.supervisor.exits


def test_unacknowledged_updates_survive_in_order() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.exit_task(0)
    world.restart()
    world.register()
    assert world.acknowledge_all() == [TaskState.RUNNING, TaskState.FINISHED]


def test_start_that_was_written_and_never_sent_is_asked_for_again() -> None:
    world = ready_world()
    world.is_slow = True
    world.master(run_task(command_task()))
    # The daemon died between write and send: the supervisor never heard of it.
    world.supervisor.starts.clear()
    world.supervisor.running.clear()
    world.is_slow = False
    world.restart()
    world.register()
    assert len(world.supervisor.starts) == 1
    assert world.acknowledge_all() == [TaskState.RUNNING]


def test_start_that_was_sent_is_not_run_twice() -> None:
    world = ready_world()
    world.is_slow = True
    world.master(run_task(command_task()))
    world.is_slow = False
    world.restart()
    world.register()
    assert len(world.supervisor.starts) == 1
    assert world.acknowledge_all() == [TaskState.RUNNING]


def test_supervisor_that_died_meanwhile_is_cleaned_up_after_and_its_tasks_fail() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.acknowledge_all()
    world.supervisors.clear()
    world.restart()
    world.register()
    (status,) = world.statuses()
    assert (status.state, status.reason) == (TaskState.FAILED, Reason.SUPERVISOR_TERMINATED)


def test_dead_supervisors_containers_are_killed_before_they_are_reported() -> None:
    world = ready_world()
    world.master(run_task(command_task("t-1")))
    world.acknowledge_all()
    started = tuple(world.supervisor.running.values())
    world.is_slow = True
    world.supervisors.clear()
    effects = world.handle(SupervisorLost(supervisor="sup-1", reason="killed"))
    orphans = [effect for effect in effects if isinstance(effect, KillOrphans)]
    assert orphans == [KillOrphans(supervisor="sup-1", containers=started, isolation="posix")]
    assert world.statuses() == []
    world.settle()
    (status,) = world.statuses()
    assert (status.state, status.reason) == (TaskState.FAILED, Reason.SUPERVISOR_TERMINATED)


def test_container_whose_start_was_not_answered_is_among_the_orphans() -> None:
    world = ready_world()
    world.is_slow = True
    world.master(run_task(command_task("t-1")))
    world.waiting.clear()
    container_id = world.supervisor.starts[0].container_id
    effects = world.handle(SupervisorLost(supervisor="sup-1"))
    (orphans,) = [effect for effect in effects if isinstance(effect, KillOrphans)]
    assert orphans.containers == (Started(container_id=container_id, pid=0, start_ticks=0),)


def test_new_supervisor_takes_over_when_one_died() -> None:
    world = ready_world()
    del world.supervisors["sup-1"]
    world.handle(SupervisorLost(supervisor="sup-1"))
    world.master(run_task(command_task("t-2")))
    assert [start.environment["MESETA_TASK_ID"] for start in world.supervisor.starts] == ["t-2"]
    assert list(world.supervisors) == ["sup-2"]


def test_tasks_fail_with_the_cause_when_no_supervisor_can_be_started() -> None:
    world = ready_world()
    world.is_slow = True
    del world.supervisors["sup-1"]
    world.handle(SupervisorLost(supervisor="sup-1"))
    world.waiting.clear()
    world.master(run_task(command_task()))
    world.handle(SupervisorStartFailed(message="no rights"))
    (status,) = world.statuses()
    assert (status.state, status.reason) == (TaskState.FAILED, Reason.CONTAINER_LAUNCH_FAILED)
    assert "no rights" in status.message
    world.is_slow = False
    world.advance(1.0)
    world.master(run_task(command_task("t-2")))
    assert [status.task_id for status in world.statuses()] == ["t-2"]


def test_container_that_the_checkpoint_does_not_know_is_killed() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.records = [record for record in world.records if not isinstance(record, TaskRecord | StartedRecord)]
    world.records = [record for record in world.records if not isinstance(record, UpdateRecord)]
    world.restart()
    assert not world.supervisor.running
    assert not world.supervisor.exits


def test_two_supervisors_keep_their_own_tasks() -> None:
    world = ready_world()
    world.master(run_task(command_task("t-1")))
    world.handle(SupervisorStartFailed(message="only to make a second one"))
    world.advance(1.0)
    assert list(world.supervisors) == ["sup-1", "sup-2"]
    world.master(run_task(command_task("t-2")))
    world.acknowledge_all()
    world.restart()
    world.register()
    world.exit_task(0)
    world.exit_task(3)
    assert sorted(world.acknowledge_all()) == [TaskState.FAILED, TaskState.FINISHED]
    assert [len(supervisor.starts) for supervisor in world.supervisors.values()] == [1, 1]


@pytest.mark.parametrize(("capabilities", "state"), [((), TaskState.LOST), (("PARTITION_AWARE",), TaskState.GONE)])
def test_tasks_of_an_earlier_boot_are_reported_lost(capabilities: tuple[str, ...], state: TaskState) -> None:
    world = ready_world()
    world.master(run_task(command_task(), framework(FRAMEWORK, *capabilities)))
    world.acknowledge_all()
    world.boot_id = "boot-2"
    world.supervisors.clear()
    world.restart()
    world.register()
    (status,) = world.statuses()
    assert (status.state, status.reason) == (state, Reason.SLAVE_RESTARTED)
    world.acknowledge(status)
    world.restart()
    world.register()
    assert world.statuses() == []


def test_kill_that_arrives_during_recovery_reaches_the_container() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.acknowledge_all()
    world.is_slow = True
    world.restart()
    world.master(KillTask(task_id=command_task().task_id, framework_id=FRAMEWORK))
    assert world.supervisor.running
    world.settle()
    assert not world.supervisor.running
    world.register()
    world.settle()
    assert world.acknowledge_all() == [TaskState.KILLED]


def test_snapshot_folds_to_the_same_snapshot() -> None:
    world = ready_world()
    for number in range(5):
        world.master(run_task(command_task(f"t-{number}"), framework(f"f-{number % 2}")))
    world.exit_task(0)
    world.exit_task(1)
    world.compact()
    before = world.records.copy()
    world.restart()
    assert world.core.snapshot() == before


def test_snapshot_of_a_running_task_does_not_tell_it_twice() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.acknowledge_all()
    world.compact()
    assert [type(record) for record in world.records[2:]] == [
        FrameworkRecord,
        TaskRecord,
        StartedRecord,
        UpdateRecord,
        AcknowledgedRecord,
    ]
    world.restart()
    world.register()
    assert world.statuses() == []


def test_recovered_core_makes_other_ids_than_its_predecessor() -> None:
    world = ready_world()
    world.master(run_task(command_task("t-1")))
    world.restart()
    world.master(run_task(command_task("t-2")))
    assert len({start.container_id for start in world.supervisor.starts}) == 2


@pytest.mark.parametrize("current", list(ContainerState))
@pytest.mark.parametrize("wanted", list(ContainerState))
def test_container_states_follow_the_table(current: ContainerState, wanted: ContainerState) -> None:
    start = StartContainer(container_id=ContainerId("c"), arguments=("x",), environment={}, sandbox="/w")
    container = Container(FRAMEWORK, ContainerId("c"), start)
    container.state = current
    if wanted in CONTAINER_CHANGES[current]:
        container.change(wanted)
        assert container.state is wanted
    else:
        with pytest.raises(InvalidTransition):
            container.change(wanted)
