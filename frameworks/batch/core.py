"""The batch framework's job scheduler: events in, effects out, no I/O.

A job is probed (which slaves see its inputs?), set up (its output folder is made), run (maps, then
reduces when all maps are done), and committed. Jobs take offers in the order in which they were
submitted; what one leaves over is the next one's.

A finished map's output lies on its slave and may be lost with it. The slave's loss is told by the
master only after its pings have gone unanswered, so a reduce that cannot fetch says so, and the maps are
done again at once. In the same way an executor that sends no heartbeat for `SILENT_AFTER_S` makes
its attempts silent: others are started beside them, and the first to finish wins.
"""

import random
from collections.abc import Iterator

import msgspec

from frameworks.batch.events import (
    Acknowledge,
    Answer,
    Decline,
    Disconnected,
    Effect,
    EndExecutor,
    Event,
    ForgetJob,
    HeartbeatReceived,
    JobChanged,
    JobSaved,
    KillAttempt,
    KillJob,
    Launch,
    LaunchItem,
    OffersReceived,
    Reconcile,
    Registered,
    Revive,
    SaveJob,
    SlaveWasLost,
    StatusReceived,
    SubmitJob,
    Suppress,
)
from frameworks.batch.job import Attempt, Job, JobSlave, Task
from frameworks.batch.lifecycle import Lifecycle
from frameworks.batch.model import (
    AttemptState,
    JobRecord,
    JobState,
    JobView,
    Report,
    TaskKind,
    TaskRecord,
    decode_report,
)
from meseta.errors import DecodeError
from meseta.ids import IdSource, SlaveId, TaskId
from meseta.log import WARNING, Log
from meseta.model import Offer, Reason, TaskState, TaskStatus
from meseta.resources import Resources

# 45 MiB resident; its cpu time is that of its workers' tasks. The slave bounds the executor's container by the sum of
# this and the tasks' resources.
EXECUTOR_RESOURCES = Resources({"mem": 64_000})
SMALL_TASK_RESOURCES = Resources({"cpus": 100, "mem": 64_000})  # Probes, set-up, commit, clean-up.
REVIEW_INTERVAL_S = 1.0
SILENT_AFTER_S = 10.0  # Ten heartbeats.
SUSPECT_FOR_S = 30.0  # A slave with a silent executor is not tried, unless it speaks again.
ADOPT_FOR_S = 2.0  # After a restart: attempts that still run are reported within it, and adopted.
FINISHED_JOBS_KEPT = 200
ACTIVE_JOBS_LIMIT = 1000

_KIND_BY_NAME = {kind.value: kind for kind in TaskKind}
_SMALL_KINDS = (TaskKind.PROBE, TaskKind.SETUP, TaskKind.COMMIT, TaskKind.CLEANUP)
_LOST_STATES = (
    TaskState.LOST,
    TaskState.DROPPED,
    TaskState.UNREACHABLE,
    TaskState.GONE,
    TaskState.GONE_BY_OPERATOR,
    TaskState.UNKNOWN,
)
_LOST_REASONS = (
    Reason.EXECUTOR_TERMINATED,
    Reason.EXECUTOR_REREGISTRATION_TIMEOUT,
    Reason.SUPERVISOR_TERMINATED,
    Reason.SLAVE_RESTARTED,
)


class BatchInit(msgspec.Struct, frozen=True):
    """What the core starts with: a seed, the clock's offset, and what an earlier daemon left."""

    seed: int
    unix_offset_s: float  # Wall clock minus monotonic clock.
    jobs: tuple[JobRecord, ...] = ()
    tasks: tuple[TaskRecord, ...] = ()


