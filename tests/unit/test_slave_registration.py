"""The slave and its master: registration, pings, epochs, the end."""

from itertools import pairwise

import pytest

from meseta.errors import InvalidTransition
from meseta.ids import SlaveId
from meseta.messages import (
    Error,
    Ping,
    Pong,
    RegisterSlave,
    ReregisterSlave,
    ShutdownSlave,
    SlaveRegistered,
    StatusUpdate,
)
from meseta.model import TaskState
from slave.events import (
    Begin,
    Exit,
    Leave,
    MasterConnected,
    MasterDisconnected,
    MasterRefused,
    PersistSlaveId,
    RemoveCheckpoint,
    ResetSession,
    SendMaster,
    SlaveInit,
)
from slave.registration import LINK_CHANGES, LinkState, MasterLink
from slave.state import Context
from tests.unit.slave_builders import (
    SLAVE,
    World,
    command_task,
    config,
    ready_world,
    run_task,
)


def started_world() -> World:
    world = World()
    world.handle(Begin())
    return world


def test_first_registration_is_sent_at_once_and_has_no_id() -> None:
    world = started_world()
    world.handle(MasterConnected(epoch=1))
    (message,) = world.take(RegisterSlave)
    assert isinstance(message, RegisterSlave)
    assert message.slave_info.id is None
    assert message.slave_info.resources == config().resources


def test_registration_waits_until_supervisors_have_answered() -> None:
    world = ready_world()
    world.is_slow = True
    world.restart()
    world.handle(MasterConnected(epoch=1))
    assert world.take(ReregisterSlave) == []
    world.settle()
    assert len(world.take(ReregisterSlave)) == 1


def test_registration_does_not_wait_for_ever_for_a_silent_supervisor() -> None:
    world = ready_world()
    world.is_slow = True
    world.restart()
    world.waiting.clear()
    world.handle(MasterConnected(epoch=1))
    world.advance(10.0)
    assert world.take(ReregisterSlave)


def test_registration_is_repeated_at_random_within_a_doubling_bound() -> None:
    world = started_world()
    world.handle(MasterConnected(epoch=1))
    times = [world.now]
    while len(times) < 8:
        due = world.core.next_deadline()
        assert due is not None
        world.to_master.clear()
        world.advance(due - world.now)
        if world.take(RegisterSlave):
            times.append(world.now)
    for attempt, (before, after) in enumerate(pairwise(times)):
        assert 0.0 < after - before <= min(2.0**attempt, 60.0)


def test_id_is_written_before_anything_else_of_the_new_slave() -> None:
    world = started_world()
    world.handle(MasterConnected(epoch=1))
    effects = world.master(SlaveRegistered(slave_id=SLAVE))
    assert PersistSlaveId(slave_id=SLAVE) in effects
    assert world.slave_id == SLAVE


def test_slave_that_was_admitted_comes_back_with_its_id_and_tasks() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.restart()
    world.handle(MasterConnected(epoch=1))
    (message,) = world.take(ReregisterSlave)
    assert isinstance(message, ReregisterSlave)
    assert message.slave_info.id == SLAVE
    assert [(task.task_id, task.state) for task in message.tasks] == [("t-1", TaskState.RUNNING)]
    assert [info.id for info in message.frameworks] == ["f-1"]


def test_updates_are_sent_again_at_once_after_registering_again() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    assert len(world.statuses()) == 1
    world.handle(MasterDisconnected(reason="cut"))
    world.register()
    assert [status.state for status in world.statuses()] == [TaskState.RUNNING]


def test_answer_for_another_slave_is_ignored() -> None:
    world = ready_world()
    world.handle(MasterDisconnected(reason="cut"))
    world.handle(MasterConnected(epoch=1))
    world.master(SlaveRegistered(slave_id=SlaveId("s-other")))
    assert not world.core.is_registered
    assert world.slave_id == SLAVE


def test_ping_is_answered() -> None:
    world = ready_world()
    assert world.master(Ping(interval_s=15.0, missed_limit=5)) == [SendMaster(message=Pong())]


def test_silent_master_is_given_up_after_what_its_ping_announced() -> None:
    world = ready_world()
    world.master(Ping(interval_s=2.0, missed_limit=5))
    world.advance(9.9)
    assert world.resets == 0
    world.advance(0.1)
    assert world.resets == 1
    assert not world.core.is_registered
    world.register()
    assert world.core.is_registered


