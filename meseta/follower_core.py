"""A mirror of the master's slaves, frameworks and tasks, kept true by its event stream. No I/O.

The stream is heard first and kept; then the snapshot is asked for, page by page. A page carries the
sequence at which it was taken: kept events that are newer are applied to its objects, others are
dropped. From then on each event must have the number after the last one's. After a gap, a new epoch,
silence or any failure all starts over; until the new snapshot is whole the mirror shows the old state.
"""

from bisect import bisect_left
from collections.abc import Iterable
from enum import Enum
from typing import Final, Protocol

import msgspec

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
from meseta.model import FrameworkView, Node, Record, Task

KEPT_EVENTS_LIMIT: Final = 500_000  # While the snapshot is under way: a master publishes less than that in 20 s.
BEGIN_LIMIT_S: Final = 10.0  # For the first payload after subscribing, and for each page.
MISSED_POSITIONS: Final = 3  # So many intervals without a payload: the connection is dead.
BACKOFF_BASE_S: Final = 0.1
BACKOFF_LIMIT_S: Final = 5.0
SETTLED_S: Final = 10.0  # Followed for this long: the next start is made at once.

Change = NodeChanged | NodeRemoved | FrameworkChanged | FrameworkRemoved | TaskChanged | TaskRemoved
Question = GetNodes | GetFrameworks | GetTasks
Page = Nodes | Frameworks | Tasks

_CHANGES = (NodeChanged, NodeRemoved, FrameworkChanged, FrameworkRemoved, TaskChanged, TaskRemoved)


