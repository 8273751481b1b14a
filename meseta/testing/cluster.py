"""A whole cluster in virtual time: real cores, a faulty network, machines that crash, all from one seed.

`SimulatedCluster(seed, ...).run()` plays a workload under faults, checks the promises after every
step, lets the faults end, and checks that all is at rest. It raises `PromiseBroken`, whose seed
repeats the run exactly.
"""

from collections.abc import Callable

from master.core import MasterCore
from master.events import MasterConfig
from meseta.errors import MesetaError
from meseta.model import Capability, FrameworkInfo, Record
from meseta.resources import Resources
from meseta.scheduler_core import SchedulerCore
from meseta.testing.hosts import SchedulerHost, SlaveHost
from meseta.testing.machine import Machine
from meseta.testing.master_host import Disk, MasterHost
from meseta.testing.network import NO_FAULTS, Faults, Network
from meseta.testing.promises import PromiseBroken, broken_at_rest, broken_for_ever, broken_now
from meseta.testing.workload import Workload, WorkloadStore
from meseta.testing.world import World
from slave.core import SlaveCore
from slave.records import TaskRecord as SlaveTaskRecord

RESTART_S = (0.05, 3.0)  # How soon a keeper starts a daemon again.
REST_LIMIT_S = 900.0  # Longer than any time-out in the plan's hands: by then everything must be settled.
REST_POLL_S = 5.0

SOME_FAULTS = Faults(
    lost=0.01,
    doubled=0.02,
    late=0.02,
    outdated=0.05,
    break_notice_lost=0.2,
    crash_between_effects=0.0005,
    master_crash_s=40.0,
    slave_crash_s=25.0,
    supervisor_crash_s=60.0,
    scheduler_crash_s=40.0,
    session_break_s=15.0,
)


class Cores(Record, frozen=True, kw_only=True):
    """The cores to run; a test replaces one by a subclass with a planted bug."""

    master: type[MasterCore] = MasterCore
    slave: type[SlaveCore] = SlaveCore
    scheduler: type[SchedulerCore] = SchedulerCore


class Plan(Record, frozen=True, kw_only=True):
    """What is simulated. `faults_s`: how long faults go on."""

    slave_count: int = 3
    framework_count: int = 2
    unit_count: int = 30
    slave_resources: Resources = Resources({"cpus": 2000, "mem": 2_048_000})
    task_resources: Resources = Resources({"cpus": 500, "mem": 256_000})
    duration_s: tuple[float, float] = (0.5, 20.0)
    faults: Faults = SOME_FAULTS
    faults_s: float = 90.0
    master: MasterConfig = MasterConfig(
        ping_timeout_s=1.0, max_missed_pings=4, offer_timeout_s=10.0, reregister_timeout_s=60.0
    )