def test_any_message_shows_that_the_master_lives() -> None:
    world = ready_world()
    for _ in range(20):
        world.master(Ping(interval_s=2.0, missed_limit=5))
        world.advance(9.0)
    assert world.resets == 0


def test_message_of_a_lower_epoch_is_refused() -> None:
    world = ready_world()
    world.master(run_task(command_task("t-1")), epoch=3)
    world.master(run_task(command_task("t-2")), epoch=2)
    assert len(world.supervisor.starts) == 1


def test_slave_does_not_register_with_an_old_master_also_after_a_restart() -> None:
    world = ready_world()
    world.master(Ping(interval_s=2.0, missed_limit=5), epoch=7)
    world.restart()
    world.handle(MasterConnected(epoch=6))
    world.advance(80.0)
    assert world.take(ReregisterSlave) == []
    assert world.resets == 1
    world.handle(MasterConnected(epoch=8))
    assert len(world.take(ReregisterSlave)) == 1


def test_refused_slave_exits_and_leaves_its_tasks() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.handle(MasterRefused(code="unauthorized", message="key is not known"))
    (end,) = world.exits
    assert end.status == 1
    assert "key is not known" in end.message
    assert world.supervisor.running


@pytest.mark.parametrize("order", [ShutdownSlave(message="gone"), Error(code="removed", message="gone")])
def test_removed_slave_kills_all_forgets_its_id_and_exits(order: ShutdownSlave | Error) -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.is_slow = True
    assert not [effect for effect in world.master(order) if isinstance(effect, Exit)]
    world.settle()
    assert not world.supervisor.running
    assert world.supervisor.is_retired
    assert (world.slave_id, world.records) == (None, [])
    assert [end.status for end in world.exits] == [75]


def test_slave_without_tasks_that_is_removed_exits_at_once() -> None:
    world = ready_world()
    effects = world.master(ShutdownSlave(message="gone"))
    assert [type(e) for e in effects if isinstance(e, RemoveCheckpoint | Exit)] == [RemoveCheckpoint, Exit]


def test_slave_that_leaves_ends_its_tasks_and_keeps_id_and_updates() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.statuses()
    world.handle(Leave())
    assert [end.status for end in world.exits] == [0]
    assert world.slave_id == SLAVE
    assert not world.supervisor.running
    world.restart()
    world.register()
    assert world.acknowledge_all() == [TaskState.RUNNING, TaskState.KILLED]


def test_slave_that_leaves_waits_no_longer_than_half_a_minute() -> None:
    world = ready_world()
    world.master(run_task(command_task()))
    world.is_slow = True
    world.handle(Leave())
    world.waiting.clear()
    world.advance(30.0)
    assert [end.status for end in world.exits] == [0]


def test_leaving_slave_runs_nothing_new() -> None:
    world = ready_world()
    world.master(run_task(command_task("t-1")))
    world.is_slow = True
    world.handle(Leave())
    world.to_master.clear()
    world.master(run_task(command_task("t-2")))
    (message,) = world.take(StatusUpdate)
    assert isinstance(message, StatusUpdate)
    assert message.status.state is TaskState.LOST


def test_lost_session_that_was_given_up_is_not_reset_twice() -> None:
    world = ready_world()
    world.advance(75.0)
    world.handle(MasterDisconnected(reason="reset"))
    world.advance(1000.0)
    assert world.resets == 1
    assert not [e for e in world.handle(MasterDisconnected(reason="x")) if isinstance(e, ResetSession)]


@pytest.mark.parametrize("current", list(LinkState))
@pytest.mark.parametrize("wanted", list(LinkState))
def test_session_states_follow_the_table(current: LinkState, wanted: LinkState) -> None:
    link = MasterLink(Context(SlaveInit(config=config(), seed=1)), Pong, 0)
    link.state = current
    if wanted in LINK_CHANGES[current]:
        link._change(wanted)
        assert link.state is wanted
    else:
        with pytest.raises(InvalidTransition):
            link._change(wanted)


def test_slave_that_leaves_while_its_supervisor_starts_waits_to_end_it() -> None:
    world = World()
    world.is_slow = True
    world.handle(Begin())
    world.handle(Leave())
    assert world.exits == []
    world.settle()
    assert world.supervisor.is_retired
    assert [end.status for end in world.exits] == [0]