class _Tagged(Record, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Base: the tag is the class's name."""


# --- Events: what the shell tells. `attempt` is that of the `Subscribe` that it belongs to -----------


class Heard(_Tagged, frozen=True, kw_only=True):
    """A payload of the stream."""

    attempt: int
    epoch: int
    messages: tuple[Message, ...]


class Answered(_Tagged, frozen=True, kw_only=True):
    """A page of the snapshot, and the epoch of the master that sent it."""

    attempt: int
    epoch: int | None
    page: Page


class Failed(_Tagged, frozen=True, kw_only=True):
    """The session, the subscription or a question failed."""

    attempt: int
    reason: str


FollowerEvent = Heard | Answered | Failed


# --- Effects --------------------------------------------------------------------------------------


class Subscribe(_Tagged, frozen=True, kw_only=True):
    """Drop the subscription and all questions there are, and subscribe anew."""

    attempt: int


class Ask(_Tagged, frozen=True, kw_only=True):
    """Ask the master; `request_id` is to be filled in."""

    attempt: int
    question: Question


class Renewed(_Tagged, frozen=True, kw_only=True):
    """The mirror is whole, and may differ from before in anything."""

    epoch: int


class Changed(_Tagged, frozen=True, kw_only=True):
    """The mirror has changed by one event."""

    change: Change


class Outdated(_Tagged, frozen=True, kw_only=True):
    """The mirror shows an old state until it is renewed."""

    reason: str


FollowerEffect = Subscribe | Ask | Renewed | Changed | Outdated


class State(Enum):
    """WAITING to subscribe; HEARING for the first payload; ASKING for pages; FOLLOWING."""

    WAITING = "waiting"
    HEARING = "hearing"
    ASKING = "asking"
    FOLLOWING = "following"


_CHANGES_OF_STATE: Final[dict[State, frozenset[State]]] = {
    State.WAITING: frozenset({State.HEARING}),
    State.HEARING: frozenset({State.ASKING, State.WAITING}),
    State.ASKING: frozenset({State.FOLLOWING, State.WAITING}),
    State.FOLLOWING: frozenset({State.WAITING}),
}


class Mirror:
    """Slaves and frameworks by their ids, tasks by `framework id/task id`; completed ones too. `waiting` is unset."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.frameworks: dict[str, FrameworkView] = {}
        self.tasks: dict[str, Task] = {}

    def apply(self, change: Change) -> None:
        """Take one event."""
        match change:
            case NodeChanged():
                self.nodes[change.node.slave_id] = change.node
            case NodeRemoved():
                self.nodes.pop(change.slave_id, None)
            case FrameworkChanged():
                self.frameworks[str(change.framework.framework_info.id)] = change.framework
            case FrameworkRemoved():
                self.frameworks.pop(change.framework_id, None)
            case TaskChanged():
                self.tasks[task_key(change.task)] = change.task
            case TaskRemoved():
                self.tasks.pop(task_key(change), None)


class _HasTaskId(Protocol):
    @property
    def framework_id(self) -> str: ...
    @property
    def task_id(self) -> str: ...


def task_key(task: _HasTaskId) -> str:
    """Return the key of a task in `Mirror.tasks`, by which the master's pages are ordered."""
    return f"{task.framework_id}/{task.task_id}"


class _Taken:
    """Up to which key each page of one kind went, and at which sequence it was taken."""

    def __init__(self) -> None:
        self._last_keys: list[str] = []  # Of all pages but the last, which has no end.
        self._sequences: list[int] = []

    def add(self, page: Page) -> None:
        self._sequences.append(page.sequence)
        if page.next is not None:
            self._last_keys.append(page.next)

    def at(self, key: str) -> int:
        """Return the sequence at which the state of `key` was taken."""
        return self._sequences[bisect_left(self._last_keys, key)]


class FollowerCore:
    """Use it through `handle`, `tick` and `next_deadline`; read `mirror`. Subscribes at its first tick."""

    def __init__(self) -> None:
        self.mirror = Mirror()
        self.is_current = False  # False: the mirror is empty or shows an old state.
        self._state = State.WAITING
        self._due: float | None = 0.0
        self._attempt = 0
        self._failure_count = 0
        self._epoch = 0
        self._sequence: int | None = None  # Of the last event heard.
        self._interval_s = BEGIN_LIMIT_S
        self._following_since = 0.0
        self._start_over()

    def handle(self, event: FollowerEvent, now: float) -> list[FollowerEffect]:
        """Take one input and return what is to be done, in order."""
        if event.attempt != self._attempt or self._state is State.WAITING:
            return []  # Of a subscription that was given up.
        if isinstance(event, Failed):
            return self._give_up(event.reason, now)
        if isinstance(event, Heard):
            return self._heard(event, now)
        return self._answered(event, now)

    def tick(self, now: float) -> list[FollowerEffect]:
        """Do what is due at `now` or before."""
        if self._due is None or now < self._due:
            return []
        if self._state is not State.WAITING:
            return self._give_up(f"nothing heard in state {self._state.value} for too long", now)
        self._attempt += 1
        self._start_over()
        self._change(State.HEARING)
        self._due = now + BEGIN_LIMIT_S
        return [Subscribe(attempt=self._attempt)]

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next."""
        return self._due

    def check(self) -> None:
        """Every state has a deadline: a follower that waits for nothing would wait for ever."""
        assert self._due is not None, f"state {self._state.value} has no deadline"

    # --- Private ----------------------------------------------------------------------------------

    def _change(self, state: State) -> None:
        assert state in _CHANGES_OF_STATE[self._state], f"{self._state} does not become {state}"
        self._state = state

    def _start_over(self) -> None:
        self._sequence = None
        self._kept: list[Change] = []
        self._fresh = Mirror()
        self._taken = {Nodes: _Taken(), Frameworks: _Taken(), Tasks: _Taken()}
        self._taken_up_to = 0  # The highest sequence of a page.
        self._has_all_pages = False

    def _give_up(self, reason: str, now: float) -> list[FollowerEffect]:
        was_settled = self._state is State.FOLLOWING and now - self._following_since >= SETTLED_S
        self._failure_count = 0 if was_settled else self._failure_count + 1
        self._change(State.WAITING)
        self._start_over()
        delay_s = min(BACKOFF_LIMIT_S, BACKOFF_BASE_S * float(1 << min(self._failure_count, 16)))
        self._due = now + (BACKOFF_BASE_S if was_settled else delay_s)
        self.is_current = False
        return [Outdated(reason=reason)]

    def _heard(self, event: Heard, now: float) -> list[FollowerEffect]:
        if self._sequence is not None and event.epoch != self._epoch:
            return self._give_up(f"epoch {event.epoch} follows {self._epoch}: another master", now)
        self._epoch = event.epoch
        effects: list[FollowerEffect] = []
        for message in event.messages:
            gap = self._note(message)
            if gap is not None:
                return effects + self._give_up(gap, now)
            if not isinstance(message, StreamPosition) and isinstance(message, _CHANGES):
                if self._state is State.FOLLOWING:
                    self.mirror.apply(message)
                    effects.append(Changed(change=message))
                else:
                    self._kept.append(message)
        if self._state is State.HEARING:
            if self._sequence is None:
                return effects
            self._change(State.ASKING)
            self._due = now + BEGIN_LIMIT_S
            effects.append(Ask(attempt=self._attempt, question=GetNodes(request_id=0)))
        elif self._state is State.FOLLOWING:
            self._due = now + MISSED_POSITIONS * self._interval_s
        elif len(self._kept) > KEPT_EVENTS_LIMIT:
            return self._give_up(f"over {KEPT_EVENTS_LIMIT} events came before the snapshot was whole", now)
        elif self._has_all_pages:
            effects += self._try_to_finish(now)
        return effects

    def _note(self, message: Message) -> str | None:
        """Take note of a message's number; return what is wrong with it."""
        if isinstance(message, StreamPosition):
            expected, self._interval_s = self._sequence, message.interval_s
        elif isinstance(message, _CHANGES):
            expected = None if self._sequence is None else self._sequence + 1
        else:
            return f"{type(message).__name__} has no place in an event stream"
        if expected is not None and message.sequence != expected:
            return f"gap: event {message.sequence} came, {expected} was expected"
        self._sequence = message.sequence
        return None

    def _answered(self, event: Answered, now: float) -> list[FollowerEffect]:
        page = event.page
        if self._state is not State.ASKING:
            return []
        if event.epoch != self._epoch:
            return self._give_up(f"a page of epoch {event.epoch} came, {self._epoch} is heard", now)
        self._due = now + BEGIN_LIMIT_S
        self._taken[type(page)].add(page)
        self._taken_up_to = max(self._taken_up_to, page.sequence)
        question: Question | None
        after = page.next or ""
        if isinstance(page, Nodes):
            self._fresh.nodes |= {node.slave_id: node for node in page.nodes}
            question = GetNodes(request_id=0, after=after) if after else _ask_frameworks("")
        elif isinstance(page, Frameworks):
            self._fresh.frameworks |= {str(one.framework_info.id): _lasting(one) for one in page.frameworks}
            question = _ask_frameworks(after) if after else _ask_tasks("")
        else:
            self._fresh.tasks |= {task_key(task): task for task in page.tasks}
            question = _ask_tasks(after) if after else None
        if question is not None:
            return [Ask(attempt=self._attempt, question=question)]
        self._has_all_pages = True
        return self._try_to_finish(now)

    def _try_to_finish(self, now: float) -> list[FollowerEffect]:
        """Show the snapshot, once all events have come that some of its pages hold already and others do not."""
        assert self._sequence is not None, "pages are asked for after the first event"
        if self._sequence < self._taken_up_to:
            return []
        for change in self._newer(self._kept):
            self._fresh.apply(change)
        self.mirror = self._fresh
        self._change(State.FOLLOWING)
        self._following_since = now
        self._due = now + MISSED_POSITIONS * self._interval_s
        self.is_current = True
        self._kept = []
        return [Renewed(epoch=self._epoch)]

    def _newer(self, kept: Iterable[Change]) -> Iterable[Change]:
        for change in kept:
            kind, key = _place(change)
            if change.sequence > self._taken[kind].at(key):
                yield change


def _ask_frameworks(after: str) -> GetFrameworks:
    return GetFrameworks(request_id=0, after=after, include_completed=True)


def _ask_tasks(after: str) -> GetTasks:
    return GetTasks(request_id=0, after=after, include_completed=True)


def _lasting(view: FrameworkView) -> FrameworkView:
    """Return a view as events show it: what a framework waits for changes by itself, without an event."""
    return view if view.waiting is None else msgspec.structs.replace(view, waiting=None)


def _place(change: Change) -> tuple[type[Page], str]:
    """Return in which pages an object is, and by which key."""
    match change:
        case NodeChanged():
            return Nodes, change.node.slave_id
        case NodeRemoved():
            return Nodes, change.slave_id
        case FrameworkChanged():
            return Frameworks, str(change.framework.framework_info.id)
        case FrameworkRemoved():
            return Frameworks, change.framework_id
        case TaskChanged():
            return Tasks, task_key(change.task)
        case TaskRemoved():
            return Tasks, task_key(change)
