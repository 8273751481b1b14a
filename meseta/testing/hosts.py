"""Processes of a simulated cluster: each holds a real core and performs its effects in virtual time."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from meseta.driver_events import (
    OnDisconnected,
    OnOfferRescinded,
    Received,
    ResetSession,
    SchedulerCallback,
    SchedulerEffect,
    SchedulerEvent,
    Send,
    SessionClosed,
    SessionOpened,
    Stop,
    UserCall,
)
from meseta.errors import InvariantError
from meseta.ids import Principal
from meseta.log import Log
from meseta.messages import Hello, Message
from meseta.model import Address, FrameworkInfo
from meseta.resources import Resources
from meseta.scheduler import Scheduler, SchedulerDriver, deliver
from meseta.scheduler_core import SchedulerCore, SchedulerInit
from meseta.testing.machine import Machine
from meseta.testing.network import Network
from meseta.testing.world import Timer, World
from slave.core import SlaveCore
from slave.events import (
    Begin,
    CloseExecutor,
    Exit,
    KillOrphans,
    LaunchContainer,
    MasterConnected,
    MasterDisconnected,
    MasterSaid,
    OrphansKilled,
    Persist,
    PersistSlaveId,
    RemoveCheckpoint,
    SendExecutor,
    SendMaster,
    SendSupervisor,
    SlaveConfig,
    SlaveEffect,
    SlaveEvent,
    SlaveInit,
    StartSupervisor,
    SupervisorLost,
    SupervisorReady,
    SupervisorSaid,
)
from slave.events import ResetSession as SlaveResetSession
from slave.supervisor_messages import FromSupervisor

SEED_BITS = 64


class SimulatedCore(Protocol):
    """A core that can also compare its indices."""

    def handle(self, event: Any, now: float) -> Sequence[Any]:
        """Take one input."""

    def tick(self, now: float) -> Sequence[Any]:
        """Do what is due."""

    def next_deadline(self) -> float | None:
        """Say when `tick` is due."""

    def check(self) -> None:
        """Raise InvariantError if indices differ."""


class CoreHost:
    """One incarnation of a process around a core. A crash ends it, also in the middle of a list of effects."""

    def __init__(
        self,
        world: World,
        core: SimulatedCore,
        perform: Callable[[Any], None],
        *,
        crash: Callable[[], None],
        crash_probability: Callable[[], float],
    ) -> None:
        self._world = world
        self._core = core
        self._perform = perform
        self._crash = crash
        self._crash_probability = crash_probability
        self._waiting: list[Any] = []
        self._is_busy = False
        self._timer: Timer | None = None
        self.is_alive = True

    def feed_ineffective(self, event: Any, allowed: tuple[type, ...]) -> None:
        """Give the core an event that must have no effects but those `allowed`."""
        if not self.is_alive:
            return
        effects = self._core.handle(event, self._world.now)
        obeyed = [type(effect).__name__ for effect in effects if not isinstance(effect, allowed)]
        if obeyed:
            raise InvariantError(f"a message of an outdated master was obeyed: {', '.join(obeyed)}")
        self._do(effects)
        self._arm()

    def feed(self, event: Any) -> None:
        """Give the core an event; from inside an effect: after the present effects."""
        if not self.is_alive:
            return
        self._waiting.append(event)
        if self._is_busy:
            return
        while self._waiting and self.is_alive:
            next_event = self._waiting.pop(0)
            self._do(self._core.handle(next_event, self._world.now))
        self._arm()

    def arm(self) -> None:
        """Arm the timer for what the core wants at its start."""
        self._arm()

    def end(self) -> None:
        """The process is gone."""
        self.is_alive = False
        if self._timer is not None:
            self._timer.cancel()

    def _do(self, effects: Sequence[Any]) -> None:
        self._is_busy = True
        try:
            for effect in effects:
                if self._world.chance(self._crash_probability()):
                    self._crash()
                if not self.is_alive:
                    return
                self._perform(effect)
        finally:
            self._is_busy = False
        self._core.check()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.is_alive:
            return
        deadline = self._core.next_deadline()
        if deadline is not None:
            self._timer = self._world.call_at(deadline, self._tick)

    def _tick(self) -> None:
        if not self.is_alive:
            return
        self._timer = None
        self._do(self._core.tick(self._world.now))
        while self._waiting and self.is_alive:
            self._do(self._core.handle(self._waiting.pop(0), self._world.now))
        self._arm()


class SlaveHost:
    """One incarnation of a slave daemon on its machine."""

    def __init__(
        self,
        world: World,
        network: Network,
        machine: Machine,
        *,
        resources: Resources,
        core_type: type[SlaveCore],
        ended: Callable[["SlaveHost"], None],
    ) -> None:
        self._world = world
        self._network = network
        self.machine = machine
        self._ended = ended
        config = SlaveConfig(
            hostname=machine.name,
            resources=resources,
            address=Address(endpoint=f"tcp://{machine.name}:1"),
            work_dir="/work",
            executor_endpoint="ipc:///none",
            boot_id="boot",
            user="root",
            can_switch_user=True,
        )
        init = SlaveInit(
            config=config,
            seed=world.rng.getrandbits(SEED_BITS),
            slave_id=machine.slave_id,
            records=tuple(machine.records),
            supervisors=machine.live_supervisors(),
        )
        self.core = core_type(init)
        self._host = CoreHost(
            world,
            self.core,
            self._perform,
            crash=self.crash,
            crash_probability=lambda: network.faults.crash_between_effects,
        )
        for name in machine.live_supervisors():
            self._listen(name)
        self._host.feed(Begin())
        if self._host.is_alive:
            self._dial()

    @property
    def is_alive(self) -> bool:
        """False after a crash or an orderly exit."""
        return self._host.is_alive

    def crash(self) -> None:
        """`kill -9` of the daemon."""
        if self._host.is_alive:
            self._world.note(f"{self.machine.name}: slave daemon dies")
            self._stop()

    def supervisor_died(self, name: str) -> None:
        """The daemon's socket to a supervisor breaks."""
        self._host.feed(SupervisorLost(supervisor=name, reason="connection lost"))

    def session_opened(self, epoch: int | None) -> None:
        """See `ClientEnd`."""
        self._host.feed(MasterConnected(epoch=epoch))

    def session_closed(self, reason: str) -> None:
        """See `ClientEnd`: the transport dials again by itself."""
        self._host.feed(MasterDisconnected(reason=reason))
        if self._host.is_alive:
            self._dial()

    def message_arrived(self, message: Message, epoch: int | None) -> None:
        """See `ClientEnd`."""
        self._host.feed(MasterSaid(message=message, epoch=epoch))

    def outdated_message_arrived(self, message: Message, epoch: int) -> None:
        """See `ClientEnd`."""
        self._host.feed_ineffective(MasterSaid(message=message, epoch=epoch), (Log, SlaveResetSession))

    def _stop(self) -> None:
        self._host.end()
        self.machine.disconnect()
        self._network.hang_up(self)
        self._ended(self)

    def _dial(self) -> None:
        self._network.dial(self, Principal("slave"), Hello(kind="slave"))

    def _listen(self, name: str) -> None:
        def hear(report: FromSupervisor) -> None:
            self._host.feed(SupervisorSaid(supervisor=name, report=report))

        self.machine.supervisors[name].report = hear

    def _perform(self, effect: SlaveEffect) -> None:
        machine = self.machine
        match effect:
            case SendMaster():
                self._network.to_server(self, effect.message)
            case Persist():
                machine.records.extend(effect.records)
            case SendSupervisor():
                machine.send(effect.supervisor, effect.message)
            case LaunchContainer():
                machine.send(effect.supervisor, effect.start)
            case PersistSlaveId():
                machine.slave_id = effect.slave_id
            case RemoveCheckpoint():
                machine.slave_id = None
                machine.records.clear()
            case SlaveResetSession():
                self._network.hang_up(self)
                self._host.feed(MasterDisconnected(reason=effect.reason))
                self._dial()
            case StartSupervisor():
                self._world.call_later(Machine.SPAWN_S, self._start_supervisor)
            case KillOrphans():
                self._world.call_later(Machine.SPAWN_S, lambda: self._kill_orphans(effect))
            case Exit():
                self._world.note(f"{machine.name}: slave daemon exits: {effect.message}")
                self._stop()
            case Log():
                self._world.note(f"{machine.name}: {effect.phrase} {effect.values}")
            case SendExecutor() | CloseExecutor():
                pass

    def _start_supervisor(self) -> None:
        if self._host.is_alive:
            name = self.machine.start_supervisor()
            self._listen(name)
            self._host.feed(SupervisorReady(supervisor=name))

    def _kill_orphans(self, effect: KillOrphans) -> None:
        if self._host.is_alive:
            self.machine.kill_orphans(effect.containers)
            self._host.feed(OrphansKilled(supervisor=effect.supervisor))

    def feed(self, event: SlaveEvent) -> None:
        """Give the daemon any other event."""
        self._host.feed(event)


