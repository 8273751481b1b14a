"""A mirror's decisions, one by one: what is kept, applied, dropped, and when all starts over."""

import pytest

from meseta.follower_core import (
    BACKOFF_BASE_S,
    BACKOFF_LIMIT_S,
    BEGIN_LIMIT_S,
    MISSED_POSITIONS,
    SETTLED_S,
    Answered,
    Ask,
    Changed,
    Failed,
    FollowerCore,
    FollowerEffect,
    Heard,
    Outdated,
    Renewed,
    Subscribe,
)
from meseta.messages import (
    Frameworks,
    GetFrameworks,
    GetNodes,
    GetTasks,
    Message,
    NodeChanged,
    Nodes,
    Ping,
    StreamPosition,
    Tasks,
)
from meseta.model import WaitReasons
from tests.property.test_follower import framework, node

EPOCH = 3
INTERVAL_S = 2.0


def position(sequence: int) -> StreamPosition:
    return StreamPosition(sequence=sequence, interval_s=INTERVAL_S)


def changed(sequence: int, version: int, key: str = "s-1") -> NodeChanged:
    return NodeChanged(sequence=sequence, node=node(key, version))


class Follower:
    """A core that has subscribed once."""

    def __init__(self) -> None:
        self.core = FollowerCore()
        self.now = 0.0
        self.attempt = 0
        assert self.tick() == [Subscribe(attempt=1)]

    def tick(self) -> list[FollowerEffect]:
        effects = self.core.tick(self.now)
        self.attempt += sum(isinstance(effect, Subscribe) for effect in effects)
        self.core.check()
        return effects

    def hear(self, *messages: Message, epoch: int = EPOCH) -> list[FollowerEffect]:
        return self.core.handle(Heard(attempt=self.attempt, epoch=epoch, messages=messages), self.now)

    def answer(self, page: Nodes | Frameworks | Tasks, epoch: int = EPOCH) -> list[FollowerEffect]:
        return self.core.handle(Answered(attempt=self.attempt, epoch=epoch, page=page), self.now)

    def fail(self) -> list[FollowerEffect]:
        return self.core.handle(Failed(attempt=self.attempt, reason="broken"), self.now)

    def snapshot(self, sequence: int, version: int = 1) -> list[FollowerEffect]:
        """Answer all questions with one slave, at `sequence`."""
        self.answer(Nodes(request_id=1, nodes=(node("s-1", version),), sequence=sequence))
        self.answer(Frameworks(request_id=2, frameworks=(), sequence=sequence))
        return self.answer(Tasks(request_id=3, tasks=(), sequence=sequence))

    @property
    def hostname(self) -> str:
        return self.core.mirror.nodes["s-1"].hostname


def test_snapshot_is_asked_for_page_by_page_once_the_stream_is_heard() -> None:
    follower = Follower()
    assert follower.hear(position(5)) == [Ask(attempt=1, question=GetNodes(request_id=0))]
    page = Nodes(request_id=1, nodes=(node("s-1", 1),), next="s-1", sequence=5)
    assert follower.answer(page) == [Ask(attempt=1, question=GetNodes(request_id=0, after="s-1"))]
    (ask,) = follower.answer(Nodes(request_id=2, nodes=(), sequence=5))
    assert ask == Ask(attempt=1, question=GetFrameworks(request_id=0, include_completed=True))
    (ask,) = follower.answer(Frameworks(request_id=3, frameworks=(), sequence=5))
    assert ask == Ask(attempt=1, question=GetTasks(request_id=0, include_completed=True))
    assert not follower.core.is_current
    assert follower.answer(Tasks(request_id=4, tasks=(), sequence=5)) == [Renewed(epoch=EPOCH)]
    assert follower.core.is_current
    assert follower.hostname == "v1"


def test_kept_event_older_than_the_page_is_dropped_and_newer_one_applied() -> None:
    follower = Follower()
    follower.hear(position(5), changed(6, version=2))
    assert follower.snapshot(6, version=3) == [Renewed(epoch=EPOCH)]
    assert follower.hostname == "v3"  # The page shows what no event has told yet.
    other = Follower()
    other.hear(position(5))
    other.answer(Nodes(request_id=1, nodes=(node("s-1", 1),), sequence=5))
    other.hear(changed(6, version=2))
    other.answer(Frameworks(request_id=2, frameworks=(), sequence=6))
    assert other.answer(Tasks(request_id=3, tasks=(), sequence=6)) == [Renewed(epoch=EPOCH)]
    assert other.hostname == "v2"


