"""The follower's core against a plain master: pages and events in any interleaving, lost, late, restarted."""

import random

import hypothesis.strategies as st
from hypothesis import given, settings

from meseta.follower_core import Answered, Ask, Change, Failed, FollowerCore, FollowerEffect, Heard, Subscribe
from meseta.ids import FrameworkId, SlaveId, TaskId
from meseta.messages import (
    FrameworkChanged,
    FrameworkRemoved,
    Frameworks,
    GetFrameworks,
    GetNodes,
    GetTasks,
    Message,
    NodeChanged,
    NodeRemoved,
    Nodes,
    StreamPosition,
    TaskChanged,
    TaskRemoved,
    Tasks,
)
from meseta.model import Address, FrameworkInfo, FrameworkView, Node, Task, TaskState
from meseta.resources import Resources

PAGE = 2
KEYS = [f"k{number}" for number in range(7)]
ADDRESS = Address(endpoint="tcp://10.0.0.1:5051")


def node(key: str, version: int) -> Node:
    return Node(
        slave_id=SlaveId(key),
        hostname=f"v{version}",
        state="active",
        address=ADDRESS,
        attributes={},
        total=Resources(),
        used=Resources(),
        offered=Resources(),
        tasks_active=0,
    )


def framework(key: str, version: int) -> FrameworkView:
    info = FrameworkInfo(id=FrameworkId(key), name=f"v{version}", user="alice")
    return FrameworkView(framework_info=info, state="active")


def task(key: str, version: int) -> Task:
    return Task(
        task_id=TaskId(key),
        framework_id=FrameworkId("f"),
        slave_id=SlaveId("s"),
        state=TaskState.RUNNING,
        resources=Resources(),
        name=f"v{version}",
    )


class PlainMaster:
    """Three tables, and a number for each change of them."""

    def __init__(self) -> None:
        self.epoch = 1
        self.sequence = 1
        self.version = 0
        self.nodes: dict[str, Node] = {}
        self.frameworks: dict[str, FrameworkView] = {}
        self.tasks: dict[str, Task] = {}

    def change(self, rng: random.Random) -> Change:
        """Change anything, and return the event."""
        key, is_removal = rng.choice(KEYS), rng.random() < 0.3
        self.version += 1
        self.sequence += 1
        kind = rng.randrange(3)
        if kind == 0:
            if is_removal:
                self.nodes.pop(key, None)
                return NodeRemoved(sequence=self.sequence, slave_id=SlaveId(key))
            self.nodes[key] = node(key, self.version)
            return NodeChanged(sequence=self.sequence, node=self.nodes[key])
        if kind == 1:
            if is_removal:
                self.frameworks.pop(key, None)
                return FrameworkRemoved(sequence=self.sequence, framework_id=FrameworkId(key))
            self.frameworks[key] = framework(key, self.version)
            return FrameworkChanged(sequence=self.sequence, framework=self.frameworks[key])
        if is_removal:
            self.tasks.pop(f"f/{key}", None)
            return TaskRemoved(sequence=self.sequence, framework_id=FrameworkId("f"), task_id=TaskId(key))
        self.tasks[f"f/{key}"] = task(key, self.version)
        return TaskChanged(sequence=self.sequence, task=self.tasks[f"f/{key}"])

    def position(self) -> StreamPosition:
        return StreamPosition(sequence=self.sequence, interval_s=1.0)

    def answer(self, ask: Ask) -> Answered:
        """Return a page as the tables are now."""
        question = ask.question
        tables = (self.nodes, self.frameworks, self.tasks)
        table = tables[(GetNodes, GetFrameworks, GetTasks).index(type(question))]
        keys = sorted(key for key in table if key > question.after)
        page, more = keys[:PAGE], keys[PAGE - 1] if len(keys) > PAGE else None
        answer: Nodes | Frameworks | Tasks
        if isinstance(question, GetNodes):
            answer = Nodes(
                request_id=1, nodes=tuple(self.nodes[key] for key in page), next=more, sequence=self.sequence
            )
        elif isinstance(question, GetFrameworks):
            found = tuple(self.frameworks[key] for key in page)
            answer = Frameworks(request_id=1, frameworks=found, next=more, sequence=self.sequence)
        else:
            answer = Tasks(
                request_id=1, tasks=tuple(self.tasks[key] for key in page), next=more, sequence=self.sequence
            )
        return Answered(attempt=ask.attempt, epoch=self.epoch, page=answer)


