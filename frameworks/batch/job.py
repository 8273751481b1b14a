"""A job in the core's memory: its tasks, attempts and slaves, with their indexes. What happens next: `core.py`."""

from collections.abc import Iterator

from frameworks.batch.model import (
    AttemptState,
    AttemptView,
    CleanupOrder,
    CommitOrder,
    Counters,
    JobRecord,
    JobState,
    JobView,
    Listing,
    MapOrder,
    Order,
    OutputLocation,
    ProbeOrder,
    ReduceOrder,
    Sandbox,
    SetupOrder,
    Source,
    TaskKind,
    TaskRecord,
    check_attempt_change,
    check_job_change,
)
from frameworks.batch.splits import Split
from meseta.errors import InvariantError
from meseta.ids import ExecutorId, SlaveId, TaskId
from meseta.resources import Resources

MAX_ATTEMPTS = 4  # Hadoop's mapreduce.map.maxattempts.
BLACKLIST_FAILURES = 3  # Hadoop's mapreduce.job.maxtaskfailures.per.tracker.

# The states of a job in which a task of that kind may be started.
_STATES_BY_KIND = {
    TaskKind.PROBE: (JobState.PROBING, JobState.SETUP, JobState.RUNNING),
    TaskKind.SETUP: (JobState.SETUP,),
    TaskKind.MAP: (JobState.SETUP, JobState.RUNNING),
    TaskKind.REDUCE: (JobState.RUNNING,),
    TaskKind.COMMIT: (JobState.COMMITTING,),
    TaskKind.CLEANUP: (JobState.CLEANING,),
}


class Attempt:
    """One try at a task."""

    def __init__(self, task: "Task", task_id: TaskId, slave_id: SlaveId, hostname: str, now: float) -> None:
        self.task = task
        self.task_id = task_id
        self.slave_id = slave_id
        self.hostname = hostname
        self.heard_at = now
        self.progress = 0.0
        self._state = AttemptState.STAGING

    @property
    def state(self) -> AttemptState:
        return self._state

    def change(self, wanted: AttemptState) -> None:
        """Go to another state. Raises InvalidTransition."""
        check_attempt_change(self.task_id, self._state, wanted)
        self._state = wanted


class Task:
    """One piece of a job's work. `attempts` holds those that have not ended."""

    def __init__(self, kind: TaskKind, index: int) -> None:
        self.kind = kind
        self.index = index
        self.failures = 0
        self.losses = 0
        self.outputs_lost = 0
        self.fetch_failures = 0
        self.unfit: dict[SlaveId, None] = {}  # Of a reduce: slaves that did not reach the output of some map.
        self.winner: TaskId | None = None
        self.slave_id: SlaveId | None = None  # Of the winner.
        self.hostname = ""
        self.location: OutputLocation | None = None
        self.counters: Counters = {}
        self.attempts: dict[TaskId, Attempt] = {}
        self.viewers: dict[SlaveId, None] = {}  # Of a map: the slaves that see its split.
        self.avoid: dict[SlaveId, float] = {}  # Slaves not to be tried before that time.

    def needs_attempt(self) -> bool:
        """True if nobody has done it and nobody who speaks is at it."""
        return self.winner is None and all(one.state is AttemptState.SILENT for one in self.attempts.values())

    def record(self, job_id: str) -> TaskRecord:
        """Return what of the task survives."""
        return TaskRecord(
            job_id=job_id, kind=self.kind, index=self.index, failures=self.failures, outputs_lost=self.outputs_lost,
            winner=self.winner, slave_id=self.slave_id, hostname=self.hostname, location=self.location,
            counters=self.counters,
        )  # fmt: skip

    def restore(self, record: TaskRecord) -> None:
        """Take over what survived."""
        self.failures = record.failures
        self.outputs_lost = record.outputs_lost
        self.winner = record.winner
        self.slave_id = record.slave_id
        self.hostname = record.hostname
        self.location = record.location
        self.counters = record.counters


class JobSlave:
    """A slave as one job knows it."""

    def __init__(self, slave_id: SlaveId, hostname: str) -> None:
        self.slave_id = slave_id
        self.hostname = hostname
        self.listing: Listing | None = None
        self.failures = 0
        self.sees_output: bool | None = None  # None: not tried.
        self.is_lost = False
        self.has_executor = False


