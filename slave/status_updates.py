"""The StatusUpdateManager: every task's updates in order, kept until they are acknowledged.

One stream for each task; only its oldest update is on its way, re-sent with a growing delay. What
is made is written before it is sent, and a stream ends with the acknowledgement of its terminal
update (Mesos's protocol of reliable updates).
"""

from collections import deque

import msgspec

from meseta.errors import InvariantError
from meseta.ids import FrameworkId, StatusUuid, TaskId
from meseta.messages import StatusUpdate
from meseta.model import TaskStatus
from meseta.timers import Timers
from slave.events import Persist, SendMaster
from slave.records import AcknowledgedRecord, CheckpointRecord, TaskDroppedRecord, UpdateRecord

RETRY_BASE_S = 10.0  # Mesos's figures: most losses heal by registering again, which re-sends at once.
RETRY_LIMIT_S = 600.0
STREAM_LIMIT = 1000  # Updates that wait in one stream; an executor that makes more must wait.
SEEN_LIMIT = 100  # Uuids remembered in one stream, to know an executor's repetition.

Key = tuple[FrameworkId, TaskId]


class _Value(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag=True):
    """Base: the tag is the class's name."""


class UpdateMade(_Value, frozen=True, kw_only=True):
    """A new update with a uuid."""

    framework_id: FrameworkId
    status: TaskStatus


class UpdateAcknowledged(_Value, frozen=True, kw_only=True):
    """The framework has it."""

    framework_id: FrameworkId
    task_id: TaskId
    uuid: StatusUuid


class MasterReady(_Value, frozen=True, kw_only=True):
    """The slave is registered: send what waits, at once."""


class MasterGone(_Value, frozen=True, kw_only=True):
    """There is nobody to send to."""


class StreamDropped(_Value, frozen=True, kw_only=True):
    """Nobody will acknowledge: the framework is gone."""

    framework_id: FrameworkId
    task_id: TaskId


class StreamEnded(_Value, frozen=True, kw_only=True):
    """Effect: the task's terminal update is acknowledged."""

    framework_id: FrameworkId
    task_id: TaskId


UpdateEvent = UpdateMade | UpdateAcknowledged | MasterReady | MasterGone | StreamDropped
UpdateEffect = Persist | SendMaster | StreamEnded


class _Stream:
    __slots__ = ("attempt", "is_closed", "pending", "seen")

    def __init__(self) -> None:
        self.pending: deque[TaskStatus] = deque()
        self.seen: dict[StatusUuid, None] = {}
        self.attempt = 0
        self.is_closed = False  # A terminal update is in it: nothing may follow.

    def append(self, status: TaskStatus, uuid: StatusUuid) -> None:
        self.pending.append(status)
        self.seen[uuid] = None
        if len(self.seen) > SEEN_LIMIT:
            del self.seen[next(iter(self.seen))]
        self.is_closed = status.state.is_terminal


