"""Mirrors of the master over random histories, while events are late or lost and pages are small.

One mirror hears all at once and must never differ in a task; the other is kept by `FollowerCore` over
bad connections, and must be equal to the master's state whenever all has been delivered.
"""

from collections import deque

import hypothesis.strategies as st
import msgspec
from hypothesis import settings
from hypothesis.stateful import initialize, invariant, rule

from master.events import FollowersChanged, StreamEvent
from meseta.follower_core import (
    Answered,
    Ask,
    Failed,
    FollowerCore,
    FollowerEffect,
    Heard,
    Mirror,
    Page,
    Subscribe,
    task_key,
)
from meseta.messages import Frameworks, GetFrameworks, GetNodes, GetTasks, Nodes, StreamPosition, Tasks
from tests.property.test_master import MasterMachine
from tests.unit.master_builders import Harness

PAGE = 2  # Objects in a page: the snapshot of even a small cluster then takes many.


def ask(harness: Harness, question: GetNodes | GetFrameworks | GetTasks) -> Page:
    """Let an operator ask the master."""
    session = harness.open("operator")
    harness.say(session, msgspec.structs.replace(question, request_id=1))
    (answer,) = harness.take_all(session)
    harness.close(session)
    assert isinstance(answer, Nodes | Frameworks | Tasks)
    return answer


def truth(harness: Harness) -> Mirror:
    """Return the master's state as it is now."""
    mirror = Mirror()
    nodes = ask(harness, GetNodes(request_id=1))
    frameworks = ask(harness, GetFrameworks(request_id=1, include_completed=True))
    tasks = ask(harness, GetTasks(request_id=1, include_completed=True))
    assert isinstance(nodes, Nodes)
    assert isinstance(frameworks, Frameworks)
    assert isinstance(tasks, Tasks)
    mirror.nodes = {node.slave_id: node for node in nodes.nodes}
    mirror.frameworks = {
        str(one.framework_info.id): msgspec.structs.replace(one, waiting=None) for one in frameworks.frameworks
    }
    mirror.tasks = {task_key(task): task for task in tasks.tasks}
    return mirror


class StreamMachine(MasterMachine):
    """A small cluster that is followed."""

    def __init__(self) -> None:
        super().__init__()
        self.core = FollowerCore()
        self.attempt = 0
        self.read_count = 0
        self.wire: deque[tuple[int, StreamEvent]] = deque()  # With the epoch in which each was published.
        self.questions: deque[Ask] = deque()
        self.answers: deque[Answered] = deque()
        self.reference = Mirror()
        self.is_reference_fresh = False

    @initialize()
    def follow(self) -> None:
        self.perform(self.core.tick(self.harness.now))

    # --- What is between master and follower ------------------------------------------------------

    def collect(self) -> None:
        """Put what was published on the wire; the reference hears it at once."""
        for event in self.harness.published[self.read_count :]:
            self.wire.append((self.harness.epoch, event))
            if not isinstance(event, StreamPosition):
                self.reference.apply(event)
        self.read_count = len(self.harness.published)

    def perform(self, effects: list[FollowerEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Subscribe):
                self.attempt = effect.attempt
                self.collect()
                self.wire.clear()
                self.questions.clear()
                self.harness.feed(FollowersChanged(is_followed=True))
                self.collect()
                if not self.is_reference_fresh:
                    self.reference, self.is_reference_fresh = truth(self.harness), True
            elif isinstance(effect, Ask):
                self.questions.append(effect)

    def hear(self, count: int) -> None:
        self.collect()
        for _ in range(min(count, len(self.wire))):
            epoch, event = self.wire.popleft()
            self.perform(
                self.core.handle(Heard(attempt=self.attempt, epoch=epoch, messages=(event,)), self.harness.now)
            )

    def answer(self) -> None:
        """Let the master answer the oldest question; the answer is on its way."""
        if self.questions:
            effect = self.questions.popleft()
            page = ask(self.harness, msgspec.structs.replace(effect.question, limit=PAGE))
            self.answers.append(Answered(attempt=effect.attempt, epoch=self.harness.epoch, page=page))

    # --- Rules ------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 30))
    def hears(self, count: int) -> None:
        self.hear(count)

    @rule()
    def is_answered(self) -> None:
        self.answer()
        if self.answers:
            self.perform(self.core.handle(self.answers.popleft(), self.harness.now))

    @rule()
    def answer_is_late(self) -> None:
        self.answer()

    @rule(index=st.integers(0, 20))
    def event_is_lost(self, index: int) -> None:
        self.collect()
        if index < len(self.wire):
            del self.wire[index]

    @rule()
    def follower_looks_at_the_clock(self) -> None:
        self.perform(self.core.tick(self.harness.now))

    @rule(is_noticed=st.booleans())
    def connection_breaks(self, *, is_noticed: bool) -> None:
        """If nobody else follows, the master goes on without events; else it does not know."""
        self.collect()
        self.wire.clear()
        if is_noticed:
            self.harness.feed(FollowersChanged(is_followed=False))
            self.is_reference_fresh = False
        self.perform(self.core.handle(Failed(attempt=self.attempt, reason="broken"), self.harness.now))

    @rule()
    def master_restarts(self) -> None:
        self.wire.clear()
        self.questions.clear()
        super().master_restarts()
        self.read_count = 0
        self.is_reference_fresh = False
        self.perform(self.core.handle(Failed(attempt=self.attempt, reason="restart"), self.harness.now))

    @rule()
    def catches_up(self) -> None:
        """Once all is delivered for a while, the mirror is equal to the master's state."""
        for _ in range(200):
            self.harness.advance(0.5)
            self.settle()
            self.perform(self.core.tick(self.harness.now))
            self.hear(1_000_000)
            while self.questions or self.answers:
                self.is_answered()
                self.hear(1_000_000)
            if self.core.is_current:
                break
        assert self.core.is_current, "the follower does not recover"
        self.harness.advance(3.0)  # The sums follow.
        self.hear(1_000_000)
        assert self.core.is_current
        expected = truth(self.harness)
        mirror = self.core.mirror
        assert mirror.nodes == expected.nodes
        assert mirror.frameworks == expected.frameworks
        assert mirror.tasks == expected.tasks

    @invariant()
    def no_change_of_a_task_is_forgotten(self) -> None:
        self.core.check()
        self.collect()
        if self.is_reference_fresh:
            assert self.reference.tasks == truth(self.harness).tasks


StreamMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestEventStream = StreamMachine.TestCase