def test_mirror_is_shown_only_when_all_events_have_come_that_a_page_holds() -> None:
    follower = Follower()
    follower.hear(position(5))
    assert follower.snapshot(7, version=3) == []
    assert follower.hear(changed(6, version=2)) == []
    assert follower.hear(changed(7, version=2)) == [Renewed(epoch=EPOCH)]
    assert follower.hostname == "v3"


def test_following_applies_events_and_tells_each() -> None:
    follower = Follower()
    follower.hear(position(5))
    follower.snapshot(5)
    change = changed(6, version=2)
    assert follower.hear(change, position(6)) == [Changed(change=change)]
    assert follower.hostname == "v2"


@pytest.mark.parametrize(
    "message", [changed(7, 2), position(6), position(4), changed(5, 2), Ping(interval_s=1.0, missed_limit=2)]
)
def test_wrong_number_or_foreign_message_starts_over_and_keeps_the_old_state(message: Message) -> None:
    follower = Follower()
    follower.hear(position(5))
    follower.snapshot(5)
    (outdated,) = follower.hear(message)
    assert isinstance(outdated, Outdated)
    assert not follower.core.is_current
    assert follower.hostname == "v1"
    assert follower.hear(changed(6, 2)) == []  # Of the subscription that was given up.
    follower.now = follower.core.next_deadline() or 0.0
    assert follower.tick() == [Subscribe(attempt=2)]
    follower.hear(position(9))
    assert follower.snapshot(9, version=4) == [Renewed(epoch=EPOCH)]
    assert follower.hostname == "v4"


def test_another_epoch_starts_over_even_if_the_number_fits() -> None:
    follower = Follower()
    follower.hear(position(5))
    follower.snapshot(5)
    assert [type(effect) for effect in follower.hear(changed(6, 2), epoch=EPOCH + 1)] == [Outdated]
    assert follower.hostname == "v1"


def test_page_of_another_epoch_starts_over() -> None:
    follower = Follower()
    follower.hear(position(5))
    page = Nodes(request_id=1, nodes=(), sequence=5)
    assert [type(effect) for effect in follower.answer(page, epoch=EPOCH - 1)] == [Outdated]


def test_late_answer_of_an_earlier_attempt_is_ignored() -> None:
    follower = Follower()
    follower.hear(position(5))
    follower.fail()
    follower.now = follower.core.next_deadline() or 0.0
    follower.tick()
    follower.hear(position(8))
    late = Answered(attempt=1, epoch=EPOCH, page=Nodes(request_id=1, nodes=(node("s-9", 1),), sequence=5))
    assert follower.core.handle(late, follower.now) == []
    follower.snapshot(8)
    assert list(follower.core.mirror.nodes) == ["s-1"]


def test_silence_starts_over_in_every_state() -> None:
    follower = Follower()
    assert follower.core.next_deadline() == BEGIN_LIMIT_S
    follower.hear(position(5))
    follower.snapshot(5)
    follower.now = MISSED_POSITIONS * INTERVAL_S
    assert follower.core.next_deadline() == follower.now
    assert [type(effect) for effect in follower.tick()] == [Outdated]


def test_pauses_double_until_a_mirror_has_held() -> None:
    follower = Follower()
    pauses = []
    for _ in range(9):
        follower.fail()
        due = follower.core.next_deadline()
        assert due is not None
        pauses.append(due - follower.now)
        follower.now = due
        follower.tick()
    assert pauses[:3] == pytest.approx([2 * BACKOFF_BASE_S, 4 * BACKOFF_BASE_S, 8 * BACKOFF_BASE_S])
    assert pauses[-1] == pytest.approx(BACKOFF_LIMIT_S)
    follower.hear(position(5))
    follower.snapshot(5)
    follower.now += SETTLED_S
    follower.fail()
    assert follower.core.next_deadline() == follower.now + BACKOFF_BASE_S


def test_what_a_framework_waits_for_is_left_out_of_the_mirror() -> None:
    follower = Follower()
    follower.hear(position(5))
    follower.answer(Nodes(request_id=1, nodes=(), sequence=5))
    view = framework("f-1", 1)
    waiting = type(view)(framework_info=view.framework_info, state=view.state, waiting=WaitReasons(no_slaves=True))
    follower.answer(Frameworks(request_id=2, frameworks=(waiting,), sequence=5))
    follower.answer(Tasks(request_id=3, tasks=(), sequence=5))
    assert follower.core.mirror.frameworks == {"f-1": view}
