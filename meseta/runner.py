"""Runs a core in a shell: feeds it events and timers, performs its effects, records its inputs.

The same for every daemon and driver. A recording holds all that a core was told; `replay` feeds
it to a fresh core and compares the effects, so that any crash can be studied where it cannot harm.
"""

import asyncio
import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, Protocol, Self, TypeVar

import msgspec

from meseta.errors import StoreError

_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 8  # Compared, not trusted: 64 bits make a chance match of two effect lists unlikely enough.
_RECORD_LIMIT_BYTES = 64 << 20  # One input; beyond it the file is no recording.

Event = TypeVar("Event")
Effect = TypeVar("Effect")
EventIn_contra = TypeVar("EventIn_contra", contravariant=True)
EffectOut_co = TypeVar("EffectOut_co", covariant=True)


class Core(Protocol[EventIn_contra, EffectOut_co]):
    """What every core offers: decisions without I/O, in monotonic seconds."""

    def handle(self, event: EventIn_contra, now: float) -> Sequence[EffectOut_co]:
        """Take one input and return what is to be done, in order."""

    def tick(self, now: float) -> Sequence[EffectOut_co]:
        """Do what is due at `now` or before."""

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next, None if nothing is due ever."""


class Recorded(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One input of a core: `event` is its MessagePack, empty for a tick."""

    now: float
    event: bytes
    effects_digest: bytes


class Recorder:
    """Writes a core's inputs to a file: first its init value, then each input as it is handled."""

    def __init__(self, path: Path, init: msgspec.Struct) -> None:
        self._file: BinaryIO = path.open("wb")
        self._encoder = msgspec.msgpack.Encoder()
        self._write(self._encoder.encode(init))

    def record(self, now: float, event: object | None, effects: Sequence[object]) -> None:
        """Append one input. Flushed at once: the input that breaks a core must be in the file."""
        encoded = b"" if event is None else self._encoder.encode(event)
        self._write(self._encoder.encode(Recorded(now, encoded, effects_digest(effects))))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(_LENGTH.pack(len(data)) + data)
        self._file.flush()


def effects_digest(effects: Sequence[object]) -> bytes:
    """Return 8 bytes that differ, but for chance, when the effects differ."""
    encoded = msgspec.msgpack.encode(list(effects))
    return hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest()


def read_recording(path: Path) -> Iterator[bytes]:
    """Yield the raw records of a recording; a torn last one (the daemon was killed) is left out.

    Raises:
        StoreError: the file is no recording.
    """
    with path.open("rb") as file:
        while len(header := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(header)
            if length > _RECORD_LIMIT_BYTES:
                raise StoreError(f"{path} is no recording: a record of {length} bytes")
            data = file.read(length)
            if len(data) < length:
                return
            yield data


def replay(
    path: Path,
    init_type: type[Any],
    event_type: Any,  # A union of Structs is no `type` to mypy.
    make_core: Callable[[Any], Core[Any, Any]],
) -> tuple[int, list[int]]:
    """Feed a recording to a fresh core; return how many inputs, and the indices whose effects differ.

    Raises:
        StoreError: the file is no recording of such a core.
    """
    records = read_recording(path)
    events = msgspec.msgpack.Decoder(event_type)
    inputs = msgspec.msgpack.Decoder(Recorded)
    differing: list[int] = []
    count = 0
    try:
        core = make_core(msgspec.msgpack.decode(next(records), type=init_type))
        for record in records:
            item = inputs.decode(record)
            effects = core.handle(events.decode(item.event), item.now) if item.event else core.tick(item.now)
            if effects_digest(effects) != item.effects_digest:
                differing.append(count)
            count += 1
    except (StopIteration, msgspec.DecodeError) as error:
        raise StoreError(f"{path} is no recording of {init_type.__name__}: {error or 'it is empty'}") from error
    return count, differing


class CoreRunner(Generic[Event, Effect]):
    """Drives one core on the running asyncio loop. Effects are performed in the order given.

    An event raised while effects are performed is handled after them, never inside.
    """

    def __init__(
        self,
        core: Core[Event, Effect],
        perform: Callable[[Effect], None],
        *,
        recorder: Recorder | None = None,
    ) -> None:
        self._core = core
        self._perform = perform
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._waiting: list[Event] = []
        self._is_busy = False
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def now(self) -> float:
        """Return the loop's monotonic time in seconds."""
        return self._loop.time()

    def handle(self, event: Event) -> None:
        """Give the core an event, now; from inside an effect: as soon as the present effects are done."""
        if self._is_busy:
            self._waiting.append(event)
            return
        self._step(event)
        while self._waiting:
            self._step(self._waiting.pop(0))
        self._arm()

    def start(self) -> None:
        """Arm the timer for what the core wants at its start."""
        self._arm()

    def close(self) -> None:
        """Stop the timer and the recording; later events are ignored."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._recorder is not None:
            self._recorder.close()

    def _step(self, event: Event | None, now: float | None = None) -> None:
        if self._is_closed:
            return
        moment = self._loop.time() if now is None else now
        self._is_busy = True
        try:
            effects = self._core.tick(moment) if event is None else self._core.handle(event, moment)
            if self._recorder is not None:
                self._recorder.record(moment, event, effects)
            for effect in effects:
                self._perform(effect)
        finally:
            self._is_busy = False

    def _arm(self) -> None:
        if self._is_closed:
            return
        deadline = self._core.next_deadline()
        if self._timer is not None:
            # An earlier timer may stand: it wakes, finds nothing due and arms again. Re-arming for
            # every event would cost more than the rare idle wake-up.
            if deadline is None or deadline >= self._timer_due:
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer_due = deadline
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        deadline = self._core.next_deadline()
        now = self._loop.time()
        if deadline is not None and deadline <= max(now, self._timer_due):
            # The loop may wake within its clock's resolution before the deadline: never below it.
            self._step(None, max(now, deadline))
            while self._waiting:
                self._step(self._waiting.pop(0))
        self._arm()
