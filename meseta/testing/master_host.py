"""A simulated master: the real core, a disk that takes its time, sessions through the simulated network."""

from collections.abc import Callable
from typing import Final

from master.core import MasterCore
from master.events import (
    CloseSession,
    MasterConfig,
    MasterEffect,
    MasterInit,
    Persisted,
    PersistRecords,
    Received,
    Send,
    SessionClosed,
    SessionOpened,
    StoredRecord,
)
from meseta.ids import Principal, SessionId
from meseta.log import Log
from meseta.messages import Hello, Message
from meseta.testing.hosts import SEED_BITS, CoreHost
from meseta.testing.network import Network
from meseta.testing.world import World

FSYNC_S: Final = (0.0002, 0.01)  # What a group commit takes, from a good disk to a busy one.


class Disk:
    """The store's file: survives the master. `epoch` rises with each start."""

    def __init__(self) -> None:
        self.epoch = 0
        self._values: dict[tuple[str, str], bytes] = {}

    def write(self, records: tuple[StoredRecord, ...]) -> None:
        """Write all records together."""
        for record in records:
            if record.value is None:
                self._values.pop((record.table, record.key), None)
            else:
                self._values[record.table, record.key] = record.value

    def read(self) -> tuple[StoredRecord, ...]:
        """Return all records."""
        return tuple(StoredRecord(table=table, key=key, value=value) for (table, key), value in self._values.items())


class MasterHost:
    """One incarnation of a master, which listens on `network` until it dies."""

    def __init__(
        self,
        world: World,
        network: Network,
        disk: Disk,
        *,
        config: MasterConfig,
        core_type: type[MasterCore],
        ended: Callable[["MasterHost"], None],
    ) -> None:
        self._world = world
        self._network = network
        self._disk = disk
        self._ended = ended
        disk.epoch += 1
        self._epoch = disk.epoch
        self._written_at_s = world.now
        init = MasterInit(
            config=config,
            seed=world.rng.getrandbits(SEED_BITS),
            epoch=self._epoch,
            records=disk.read(),
            started_s=world.now,
        )
        self.core = core_type(init)
        self._host = CoreHost(
            world,
            self.core,
            self._perform,
            crash=self.crash,
            crash_probability=lambda: network.faults.crash_between_effects,
        )
        world.note(f"master starts epoch {self._epoch}")
        network.server = self
        self._host.arm()

    @property
    def epoch(self) -> int:
        """See `ServerEnd`."""
        return self._epoch

    @property
    def is_alive(self) -> bool:
        """False after a crash."""
        return self._host.is_alive

    def crash(self) -> None:
        """`kill -9`: what was not written is lost, and every session with it."""
        if self._host.is_alive:
            self._world.note("master dies")
            self._host.end()
            self._network.server_died()
            self._ended(self)

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> None:
        """See `ServerEnd`."""
        refusal = self.core.refusal(principal, hello)
        if refusal is None:
            self._host.feed(SessionOpened(session=session, principal=principal, hello=hello))
        else:
            self._network.close_by_server(session, refusal)

    def session_closed(self, session: SessionId, reason: str) -> None:
        """See `ServerEnd`."""
        self._host.feed(SessionClosed(session=session, reason=reason))

    def message_arrived(self, session: SessionId, message: Message) -> None:
        """See `ServerEnd`."""
        self._host.feed(Received(session=session, message=message))

    def _perform(self, effect: MasterEffect) -> None:
        match effect:
            case Send():
                self._network.to_client(effect.session, effect.message)
            case PersistRecords():
                self._persist(effect)
            case CloseSession():
                self._network.close_by_server(effect.session, effect.reason)
            case Log():
                self._world.note(f"master: {effect.phrase} {effect.values}")

    def _persist(self, effect: PersistRecords) -> None:
        """Write in order; a crash before the write leaves the old values."""
        self._written_at_s = max(self._written_at_s, self._world.now + self._world.rng.uniform(*FSYNC_S))

        def written() -> None:
            if self._host.is_alive:
                self._disk.write(effect.records)
                self._host.feed(Persisted(token=effect.token))

        self._world.call_at(self._written_at_s, written)
