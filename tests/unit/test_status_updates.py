"""Updates are written, sent in order, and sent again until they are acknowledged."""

import pytest

from meseta.errors import InvariantError
from meseta.ids import FrameworkId, StatusUuid, TaskId
from meseta.messages import StatusUpdate
from meseta.model import TaskState, TaskStatus
from slave.events import Persist, SendMaster
from slave.records import AcknowledgedRecord, TaskDroppedRecord, UpdateRecord
from slave.status_updates import (
    RETRY_LIMIT_S,
    STREAM_LIMIT,
    MasterGone,
    MasterReady,
    StatusUpdateManager,
    StreamDropped,
    StreamEnded,
    UpdateAcknowledged,
    UpdateEffect,
    UpdateMade,
)

FRAMEWORK = FrameworkId("f-1")
TASK = TaskId("t-1")
KEY = (FRAMEWORK, TASK)


def status(uuid: str, state: TaskState = TaskState.RUNNING, task_id: TaskId = TASK) -> TaskStatus:
    return TaskStatus(task_id=task_id, state=state, uuid=StatusUuid(uuid))


def made(uuid: str, state: TaskState = TaskState.RUNNING) -> UpdateMade:
    return UpdateMade(framework_id=FRAMEWORK, status=status(uuid, state))


def acknowledged(uuid: str) -> UpdateAcknowledged:
    return UpdateAcknowledged(framework_id=FRAMEWORK, task_id=TASK, uuid=StatusUuid(uuid))


def sent(effects: list[UpdateEffect]) -> list[str | None]:
    messages = [effect.message for effect in effects if isinstance(effect, SendMaster)]
    return [message.status.uuid for message in messages if isinstance(message, StatusUpdate)]


def ready() -> StatusUpdateManager:
    manager = StatusUpdateManager()
    assert manager.handle(MasterReady(), 0.0) == []
    return manager


def test_update_is_written_before_it_is_sent() -> None:
    manager = ready()
    effects = manager.handle(made("a"), 0.0)
    assert effects == [
        Persist(records=(UpdateRecord(framework_id=FRAMEWORK, status=status("a")),)),
        SendMaster(message=StatusUpdate(status=status("a"), framework_id=FRAMEWORK)),
    ]
    manager.check()


def test_update_is_sent_again_with_a_doubling_delay_until_acknowledged() -> None:
    manager = ready()
    manager.handle(made("a"), 0.0)
    now, delays = 0.0, []
    for _ in range(9):
        due = manager.next_deadline()
        assert due is not None
        assert manager.tick(due - 0.001) == []
        delays.append(due - now)
        now = due
        assert sent(manager.tick(now)) == ["a"]
    assert delays == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, RETRY_LIMIT_S, RETRY_LIMIT_S, RETRY_LIMIT_S]
    manager.handle(acknowledged("a"), now)
    assert manager.next_deadline() is None
    manager.check()


def test_second_update_waits_for_the_acknowledgement_of_the_first() -> None:
    manager = ready()
    manager.handle(made("a"), 0.0)
    assert sent(manager.handle(made("b", TaskState.FINISHED), 1.0)) == []
    assert sent(manager.handle(acknowledged("a"), 2.0)) == ["b"]


def test_update_that_is_sent_again_tells_the_newest_state() -> None:
    manager = ready()
    manager.handle(made("a"), 0.0)
    manager.handle(made("b", TaskState.FINISHED), 1.0)
    (effect,) = manager.tick(10.0)
    assert isinstance(effect, SendMaster)
    assert isinstance(effect.message, StatusUpdate)
    assert effect.message.latest_state is TaskState.FINISHED