class SimulatedDriver(SchedulerDriver):
    """The driver that a scheduler under simulation gets: the real core, virtual time."""

    def __init__(self, world: World, submit: Callable[[UserCall], None], is_alive: Callable[[], bool]) -> None:
        self._world = world
        self._submit = submit
        self._is_alive = is_alive

    def submit(self, call: UserCall) -> None:
        """See `SchedulerDriver`."""
        self._submit(call)

    def now(self) -> float:
        """Return virtual seconds."""
        return self._world.now

    def call_later(self, delay_s: float, function: Callable[[], object]) -> Timer:
        """Call `function` in virtual time, unless the scheduler's process is gone by then."""
        return self._world.call_later(delay_s, lambda: function() if self._is_alive() else None)


class SchedulerHost:
    """One incarnation of a framework's process: the driver's core and the user's scheduler."""

    def __init__(
        self,
        world: World,
        network: Network,
        *,
        name: str,
        framework_info: FrameworkInfo,
        scheduler: Scheduler,
        core_type: type[SchedulerCore],
        ended: Callable[["SchedulerHost"], None],
    ) -> None:
        self._world = world
        self._network = network
        self.name = name
        self._ended = ended
        self.scheduler = scheduler
        init = SchedulerInit(framework_info=framework_info, seed=world.rng.getrandbits(SEED_BITS))
        self.core = core_type(init)
        self._host = CoreHost(
            world,
            self.core,
            self._perform,
            crash=self.crash,
            crash_probability=lambda: network.faults.crash_between_effects,
        )
        self.driver = SimulatedDriver(world, self.feed, lambda: self._host.is_alive)
        self._host.arm()
        self._dial()

    @property
    def is_alive(self) -> bool:
        """False after a crash or an orderly end."""
        return self._host.is_alive

    def crash(self) -> None:
        """`kill -9` of the framework's process."""
        if self._host.is_alive:
            self._world.note(f"{self.name}: scheduler dies")
            self._stop()

    def feed(self, event: SchedulerEvent) -> None:
        """Give the driver's core an event or a call of the user's."""
        self._host.feed(event)

    def session_opened(self, epoch: int | None) -> None:
        """See `ClientEnd`."""
        self._host.feed(SessionOpened(epoch=epoch))

    def session_closed(self, reason: str) -> None:
        """See `ClientEnd`: the transport dials again by itself."""
        self._host.feed(SessionClosed(reason=reason))
        if self._host.is_alive:
            self._dial()

    def message_arrived(self, message: Message, epoch: int | None) -> None:
        """See `ClientEnd`."""
        self._host.feed(Received(message=message, epoch=epoch))

    def outdated_message_arrived(self, message: Message, epoch: int) -> None:
        """See `ClientEnd`."""
        allowed = (Log, ResetSession, OnDisconnected, OnOfferRescinded)
        self._host.feed_ineffective(Received(message=message, epoch=epoch), allowed)

    def _stop(self) -> None:
        self._host.end()
        self._network.hang_up(self)
        self._ended(self)

    def _dial(self) -> None:
        self._network.dial(self, Principal("operator"), Hello(kind="framework"))

    def _perform(self, effect: SchedulerEffect) -> None:
        match effect:
            case Send():
                self._network.to_server(self, effect.message)
            case ResetSession():
                self._network.hang_up(self)
                self._host.feed(SessionClosed(reason=effect.reason))
                self._dial()
            case Stop():
                self._world.note(f"{self.name}: scheduler ends with {effect.exit_code}")
                self._stop()
            case Log():
                self._world.note(f"{self.name}: {effect.phrase} {effect.values}")
            case _:
                callback: SchedulerCallback = effect
                deliver(callback, self.scheduler, self.driver)