class SimulatedCluster:
    """One run. Two clusters of the same seed, plan and cores do exactly the same."""

    def __init__(self, seed: int, plan: Plan | None = None, cores: Cores | None = None) -> None:
        self.plan = plan or Plan()
        self.cores = cores or Cores()
        self.world = World(seed)
        self.network = Network(self.world, self.plan.faults)
        self.disk = Disk()
        self.machines = [Machine(self.world, f"slave-{index}") for index in range(self.plan.slave_count)]
        self.stores = [WorkloadStore() for _ in range(self.plan.framework_count)]
        self.slaves: dict[str, SlaveHost] = {}
        self.schedulers: dict[int, SchedulerHost] = {}
        self.master: MasterHost | None = None
        self.is_faulty = True
        self.world.after_step.append(self._check)

    def run(self) -> None:
        """Play the plan to its end.

        Raises:
            PromiseBroken: a promise does not hold, or a core found itself broken.
        """
        try:
            self._start()
            self.world.run_until(self.plan.faults_s)
            self._end_faults()
            deadline_s = self.world.now + REST_LIMIT_S
            while not self._is_at_rest() and self.world.now < deadline_s:
                self.world.run_until(self.world.now + REST_POLL_S)
            self._raise_if(broken_at_rest(self.machines, self.stores) or self._unfinished() or self._leftovers())
        except PromiseBroken:
            raise
        except (MesetaError, AssertionError, ValueError, KeyError) as error:
            raise self._broken(f"{type(error).__name__}: {error}") from error

    # --- Starting and crashing ---

    def _start(self) -> None:
        self._start_master()
        for machine in self.machines:
            self._start_slave(machine)
        for index in range(self.plan.framework_count):
            self._start_scheduler(index)
        faults = self.plan.faults
        self._strike_every(faults.master_crash_s, lambda: self.master.crash() if self.master else None)
        self._strike_every(faults.slave_crash_s, self._crash_slave)
        self._strike_every(faults.supervisor_crash_s, self._crash_supervisor)
        self._strike_every(faults.scheduler_crash_s, self._crash_scheduler)
        self._strike_every(faults.session_break_s, self._break_session)

    def _start_master(self) -> None:
        if self.master is None:
            self.master = MasterHost(
                self.world,
                self.network,
                self.disk,
                config=self.plan.master,
                core_type=self.cores.master,
                ended=self._master_ended,
            )
            self.network.release_outdated()

    def _start_slave(self, machine: Machine) -> None:
        if machine.name not in self.slaves:
            host = SlaveHost(
                self.world,
                self.network,
                machine,
                resources=self.plan.slave_resources,
                core_type=self.cores.slave,
                ended=self._slave_ended,
            )
            if host.is_alive:  # It may have crashed within its first event.
                self.slaves[machine.name] = host

    def _start_scheduler(self, index: int) -> None:
        if index in self.schedulers:
            return
        store, name = self.stores[index], f"framework-{index}"
        workload = Workload(
            self.world,
            store,
            name=name,
            unit_count=self.plan.unit_count,
            resources=self.plan.task_resources,
            duration_s=self.plan.duration_s,
            checks_filters=self.plan.faults == NO_FAULTS,
        )
        info = FrameworkInfo(name=name, user="root", id=store.framework_id, capabilities=(Capability.PARTITION_AWARE,))
        self.schedulers[index] = SchedulerHost(
            self.world,
            self.network,
            name=name,
            framework_info=info,
            scheduler=workload,
            core_type=self.cores.scheduler,
            ended=lambda host: self._scheduler_ended(index, host),
        )

    def _master_ended(self, host: MasterHost) -> None:
        self.master = None
        self.world.call_later(self._restart_delay_s(), self._start_master)

    def _slave_ended(self, host: SlaveHost) -> None:
        self.slaves.pop(host.machine.name, None)
        self.world.call_later(self._restart_delay_s(), lambda: self._start_slave(host.machine))

    def _scheduler_ended(self, index: int, host: SchedulerHost) -> None:
        self.schedulers.pop(index, None)
        self.world.call_later(self._restart_delay_s(), lambda: self._start_scheduler(index))

    def _crash_slave(self) -> None:
        if self.slaves:
            self.world.rng.choice(list(self.slaves.values())).crash()

    def _crash_supervisor(self) -> None:
        machine = self.world.rng.choice(self.machines)
        names = machine.live_supervisors()
        if names:
            name = self.world.rng.choice(names)
            self.world.note(f"{name} dies")
            machine.kill_supervisor(name)
            host = self.slaves.get(machine.name)
            if host is not None:
                host.supervisor_died(name)

    def _crash_scheduler(self) -> None:
        if self.schedulers:
            self.world.rng.choice(list(self.schedulers.values())).crash()

    def _break_session(self) -> None:
        sessions = self.network.open_sessions
        if sessions:
            self.network.break_session(self.world.rng.choice(sessions))

    def _strike_every(self, mean_s: float | None, strike: Callable[[], object]) -> None:
        if mean_s is None:
            return

        def struck() -> None:
            if self.is_faulty:
                strike()
                self.world.call_later(self.world.rng.expovariate(1.0 / mean_s), struck)

        self.world.call_later(self.world.rng.expovariate(1.0 / mean_s), struck)

    def _restart_delay_s(self) -> float:
        return self.world.rng.uniform(*RESTART_S)

    def _end_faults(self) -> None:
        """No more faults; each connection breaks once, so that what was lost silently comes out."""
        self.world.note("faults end")
        self.is_faulty = False
        self.network.faults = NO_FAULTS
        for session in self.network.open_sessions:
            self.network.break_session(session)

    # --- Promises ---

    def _check(self) -> None:
        self._raise_if(
            broken_for_ever(self.machines, self.stores)
            or broken_now(self.machines, self.stores, self.plan.task_resources, self.plan.slave_resources)
        )

    def _is_at_rest(self) -> bool:
        return (
            broken_at_rest(self.machines, self.stores) is None and self._unfinished() is None and not self._leftovers()
        )

    def _unfinished(self) -> str | None:
        for index, store in enumerate(self.stores):
            missing = self.plan.unit_count - len(store.finished_units)
            if missing:
                return f"framework-{index}: {missing} of {self.plan.unit_count} tasks never got to run to their end"
        return None

    def _leftovers(self) -> str | None:
        """Return what a core still holds of tasks that are over."""
        for name, host in self.slaves.items():
            held = [record for record in host.core.snapshot() if isinstance(record, SlaveTaskRecord)]
            if held:
                return f"{name} still holds {held[0].task.task_id}"
        return None

    def _raise_if(self, promise: str | None) -> None:
        if promise is not None:
            raise self._broken(promise)

    def _broken(self, promise: str) -> PromiseBroken:
        return PromiseBroken(promise, seed=self.world.seed, moment_s=self.world.now, trace=self.world.trace)