class World:
    """The master, the follower, and what is on its way between them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.master = PlainMaster()
        self.core = FollowerCore()
        self.now = 0.0
        self.attempt = 0
        self.wire: list[tuple[int, Message]] = []
        self.questions: list[Ask] = []
        self.answers: list[Answered] = []

    def perform(self, effects: list[FollowerEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Subscribe):
                self.attempt = effect.attempt
                self.wire = [(self.master.epoch, self.master.position())]
                # What was asked for before may still be answered.
            elif isinstance(effect, Ask):
                self.questions.append(effect)
        self.core.check()

    def step(self) -> None:
        """Let one thing happen."""
        rng, core = self.rng, self.core
        self.now += 0.05
        match rng.randrange(20):
            case 0 | 1 | 2 | 3 | 4 | 5:
                self.wire.append((self.master.epoch, self.master.change(rng)))
            case 6:
                self.wire.append((self.master.epoch, self.master.position()))
            case 7 | 8 | 9 | 10:
                self.hear(rng.randint(1, 6))
            case 11 | 12 | 13 if self.questions:
                self.answers.append(self.master.answer(self.questions.pop(0)))
            case 14 | 15 | 16 if self.answers:
                self.perform(core.handle(self.answers.pop(0), self.now))
            case 17 if self.wire and rng.random() < 0.3:
                del self.wire[rng.randrange(len(self.wire))]
            case 18 if rng.random() < 0.1:
                self.restart()
            case _:
                self.perform(core.tick(self.now))

    def hear(self, count: int) -> None:
        heard, self.wire = self.wire[:count], self.wire[count:]
        for epoch, message in heard:
            self.perform(self.core.handle(Heard(attempt=self.attempt, epoch=epoch, messages=(message,)), self.now))

    def restart(self) -> None:
        """Another master takes over, with other tables; the follower notices by itself, or is told."""
        epoch = self.master.epoch
        self.master = PlainMaster()
        self.master.epoch = epoch + 1
        for _ in range(self.rng.randrange(10)):
            self.master.change(self.rng)
        if self.rng.random() < 0.5:
            self.perform(self.core.handle(Failed(attempt=self.attempt, reason="gone"), self.now))
        else:
            self.wire.append((self.master.epoch, self.master.position()))

    def catch_up(self) -> None:
        """Deliver all, with positions as a quiet master sends them."""
        for _ in range(100):
            self.now += 1.0
            self.perform(self.core.tick(self.now))
            self.wire.append((self.master.epoch, self.master.position()))
            while self.wire or self.questions or self.answers:
                self.hear(1_000)
                self.answers += [self.master.answer(question) for question in self.questions]
                self.questions = []
                answers, self.answers = self.answers, []
                for answer in answers:
                    self.perform(self.core.handle(answer, self.now))
            if self.core.is_current:
                return
        raise AssertionError("the follower does not recover")

    def compare(self) -> None:
        mirror, master = self.core.mirror, self.master
        assert mirror.nodes == master.nodes
        assert mirror.frameworks == master.frameworks
        assert mirror.tasks == master.tasks


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_mirror_ends_equal_to_the_master_whatever_was_lost_or_late(seed: int) -> None:
    world = World(seed)
    for _ in range(4):
        for _ in range(60):
            world.step()
        world.catch_up()
        world.compare()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_mirror_is_equal_as_soon_as_it_is_renewed_and_has_heard_all(seed: int) -> None:
    """Nothing is lost here, so that no second snapshot can heal what the first one got wrong."""
    world = World(seed)
    rng = world.rng
    for _ in range(10):
        world.master.change(rng)
    world.perform(world.core.tick(0.0))
    for _ in range(300):
        match rng.randrange(4):
            case 0:
                world.wire.append((1, world.master.change(rng)))
            case 1:
                world.hear(rng.randint(1, 3))
            case 2 if world.questions:
                world.answers.append(world.master.answer(world.questions.pop(0)))
            case _ if world.answers:
                world.perform(world.core.handle(world.answers.pop(0), 0.0))
    world.hear(1_000)
    while world.questions or world.answers:
        world.answers += [world.master.answer(question) for question in world.questions]
        world.questions = []
        world.perform(world.core.handle(world.answers.pop(0), 0.0))
    assert world.attempt == 1
    assert world.core.is_current
    world.compare()