def test_stream_ends_with_the_acknowledgement_of_the_terminal_update() -> None:
    manager = ready()
    manager.handle(made("a", TaskState.FAILED), 0.0)
    effects = manager.handle(acknowledged("a"), 1.0)
    record = AcknowledgedRecord(framework_id=FRAMEWORK, task_id=TASK, uuid=StatusUuid("a"))
    assert effects == [Persist(records=(record,)), StreamEnded(framework_id=FRAMEWORK, task_id=TASK)]
    assert manager.pending(KEY) == ()
    manager.check()


@pytest.mark.parametrize("uuid", ["b", "unknown"])
def test_acknowledgement_of_anything_but_the_oldest_is_ignored(uuid: str) -> None:
    manager = ready()
    manager.handle(made("a"), 0.0)
    manager.handle(made("b"), 0.0)
    assert manager.handle(acknowledged(uuid), 1.0) == []
    assert [entry.uuid for entry in manager.pending(KEY)] == ["a", "b"]


def test_nothing_is_sent_while_there_is_no_master_and_all_heads_when_it_is_back() -> None:
    manager = ready()
    manager.handle(made("a"), 0.0)
    manager.handle(MasterGone(), 1.0)
    assert manager.next_deadline() is None
    assert sent(manager.handle(made("b"), 2.0)) == []
    assert sent(manager.handle(MasterReady(), 3.0)) == ["a"]
    assert manager.next_deadline() == 13.0
    manager.check()


def test_acknowledgement_counts_also_while_the_master_is_gone() -> None:
    manager = ready()
    manager.handle(made("a"), 0.0)
    manager.handle(made("b"), 0.0)
    manager.handle(MasterGone(), 1.0)
    assert sent(manager.handle(acknowledged("a"), 2.0)) == []
    assert sent(manager.handle(MasterReady(), 3.0)) == ["b"]


def test_records_rebuild_streams_and_tell_which_tasks_are_over() -> None:
    manager = StatusUpdateManager()
    over = [
        manager.recover(record)
        for record in (
            UpdateRecord(framework_id=FRAMEWORK, status=status("a")),
            UpdateRecord(framework_id=FRAMEWORK, status=status("b", TaskState.FINISHED)),
            AcknowledgedRecord(framework_id=FRAMEWORK, task_id=TASK, uuid=StatusUuid("a")),
            UpdateRecord(framework_id=FRAMEWORK, status=status("c", TaskState.FAILED, TaskId("t-2"))),
            AcknowledgedRecord(framework_id=FRAMEWORK, task_id=TaskId("t-2"), uuid=StatusUuid("c")),
            TaskDroppedRecord(framework_id=FRAMEWORK, task_id=TaskId("t-3")),
        )
    ]
    assert over == [None, None, None, None, (FRAMEWORK, "t-2"), (FRAMEWORK, "t-3")]
    assert sent(manager.handle(MasterReady(), 0.0)) == ["b"]
    manager.check()


def test_repeated_update_is_known_also_after_it_was_acknowledged() -> None:
    manager = ready()
    manager.handle(made("a"), 0.0)
    manager.handle(acknowledged("a"), 0.0)
    assert manager.knows(KEY, StatusUuid("a"))
    assert not manager.knows(KEY, StatusUuid("b"))


def test_stream_of_a_removed_framework_is_dropped() -> None:
    manager = ready()
    manager.handle(made("a"), 0.0)
    assert manager.handle(StreamDropped(framework_id=FRAMEWORK, task_id=TASK), 1.0) == []
    assert manager.next_deadline() is None
    assert manager.pending(KEY) == ()


def test_stream_says_when_it_is_full() -> None:
    manager = ready()
    for index in range(STREAM_LIMIT):
        assert not manager.is_full(KEY)
        manager.handle(made(f"u{index}"), 0.0)
    assert manager.is_full(KEY)


def test_update_after_the_terminal_one_is_our_bug() -> None:
    manager = ready()
    manager.handle(made("a", TaskState.FINISHED), 0.0)
    with pytest.raises(InvariantError, match="after its terminal one"):
        manager.handle(made("b"), 0.0)