class Job:
    """A job and all that belongs to it."""

    def __init__(self, record: JobRecord) -> None:
        self.job_id = record.job_id
        self.spec = record.spec
        self._state = record.state
        self.reason = record.reason
        self.outcome = record.outcome
        self.splits: tuple[Split, ...] = record.splits
        self.task_resources = record.task_resources
        self.setup_slave_id = record.setup_slave_id
        self.submitted_unix_s = record.submitted_unix_s
        self.finished_unix_s = record.finished_unix_s
        self.attempt_count = record.attempts
        self.failed_attempt_count = record.failed_attempts
        self.final_counters = record.counters
        self.slaves: dict[SlaveId, JobSlave] = {}
        self.tasks: dict[tuple[TaskKind, int], Task] = {}
        self.attempts: dict[TaskId, Attempt] = {}  # All that have not ended.
        self.pending: dict[tuple[TaskKind, int], Task] = {}
        self.maps_done = 0
        self.reduces_done = 0
        self.first_probed_at: float | None = None
        self.clean_from = 0.0  # CLEANING: attempts that still run are not waited for after it.
        self.clean_until = 0.0  # CLEANING: then the output folder is left as it is.
        self.waiting = ""
        self.offered = Resources()  # The most that one slave offered while the job was probed.
        if record.splits or record.state not in (JobState.PROBING, JobState.SETUP):
            self.make_tasks()

    # --- State ---

    @property
    def state(self) -> JobState:
        return self._state

    def change(self, wanted: JobState) -> None:
        """Go to another state. Raises InvalidTransition."""
        check_job_change(self.job_id, self._state, wanted)
        self._state = wanted

    @property
    def executor_id(self) -> ExecutorId:
        return ExecutorId(self.job_id)

    @property
    def map_count(self) -> int:
        return len(self.splits)

    def slave(self, slave_id: SlaveId, hostname: str = "") -> JobSlave:
        """Return the slave as this job knows it, new if need be."""
        slave = self.slaves.get(slave_id)
        if slave is None:
            slave = self.slaves[slave_id] = JobSlave(slave_id, hostname)
            if slave_id == self.setup_slave_id:
                slave.sees_output = True
        if hostname:
            slave.hostname = hostname
        return slave

    def is_blacklisted(self, slave: JobSlave) -> bool:
        """True if tasks failed too often there, and there is another slave that is better."""
        if slave.failures < BLACKLIST_FAILURES:
            return False
        return any(one.failures < BLACKLIST_FAILURES and not one.is_lost for one in self.slaves.values())

    def make_tasks(self) -> None:
        """Make the map and reduce tasks, once the splits are known; maps are pending."""
        for index in range(self.map_count):
            self.add_task(TaskKind.MAP, index)
        for index in range(self.spec.reducers):
            self.tasks[TaskKind.REDUCE, index] = Task(TaskKind.REDUCE, index)

    def add_task(self, kind: TaskKind, index: int = 0) -> Task:
        """Make a task and let it be pending."""
        task = self.tasks[kind, index] = Task(kind, index)
        self.pending[kind, index] = task
        return task

    def of_kind(self, kind: TaskKind) -> Iterator[Task]:
        """Yield the tasks of a kind, by index."""
        count = {TaskKind.MAP: self.map_count, TaskKind.REDUCE: self.spec.reducers}.get(kind, 0)
        for index in range(count):
            if (kind, index) in self.tasks:
                yield self.tasks[kind, index]

    def has_all_maps(self) -> bool:
        """True if every map's output is at hand."""
        return self.maps_done == self.map_count

    def settle(self, task: Task) -> None:
        """Let a task be pending if it needs an attempt and may have one, else not. Call it after each change of one."""
        key = (task.kind, task.index)
        may_run = self._state in _STATES_BY_KIND[task.kind] and self.tasks.get(key) is task
        if task.kind is TaskKind.REDUCE:
            may_run = may_run and self.has_all_maps()
        if may_run and task.needs_attempt():
            self.pending[key] = task
        else:
            self.pending.pop(key, None)

    def settle_reduces(self) -> None:
        """Let the reduces be pending if all maps are done, else not."""
        for task in self.of_kind(TaskKind.REDUCE):
            self.settle(task)

    def may_start(self, task: Task, slave: JobSlave, now: float) -> bool:
        """True if a pending task may be tried on the slave."""
        if now < task.avoid.get(slave.slave_id, now) or any(
            one.slave_id == slave.slave_id for one in task.attempts.values()
        ):
            return False
        match task.kind:
            case TaskKind.PROBE:
                return slave.slave_id in task.viewers
            case TaskKind.SETUP:
                may_make = slave.listing is not None and slave.listing.has_output_parent
                return may_make or slave.slave_id == self.setup_slave_id
            case TaskKind.MAP:
                return self._state is JobState.RUNNING and slave.slave_id in task.viewers
            case TaskKind.REDUCE | TaskKind.COMMIT:
                return slave.sees_output is not False
            case TaskKind.CLEANUP:
                others = any(
                    one.task is not task and one.state is not AttemptState.SILENT for one in self.attempts.values()
                )
                return slave.sees_output is True and (now >= self.clean_from or not others)

    def needs_probe(self, slave: JobSlave) -> bool:
        """True if what the slave sees is not known, and matters."""
        if slave.listing is not None or (TaskKind.PROBE, self.slave_index(slave)) in self.tasks:
            return False
        return self._state is JobState.PROBING or any(kind is TaskKind.MAP for kind, _ in self.pending)

    def wants_offers(self) -> bool:
        """True if an offer may be of use."""
        return self._state is JobState.PROBING or bool(self.pending)

    def note_offered(self, offered: Resources) -> None:
        """Remember the most that a slave offered, by resource."""
        names = {**self.offered.scalars, **offered.scalars}
        self.offered = Resources({name: max(self.offered.get(name), offered.get(name)) for name in names})

    def forget_slave(self, slave_id: SlaveId) -> None:
        """The slave is lost: what it sees, and its probe, are not waited for."""
        slave = self.slaves.get(slave_id)
        if slave is None:
            return
        key = (TaskKind.PROBE, self.slave_index(slave))
        self.tasks.pop(key, None)
        self.pending.pop(key, None)
        slave.listing = None
        slave.is_lost = True
        slave.has_executor = False
        for task in self.tasks.values():
            task.viewers.pop(slave_id, None)

    def slave_index(self, slave: JobSlave) -> int:
        """Return the slave's place in the order in which this job met them: the index of its probe."""
        return list(self.slaves).index(slave.slave_id)

    def set_winner(self, task: Task, attempt: Attempt | None) -> None:
        """Say who has done the task; None: its output is lost."""
        change = (attempt is not None) - (task.winner is not None)
        task.winner = None if attempt is None else attempt.task_id
        task.slave_id = None if attempt is None else attempt.slave_id
        task.hostname = "" if attempt is None else attempt.hostname
        if attempt is None:
            task.location = None
            task.counters = {}
        if task.kind is TaskKind.MAP:
            self.maps_done += change
        elif task.kind is TaskKind.REDUCE:
            self.reduces_done += change

    def restore_task(self, record: TaskRecord) -> None:
        """Take over a task that survived a restart."""
        task = self.tasks.get((record.kind, record.index))
        if task is None:
            return
        task.restore(record)
        if task.winner is not None:
            self.maps_done += task.kind is TaskKind.MAP
            self.reduces_done += task.kind is TaskKind.REDUCE
        self.settle(task)

    # --- What tasks are told ---

    def order(self, task: Task) -> Order:
        """Return what an attempt at the task is to do."""
        match task.kind:
            case TaskKind.PROBE:
                return ProbeOrder(inputs=self.spec.inputs, output=self.spec.output)
            case TaskKind.SETUP:
                return SetupOrder(output=self.spec.output)
            case TaskKind.MAP:
                return MapOrder(pieces=self.splits[task.index].pieces)
            case TaskKind.REDUCE:
                return self._reduce_order(task.index)
            case TaskKind.COMMIT:
                winners = tuple(one.winner for one in self.of_kind(TaskKind.REDUCE) if one.winner is not None)
                return CommitOrder(output=self.spec.output, attempt_ids=winners)
            case TaskKind.CLEANUP:
                return CleanupOrder(output=self.spec.output)

    def _reduce_order(self, partition: int) -> ReduceOrder:
        sandboxes: dict[Sandbox, int] = {}
        sources: list[Source] = []
        for task in self.of_kind(TaskKind.MAP):
            location = task.location
            if location is None or task.winner is None:
                raise InvariantError(f"{self.job_id}: a reduce is launched but map {task.index} has no output")
            start, end = location.offsets[partition], location.offsets[partition + 1]
            if start == end:
                continue
            sandbox = Sandbox(address=location.address, container_id=location.container_id)
            index = sandboxes.setdefault(sandbox, len(sandboxes))
            sources.append(Source(task.index, task.winner, index, start, end))
        return ReduceOrder(
            partition=partition, output=self.spec.output, sandboxes=tuple(sandboxes), sources=tuple(sources)
        )

    # --- What is kept and shown ---

    def record(self) -> JobRecord:
        """Return what of the job survives."""
        return JobRecord(
            job_id=self.job_id, spec=self.spec, state=self._state, submitted_unix_s=self.submitted_unix_s,
            reason=self.reason, outcome=self.outcome, splits=self.splits, task_resources=self.task_resources,
            setup_slave_id=self.setup_slave_id, finished_unix_s=self.finished_unix_s, attempts=self.attempt_count,
            failed_attempts=self.failed_attempt_count, counters=self.final_counters,
        )  # fmt: skip

    def counters(self) -> Counters:
        """Return the sums over the maps and reduces that are done, each counted once."""
        if self._state.is_terminal:
            return self.final_counters
        sums: Counters = {}
        for task in (*self.of_kind(TaskKind.MAP), *self.of_kind(TaskKind.REDUCE)):
            for group, values in task.counters.items():
                into = sums.setdefault(group, {})
                for name, value in values.items():
                    into[name] = into.get(name, 0) + value
        sums.setdefault("batch", {}).update(
            {"attempts": self.attempt_count, "failed attempts": self.failed_attempt_count}
        )
        return {group: dict(sorted(values.items())) for group, values in sorted(sums.items())}

    def progress(self, kind: TaskKind) -> float:
        """Return how far the maps or reduces are, 0 to 1."""
        if self._state is JobState.SUCCEEDED:
            return 1.0
        done = self.maps_done if kind is TaskKind.MAP else self.reduces_done
        total = self.map_count if kind is TaskKind.MAP else self.spec.reducers
        if self._state in (JobState.PROBING, JobState.SETUP):
            return 0.0
        best: dict[int, float] = {}
        for attempt in self.attempts.values():
            if attempt.task.kind is kind and attempt.task.winner is None:
                best[attempt.task.index] = max(best.get(attempt.task.index, 0.0), attempt.progress)
        return min(1.0, (done + sum(best.values())) / total) if total else 0.0

    def view(self) -> JobView:
        """Return the job for people."""
        running = tuple(
            AttemptView(
                task_id=one.task_id, kind=one.task.kind, state=one.state, hostname=one.hostname, progress=one.progress
            )
            for one in self.attempts.values()
        )
        is_done = self._state is JobState.SUCCEEDED
        return JobView(
            job_id=self.job_id, name=self.spec.name, user=self.spec.user, state=self._state, output=self.spec.output,
            inputs=self.spec.inputs, reason=self.reason, waiting="" if running else self.waiting,
            map_progress=self.progress(TaskKind.MAP), reduce_progress=self.progress(TaskKind.REDUCE),
            maps_done=self.map_count if is_done else self.maps_done, maps_total=self.map_count,
            reduces_done=self.spec.reducers if is_done else self.reduces_done, reduces_total=self.spec.reducers,
            running=running, attempts=self.attempt_count, failed_attempts=self.failed_attempt_count,
            counters=self.counters(), submitted_unix_s=self.submitted_unix_s, finished_unix_s=self.finished_unix_s,
        )  # fmt: skip

    def check(self) -> None:
        """Compare the indexes with the tasks. Raises InvariantError."""
        live = {one.task_id for task in self.tasks.values() for one in task.attempts.values()}
        if live != set(self.attempts):
            raise InvariantError(f"{self.job_id}: attempts by id and by task differ: {live ^ set(self.attempts)}")
        for key, task in self.pending.items():
            if self.tasks.get(key) is not task or not task.needs_attempt():
                raise InvariantError(f"{self.job_id}: {key} is pending, and done or running")
        if self._state is JobState.RUNNING:
            for kind, done in ((TaskKind.MAP, self.maps_done), (TaskKind.REDUCE, self.reduces_done)):
                if done != sum(task.winner is not None for task in self.of_kind(kind)):
                    raise InvariantError(f"{self.job_id}: {done} {kind} tasks counted as done")
            for task in self.of_kind(TaskKind.MAP):
                if task.needs_attempt() and (task.kind, task.index) not in self.pending:
                    raise InvariantError(f"{self.job_id}: map {task.index} is forgotten")
            is_open = any(kind is TaskKind.REDUCE for kind, _ in self.pending)
            if is_open and not self.has_all_maps():
                raise InvariantError(f"{self.job_id}: reduces are pending before all maps are done")