class StatusUpdateManager:
    """A core; see the module."""

    def __init__(self) -> None:
        self._streams: dict[Key, _Stream] = {}
        self._timers: Timers[Key] = Timers()
        self._is_ready = False

    def handle(self, event: UpdateEvent, now: float) -> list[UpdateEffect]:
        """Take one input and return what is to be done, in order."""
        match event:
            case UpdateMade():
                return self._on_made(event, now)
            case UpdateAcknowledged():
                return self._on_acknowledged(event, now)
            case MasterReady():
                return self._on_ready(now)
            case MasterGone():
                self._is_ready = False
                self._timers.clear()
            case StreamDropped():
                self._drop((event.framework_id, event.task_id))
        return []

    def tick(self, now: float) -> list[UpdateEffect]:
        """Send again what is due."""
        return [self._send(key, self._streams[key], now) for key in self._timers.pop_due(now)]

    def next_deadline(self) -> float | None:
        """Return when the next update is to be sent again."""
        return self._timers.next_due()

    def knows(self, key: Key, uuid: StatusUuid) -> bool:
        """True for an update that is in the task's stream, or was there lately."""
        stream = self._streams.get(key)
        return stream is not None and uuid in stream.seen

    def is_full(self, key: Key) -> bool:
        """True if the task's stream takes no more updates but a terminal one."""
        stream = self._streams.get(key)
        return stream is not None and len(stream.pending) >= STREAM_LIMIT

    def pending(self, key: Key) -> tuple[TaskStatus, ...]:
        """Return the task's updates that are not acknowledged, oldest first."""
        stream = self._streams.get(key)
        return () if stream is None else tuple(stream.pending)

    def recover(self, record: CheckpointRecord) -> Key | None:
        """Take one record of the checkpoint; return the task's key if its stream has ended with it."""
        if isinstance(record, UpdateRecord) and record.status.uuid is not None:
            self._stream((record.framework_id, record.status.task_id)).append(record.status, record.status.uuid)
        elif isinstance(record, AcknowledgedRecord):
            key = (record.framework_id, record.task_id)
            return key if self._pop_head(key, record.uuid) else None
        elif isinstance(record, TaskDroppedRecord):
            self._drop((record.framework_id, record.task_id))
            return (record.framework_id, record.task_id)
        return None

    def check(self) -> None:
        """Raise InvariantError if what is kept twice differs."""
        for key, stream in self._streams.items():
            if any(status.state.is_terminal for status in list(stream.pending)[:-1]):
                raise InvariantError(f"updates follow a terminal one in the stream of task {key[1]}")
            if stream.is_closed and not stream.pending:
                raise InvariantError(f"the stream of task {key[1]} has ended and is still there")
            if self._is_ready and bool(stream.pending) != (key in self._timers):
                raise InvariantError(f"task {key[1]} has {len(stream.pending)} updates to send and a wrong timer")

    def _on_made(self, event: UpdateMade, now: float) -> list[UpdateEffect]:
        key = (event.framework_id, event.status.task_id)
        uuid = event.status.uuid
        assert uuid is not None, f"update of task {event.status.task_id} has no uuid"
        stream = self._stream(key)
        if stream.is_closed:
            raise InvariantError(f"task {key[1]} has an update after its terminal one")
        stream.append(event.status, uuid)
        record = UpdateRecord(framework_id=event.framework_id, status=event.status)
        effects: list[UpdateEffect] = [Persist(records=(record,))]
        if self._is_ready and len(stream.pending) == 1:
            effects.append(self._send(key, stream, now))
        return effects

    def _on_acknowledged(self, event: UpdateAcknowledged, now: float) -> list[UpdateEffect]:
        key = (event.framework_id, event.task_id)
        stream = self._streams.get(key)
        if stream is None or not stream.pending or stream.pending[0].uuid != event.uuid:
            return []  # Acknowledged before; the framework got it twice.
        has_ended = self._pop_head(key, event.uuid)
        record = AcknowledgedRecord(framework_id=event.framework_id, task_id=event.task_id, uuid=event.uuid)
        effects: list[UpdateEffect] = [Persist(records=(record,))]
        if has_ended:
            effects.append(StreamEnded(framework_id=event.framework_id, task_id=event.task_id))
        elif stream.pending and self._is_ready:
            effects.append(self._send(key, stream, now))
        else:
            self._timers.cancel(key)
        return effects

    def _on_ready(self, now: float) -> list[UpdateEffect]:
        self._is_ready = True
        effects: list[UpdateEffect] = []
        for key, stream in self._streams.items():
            stream.attempt = 0
            if stream.pending:
                effects.append(self._send(key, stream, now))
        return effects

    def _send(self, key: Key, stream: _Stream, now: float) -> SendMaster:
        delay_s = min(RETRY_BASE_S * 2.0**stream.attempt, RETRY_LIMIT_S)
        stream.attempt = min(stream.attempt + 1, 32)
        self._timers.set(key, now + delay_s)
        status = stream.pending[0]
        newest = stream.pending[-1].state
        latest_state = newest if newest is not status.state else None
        return SendMaster(message=StatusUpdate(status=status, framework_id=key[0], latest_state=latest_state))

    def _stream(self, key: Key) -> _Stream:
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream()
        return stream

    def _pop_head(self, key: Key, uuid: StatusUuid) -> bool:
        """Take an acknowledged update out; True if the stream has ended with it."""
        stream = self._streams.get(key)
        if stream is None or not stream.pending or stream.pending[0].uuid != uuid:
            return False
        status = stream.pending.popleft()
        stream.attempt = 0
        if status.state.is_terminal:
            self._drop(key)
            return True
        return False

    def _drop(self, key: Key) -> None:
        self._streams.pop(key, None)
        self._timers.cancel(key)