class BatchCore:
    """Schedules jobs; see the module."""

    def __init__(self, init: BatchInit) -> None:
        self._rng = random.Random(init.seed)
        self._ids = IdSource(self._rng)
        self._life = Lifecycle(init.unix_offset_s)
        self._jobs: dict[str, Job] = {}
        self._submitting: dict[str, int] = {}  # The requests of jobs whose records are not durable yet.
        self._suspects: dict[SlaveId, float] = {}
        self._review_at: float | None = None
        self._hold_until = 0.0
        self._is_connected = False
        self._is_suppressed = False
        self._must_adopt = False
        self._restore(init)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what is to be done."""
        match event:
            case OffersReceived():
                for offer in event.offers:
                    self._use(offer, now)
            case StatusReceived():
                self._on_status(event.status, now)
                if event.status.uuid is not None:
                    status = msgspec.structs.replace(event.status, data=b"", message="")
                    self._life.effects.append(Acknowledge(status=status))
            case HeartbeatReceived():
                self._on_heartbeat(event, now)
            case SlaveWasLost():
                self._on_slave_lost(event.slave_id, now)
            case Registered():
                self._on_registered(now)
            case Disconnected():
                self._is_connected = False
            case SubmitJob():
                self._on_submit(event)
            case JobSaved():
                self._on_saved(event.job_id)
            case KillJob():
                self._on_kill(event, now)
        return self._end_step(now)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        if self._review_at is not None and self._review_at <= now:
            self._review(now)
        return self._end_step(now)

    def next_deadline(self) -> float | None:
        """Return when to tick."""
        return self._review_at

    def views(self) -> list[JobView]:
        """Return all jobs for people, oldest first."""
        return [job.view() for job_id, job in self._jobs.items() if job_id not in self._submitting]

    def view(self, job_id: str) -> JobView | None:
        """Return one job for people."""
        return self._jobs[job_id].view() if job_id in self._jobs and job_id not in self._submitting else None

    def job(self, job_id: str) -> Job:
        """Return a job, for the shell that packs its code. Raises KeyError."""
        return self._jobs[job_id]

    def check(self) -> None:
        """Compare all indexes. Raises InvariantError."""
        for job in self._jobs.values():
            job.check()

    # --- Steps --------------------------------------------------------------------------------------

    def _restore(self, init: BatchInit) -> None:
        for record in sorted(init.jobs, key=lambda one: one.submitted_unix_s):
            self._jobs[record.job_id] = Job(record)
        for task in init.tasks:
            if task.job_id in self._jobs:
                self._jobs[task.job_id].restore_task(task)
        for job in self._active():
            self._must_adopt = True
            job.settle_reduces()
            if job.state is JobState.SETUP:
                job.add_task(TaskKind.SETUP)
            elif job.state is JobState.COMMITTING:
                job.add_task(TaskKind.COMMIT)
            elif job.state is JobState.RUNNING and job.reduces_done == job.spec.reducers:
                job.change(JobState.COMMITTING)
                job.add_task(TaskKind.COMMIT)

    def _active(self) -> Iterator[Job]:
        return (
            job for job_id, job in self._jobs.items() if not job.state.is_terminal and job_id not in self._submitting
        )

    def _end_step(self, now: float) -> list[Effect]:
        is_active = any(True for _ in self._active())
        wants = self._is_connected and any(job.wants_offers() for job in self._active())
        life = self._life
        if wants and (life.must_revive or self._is_suppressed) and now >= self._hold_until:
            self._is_suppressed = False
            life.must_revive = False
            life.effects.append(Revive())
        elif self._is_connected and not wants and not self._is_suppressed:
            self._is_suppressed = True
            life.effects.append(Suppress())
        if is_active:
            # Everything that waits for a time of its own has a gate; the rest is looked at each second.
            times = [now + REVIEW_INTERVAL_S, *life.gates]
            if self._review_at is not None:
                times.append(self._review_at)
            self._review_at = max(now, min(times))
        else:
            self._review_at = None
            life.gates.clear()
        effects = life.effects
        life.effects = []
        return effects

    def _review(self, now: float) -> None:
        self._review_at = None
        gates = self._life.gates
        if any(gate <= now for gate in gates):
            self._life.gates = [gate for gate in gates if gate > now]
            self._life.must_revive = True
        for slave_id in [slave_id for slave_id, until in self._suspects.items() if until <= now]:
            del self._suspects[slave_id]
            self._life.must_revive = True
        for job in list(self._active()):
            if self._is_connected:
                for attempt in list(job.attempts.values()):
                    if attempt.state is not AttemptState.SILENT and now >= attempt.heard_at + SILENT_AFTER_S:
                        self._silence(job, attempt, now)
            self._life.review(job, now)
        self._forget_old()

    def _silence(self, job: Job, attempt: Attempt, now: float) -> None:
        attempt.change(AttemptState.SILENT)
        job.settle(attempt.task)
        self._suspects[attempt.slave_id] = now + SUSPECT_FOR_S
        self._life.must_revive = True
        values = {"attempt": str(attempt.task_id), "hostname": attempt.hostname}
        self._life.effects.append(Log(WARNING, "attempt is silent", {**values, "silent_s": now - attempt.heard_at}))
        self._life.effects.append(JobChanged(job_id=job.job_id))

    def _forget_old(self) -> None:
        finished = [job for job in self._jobs.values() if job.state.is_terminal]
        for job in finished[: max(0, len(finished) - FINISHED_JOBS_KEPT)]:
            del self._jobs[job.job_id]
            self._life.effects.append(ForgetJob(job_id=job.job_id))

    # --- Clients ------------------------------------------------------------------------------------

    def _on_submit(self, event: SubmitJob) -> None:
        if sum(True for _ in self._active()) + len(self._submitting) >= ACTIVE_JOBS_LIMIT:
            error = f"{ACTIVE_JOBS_LIMIT} jobs run or wait already; submit again when one has ended"
            self._life.effects.append(Answer(request_id=event.request_id, error=error))
            return
        for other in self._active():
            if other.spec.output == event.spec.output:
                error = f"output folder {event.spec.output} is that of {other.job_id}; name a new one with -o"
                self._life.effects.append(Answer(request_id=event.request_id, error=error))
                return
        record = JobRecord(
            job_id=self._ids.new("job"), spec=event.spec, state=JobState.PROBING, submitted_unix_s=event.unix_s
        )
        self._jobs[record.job_id] = Job(record)
        self._submitting[record.job_id] = event.request_id
        self._life.effects.append(SaveJob(record=record, is_new=True))

    def _on_saved(self, job_id: str) -> None:
        request_id = self._submitting.pop(job_id, None)
        if request_id is not None:
            self._life.must_revive = True
            self._life.effects.append(Answer(request_id=request_id, job_id=job_id))

    def _on_kill(self, event: KillJob, now: float) -> None:
        job = self._jobs.get(event.job_id)
        error = ""
        if job is None or event.job_id in self._submitting:
            error = f"there is no job {event.job_id}"
        elif job.state.is_terminal:
            error = f"{event.job_id} has ended already: {job.state}"
        elif job.state is JobState.COMMITTING:
            error = f"{event.job_id} is moving its output into place and cannot be killed any more"
        elif job.state is not JobState.CLEANING:
            self._life.abandon(job, JobState.KILLED, "killed on request", now)
        self._life.effects.append(Answer(request_id=event.request_id, job_id=event.job_id, error=error))

    # --- The master ---------------------------------------------------------------------------------

    def _on_registered(self, now: float) -> None:
        self._is_connected = True
        self._life.effects.append(Reconcile())
        for job in self._active():
            for attempt in job.attempts.values():
                attempt.heard_at = now
            if self._must_adopt and job.state is JobState.CLEANING:
                self._life.resume_cleaning(job, now)
        if self._must_adopt:
            self._must_adopt = False
            self._hold_until = now + ADOPT_FOR_S
            self._life.gates.append(self._hold_until)
        self._is_suppressed = False
        self._life.must_revive = True

    def _on_slave_lost(self, slave_id: SlaveId, now: float) -> None:
        for job in list(self._active()):
            for attempt in [one for one in job.attempts.values() if one.slave_id == slave_id]:
                self._life.ended(job, attempt, AttemptState.LOST, Report(error="its slave was lost"), now)
            if job.state.is_terminal:
                continue
            job.forget_slave(slave_id)
            self._life.lose_slave_outputs(job, slave_id, now)

    def _on_heartbeat(self, event: HeartbeatReceived, now: float) -> None:
        job = self._jobs.get(event.heartbeat.job_id)
        if job is None or job.state.is_terminal:
            # It outlived its job: the daemon was down when the job ended, or the order to end was lost.
            self._life.effects.append(EndExecutor(executor_id=event.executor_id, slave_id=event.slave_id))
            return
        self._heard_from(event.slave_id)
        slave = job.slave(event.slave_id)
        slave.has_executor = True
        slave.is_lost = False
        for attempt in job.attempts.values():
            if attempt.slave_id == event.slave_id:
                self._speaks(job, attempt, now)
                attempt.progress = max(attempt.progress, event.heartbeat.progress.get(attempt.task_id, 0.0))
        self._life.effects.append(JobChanged(job_id=job.job_id))

    def _heard_from(self, slave_id: SlaveId) -> None:
        if self._suspects.pop(slave_id, None) is not None:
            self._life.must_revive = True

    def _speaks(self, job: Job, attempt: Attempt, now: float) -> None:
        attempt.heard_at = now
        if attempt.state is AttemptState.SILENT:
            attempt.change(AttemptState.RUNNING)
            job.settle(attempt.task)

    def _on_status(self, status: TaskStatus, now: float) -> None:
        job, kind, index = self._parse(status.task_id)
        if job is None or job.state.is_terminal:
            if not status.state.is_terminal and status.state is not TaskState.UNREACHABLE:
                self._life.effects.append(KillAttempt(task_id=status.task_id))
            return
        attempt = job.attempts.get(status.task_id) or self._adopt(job, kind, index, status, now)
        if attempt is None:
            return
        if status.state in _LOST_STATES or status.reason in _LOST_REASONS:
            self._life.ended(job, attempt, AttemptState.LOST, Report(error=status.message), now)
            return
        self._heard_from(attempt.slave_id)
        self._speaks(job, attempt, now)
        match status.state:
            case TaskState.RUNNING:
                if attempt.state is AttemptState.STAGING:
                    attempt.change(AttemptState.RUNNING)
                    self._life.effects.append(JobChanged(job_id=job.job_id))
            case TaskState.FINISHED:
                self._ended_by_itself(job, attempt, AttemptState.SUCCEEDED, status, now)
            case TaskState.FAILED | TaskState.ERROR:
                self._ended_by_itself(job, attempt, AttemptState.FAILED, status, now)
            case TaskState.KILLED:
                self._life.ended(job, attempt, AttemptState.KILLED, Report(), now)
            case _:
                pass  # STAGING, STARTING, KILLING: it lives.

    def _ended_by_itself(self, job: Job, attempt: Attempt, state: AttemptState, status: TaskStatus, now: float) -> None:
        if not status.data:  # The slave speaks, not the executor.
            report = Report(error=status.message or f"{status.state} with no message")
            self._life.ended(job, attempt, AttemptState.FAILED, report, now)
            return
        try:
            report = decode_report(status.data)
        except DecodeError as error:
            self._life.ended(job, attempt, AttemptState.FAILED, Report(error=str(error)), now)
            return
        self._life.ended(job, attempt, state, report, now)

    def _parse(self, task_id: TaskId) -> tuple[Job | None, TaskKind, int]:
        job_id, _, rest = task_id.partition(".")
        kind, _, number = rest.partition(".")[0].partition("-")
        if job_id not in self._jobs or kind not in _KIND_BY_NAME or not number.isdigit():
            return None, TaskKind.PROBE, 0
        return self._jobs[job_id], TaskKind(kind), int(number)

    def _adopt(self, job: Job, kind: TaskKind, index: int, status: TaskStatus, now: float) -> Attempt | None:
        """Take in an attempt that an earlier daemon launched, if it is still of use; else end it."""
        task = job.tasks.get((kind, index))
        is_alive = not status.state.is_terminal and status.state is not TaskState.UNREACHABLE
        is_useful = is_alive or status.state is TaskState.FINISHED
        is_wanted = task is not None and (task.kind, task.index) in job.pending and kind is not TaskKind.PROBE
        if task is None or not is_wanted or not is_useful or status.slave_id is None:
            if is_alive:
                self._life.effects.append(KillAttempt(task_id=status.task_id))
            return None
        return self._add_attempt(job, task, status.task_id, job.slave(status.slave_id), now)

    # --- Offers -------------------------------------------------------------------------------------

    def _use(self, offer: Offer, now: float) -> None:
        items: list[LaunchItem] = []
        left = offer.resources
        if now >= self._hold_until and offer.slave_id not in self._suspects:
            for job in self._active():
                left = self._launch_for(job, offer, left, items, now)
        if items:
            launch = Launch(offer_id=offer.offer_id, slave_id=offer.slave_id, items=tuple(items))
            self._life.effects.append(launch)
        else:
            self._life.effects.append(Decline(offer_id=offer.offer_id))

    def _launch_for(self, job: Job, offer: Offer, left: Resources, items: list[LaunchItem], now: float) -> Resources:
        """Add what the job wants to start on the slave to `items`; return what is left of the offer."""
        slave = job.slave(offer.slave_id, offer.hostname)
        slave.is_lost = False
        has_executor = job.executor_id in offer.executor_ids
        if job.is_blacklisted(slave):
            return left
        if job.needs_probe(slave):
            job.add_task(TaskKind.PROBE, job.slave_index(slave)).viewers[slave.slave_id] = None
        if job.state is JobState.PROBING:
            job.note_offered(left if has_executor else _less(left, EXECUTOR_RESOURCES))
        for task in list(job.pending.values()):
            if not job.may_start(task, slave, now):
                continue
            wanted = SMALL_TASK_RESOURCES if task.kind in _SMALL_KINDS else job.task_resources
            taken = wanted if has_executor else wanted + EXECUTOR_RESOURCES
            if not taken <= left:
                job.waiting = f"a {task.kind} task needs {taken}, and {slave.hostname} offers {left or 'nothing'}"
                if task.kind in _SMALL_KINDS:
                    continue
                break  # Maps and reduces are all of one size.
            left = left - taken
            has_executor = True
            items.append(self._start(job, task, slave, wanted, now))
        return left

    def _start(self, job: Job, task: Task, slave: JobSlave, wanted: Resources, now: float) -> LaunchItem:
        task_id = TaskId(f"{job.job_id}.{task.kind}-{task.index:05d}.{self._rng.getrandbits(32):08x}")
        if task.kind is TaskKind.SETUP:
            # Kept before it starts: from now on there may be something to clean up, and there.
            job.setup_slave_id = slave.slave_id
            slave.sees_output = True
            self._life.effects.append(SaveJob(record=job.record()))
        self._add_attempt(job, task, task_id, slave, now)
        job.attempt_count += 1
        slave.has_executor = True
        job.waiting = ""
        self._life.effects.append(JobChanged(job_id=job.job_id))
        return LaunchItem(task_id=task_id, job_id=job.job_id, kind=task.kind, resources=wanted, order=job.order(task))

    def _add_attempt(self, job: Job, task: Task, task_id: TaskId, slave: JobSlave, now: float) -> Attempt:
        attempt = Attempt(task, task_id, slave.slave_id, slave.hostname, now)
        task.attempts[task_id] = attempt
        job.attempts[task_id] = attempt
        job.settle(task)
        return attempt


def _less(offered: Resources, overhead: Resources) -> Resources:
    return Resources({name: max(0, amount - overhead.get(name)) for name, amount in offered.scalars.items()})
