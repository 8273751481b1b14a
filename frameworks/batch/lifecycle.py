"""How jobs go on when attempts end, outputs are lost or time passes. Pure: changes jobs, collects effects.

Part of the batch core; `core.py` feeds it.
"""

from frameworks.batch.events import (
    Effect,
    EndExecutor,
    ForgetTasks,
    JobChanged,
    KillAttempt,
    SaveJob,
    SaveTask,
)
from frameworks.batch.job import MAX_ATTEMPTS, Attempt, Job, Task
from frameworks.batch.model import AttemptState, Counters, JobState, Listing, Report, TaskKind, Verdict
from frameworks.batch.planning import output_error, plan, seen_splits, task_resources, unseen_inputs
from meseta.ids import SlaveId, TaskId
from meseta.log import INFO, WARNING, Log

RETRY_AFTER_S = 1.0  # Before the same task is tried again on the same slave.
FETCH_RETRY_LIMIT_S = 16.0  # The longest that a reduce is kept from slaves where it could not fetch.
_FETCH_RETRY_GROWTH = 4.0
SETTLE_S = 0.3  # After the first answer to a probe: other slaves' offers may be on their way.
PATIENCE_S = 5.0  # For a slave that sees the rest of the inputs, or answers its probe at all.
CLEAN_WAIT_S = 5.0  # For the ends of attempts that were killed.
CLEAN_LIMIT_S = 30.0
LOSS_LIMIT = 20  # Attempts of one task lost with their executor: something there kills them.
FETCH_FAILURE_LIMIT = 10  # Outputs of one map lost.
_STDERR_SHOWN = 1500
_REASON_LIMIT = 4000

_DECIDED_ONCE = (TaskKind.SETUP, TaskKind.COMMIT, TaskKind.CLEANUP)


class Lifecycle:
    """Moves jobs on. What it wants done gathers in `effects`, until the core takes it."""

    def __init__(self, unix_offset_s: float) -> None:
        self._unix_offset_s = unix_offset_s
        self.effects: list[Effect] = []
        self.gates: list[float] = []  # Times at which an offer that was no use may be of use.
        self.must_revive = False

    # --- Attempts -----------------------------------------------------------------------------------

    def ended(self, job: Job, attempt: Attempt, state: AttemptState, report: Report, now: float) -> None:
        """An attempt has ended in `state`; a FAILED one may turn out to be nobody's fault."""
        if state is AttemptState.FAILED and report.verdict in (Verdict.OUTPUT_INVISIBLE, Verdict.FETCH_FAILED):
            state = AttemptState.KILLED
        attempt.change(state)
        task = attempt.task
        del task.attempts[attempt.task_id]
        del job.attempts[attempt.task_id]
        if state is AttemptState.SUCCEEDED:
            if task.winner is None:
                self._won(job, attempt, report, now)
        else:
            job.slave(attempt.slave_id).has_executor |= state is not AttemptState.LOST
            self._not_won(job, attempt, state, report, now)
        if not job.state.is_terminal:
            job.settle(task)
            self.must_revive = True
        self.effects.append(JobChanged(job_id=job.job_id))

    def _won(self, job: Job, attempt: Attempt, report: Report, now: float) -> None:
        task = attempt.task
        task.counters = _counters(report)
        task.location = report.location
        job.set_winner(task, attempt)
        for other in list(task.attempts):
            self.effects.append(KillAttempt(task_id=other))
        slave = job.slave(attempt.slave_id, attempt.hostname)
        match task.kind:
            case TaskKind.PROBE:
                slave.listing = report.listing
                self._on_listing(job, attempt.slave_id, now)
            case TaskKind.SETUP:
                slave.sees_output = True
                if job.state is JobState.SETUP:
                    self._change(job, JobState.RUNNING)
                    job.settle_reduces()
            case TaskKind.MAP:
                self.effects.append(SaveTask(record=task.record(job.job_id)))
                if job.has_all_maps():
                    job.settle_reduces()
            case TaskKind.REDUCE:
                slave.sees_output = True
                self.effects.append(SaveTask(record=task.record(job.job_id)))
                if job.state is JobState.RUNNING and job.reduces_done == job.spec.reducers:
                    self._change(job, JobState.COMMITTING)
                    job.add_task(TaskKind.COMMIT)
            case TaskKind.COMMIT:
                if job.state is JobState.COMMITTING:
                    self._finish(job, JobState.SUCCEEDED, now)
            case TaskKind.CLEANUP:
                self._end_cleaning(job, now)

    def _not_won(self, job: Job, attempt: Attempt, state: AttemptState, report: Report, now: float) -> None:
        task = attempt.task
        slave = job.slave(attempt.slave_id, attempt.hostname)
        if task.winner is not None or job.state.is_terminal:
            return
        if report.verdict is Verdict.OUTPUT_EXISTS:
            job.setup_slave_id = None  # The folder is not ours to clean.
            self.abandon(job, JobState.FAILED, report.error, now)
        elif report.verdict is Verdict.OUTPUT_INVISIBLE:
            slave.sees_output = False
            self._check_output_is_seen(job, now)
        elif report.verdict is Verdict.FETCH_FAILED:
            self._lose_outputs(job, [(index, one) for index, one in report.lost_outputs], now)
            self._avoid_after_fetch(task, attempt.slave_id, now)
        elif state is AttemptState.FAILED:
            self._failed(job, attempt, report, now)
        elif state is AttemptState.LOST:
            task.losses += 1
            self._avoid(task, attempt.slave_id, now)
            if task.losses >= LOSS_LIMIT and job.state is not JobState.CLEANING:
                reason = f"{task.kind} {task.index} was lost {task.losses} times, last on {attempt.hostname}"
                self.abandon(job, JobState.FAILED, f"{reason}: {report.error}" if report.error else reason, now)

    def _failed(self, job: Job, attempt: Attempt, report: Report, now: float) -> None:
        task = attempt.task
        slave = job.slave(attempt.slave_id)
        task.failures += 1
        slave.failures += 1
        job.failed_attempt_count += 1
        self._avoid(task, attempt.slave_id, now)
        self.effects.append(
            Log(
                WARNING,
                "attempt failed",
                {"attempt": attempt.task_id, "hostname": attempt.hostname, "error": report.error[:200]},
            )
        )
        if task.kind in (TaskKind.MAP, TaskKind.REDUCE):
            self.effects.append(SaveTask(record=task.record(job.job_id)))
        if task.failures < MAX_ATTEMPTS:
            return
        if task.kind is TaskKind.PROBE:
            # A slave that cannot look sees nothing. Its error is the reason if no other slave sees more.
            slave.listing = Listing(inputs=(None,) * len(job.spec.inputs), has_output=False, has_output_parent=False)
            job.reason = f"probe on {attempt.hostname} failed: {report.error}"[:_REASON_LIMIT]
            job.set_winner(task, attempt)
            self._on_listing(job, attempt.slave_id, now)
            return
        if task.kind is TaskKind.CLEANUP:
            self._end_cleaning(job, now)
            return
        reason = f"{task.kind} {task.index} failed {task.failures} times, last on {attempt.hostname}: {report.error}"
        if report.stderr_tail:
            reason += f"\n{report.stderr_tail[-_STDERR_SHOWN:]}"
        self.abandon(job, JobState.FAILED, reason[:_REASON_LIMIT], now)

    def _avoid(self, task: Task, slave_id: SlaveId, now: float, *, for_s: float = RETRY_AFTER_S) -> None:
        task.avoid[slave_id] = now + for_s
        self.gates.append(now + for_s)

    def _avoid_after_fetch(self, task: Task, slave_id: SlaveId, now: float) -> None:
        """Keep a reduce ever longer from all slaves where it could not fetch.

        At first the slave that was asked is to blame; if that goes on, the network between the two: then
        only a slave that reaches all others gets it done, and that one must get its turn.
        """
        task.fetch_failures += 1
        task.unfit[slave_id] = None
        for_s = min(FETCH_RETRY_LIMIT_S, RETRY_AFTER_S * _FETCH_RETRY_GROWTH ** (task.fetch_failures - 1))
        for unfit in task.unfit:
            self._avoid(task, unfit, now, for_s=for_s)

    # --- Outputs of maps ------------------------------------------------------------------------------

    def lose_slave_outputs(self, job: Job, slave_id: SlaveId, now: float) -> None:
        """A slave is gone, and with it the outputs of the maps that finished there."""
        if job.state is JobState.RUNNING and job.reduces_done < job.spec.reducers:
            lost = [
                (task.index, task.winner)
                for task in job.of_kind(TaskKind.MAP)
                if task.winner is not None and task.slave_id == slave_id
            ]
            self._lose_outputs(job, lost, now)

    def _lose_outputs(self, job: Job, lost: list[tuple[int, TaskId]], now: float) -> None:
        if job.state is not JobState.RUNNING:
            return
        for index, task_id in lost:
            task = job.tasks.get((TaskKind.MAP, index))
            if task is None or task.winner != task_id:
                continue  # It was done again in the meantime.
            task.outputs_lost += 1
            if task.slave_id is not None:
                self._avoid(task, task.slave_id, now)
            job.set_winner(task, None)
            job.settle(task)
            self.effects.append(SaveTask(record=task.record(job.job_id)))
            self.effects.append(Log(WARNING, "map output lost", {"job_id": job.job_id, "map": index}))
            if task.outputs_lost >= FETCH_FAILURE_LIMIT:
                reason = f"the output of map {index} was lost {task.outputs_lost} times"
                self.abandon(job, JobState.FAILED, reason, now)
                return
        job.settle_reduces()
        self.must_revive = True

    # --- Before the maps ------------------------------------------------------------------------------

    def _on_listing(self, job: Job, slave_id: SlaveId, now: float) -> None:
        if job.state is JobState.PROBING:
            if job.first_probed_at is None:
                job.first_probed_at = now
                self.gates += [now + SETTLE_S, now + PATIENCE_S]
            self.try_to_plan(job, now)
            return
        listing = job.slave(slave_id).listing
        if listing is not None:
            for index in seen_splits(job.splits, listing):
                job.tasks[TaskKind.MAP, index].viewers[slave_id] = None

    def try_to_plan(self, job: Job, now: float) -> None:
        """Go on from probing if enough is known, or fail if nothing more can be hoped for."""
        if job.first_probed_at is None or now < job.first_probed_at + SETTLE_S:
            return
        listings = {one.slave_id: one.listing for one in job.slaves.values() if one.listing is not None}
        hostnames = {one.slave_id: one.hostname for one in job.slaves.values()}
        is_patient = now < job.first_probed_at + PATIENCE_S
        unseen = unseen_inputs(job.spec, listings)
        if is_patient and (unseen or job.attempts):
            return
        if unseen:
            asked = ", ".join(sorted({hostnames[one] for one in listings}))
            reason = f"input {', '.join(unseen)}: no slave sees it (asked: {asked}); name a path that a slave can read"
            self.abandon(job, JobState.FAILED, f"{reason}; {job.reason}" if job.reason else reason, now)
            return
        if error := output_error(job.spec, hostnames, listings):
            self.abandon(job, JobState.FAILED, error, now)
            return
        planned = plan(job.spec, listings)
        if planned.error:
            self.abandon(job, JobState.FAILED, planned.error, now)
            return
        job.reason = ""
        job.splits = planned.splits
        job.task_resources = task_resources(job.spec, job.offered)
        self._drop_probes(job)
        job.make_tasks()
        for index, viewers in enumerate(planned.viewers):
            job.tasks[TaskKind.MAP, index].viewers = dict.fromkeys(viewers)
        self._change(job, JobState.SETUP)
        job.add_task(TaskKind.SETUP)
        self.must_revive = True
        self.effects.append(
            Log(INFO, "job planned", {"job_id": job.job_id, "maps": job.map_count, "reduces": job.spec.reducers})
        )

    def _drop_probes(self, job: Job) -> None:
        for key in [key for key in job.tasks if key[0] is TaskKind.PROBE and not job.tasks[key].attempts]:
            del job.tasks[key]
            job.pending.pop(key, None)

    def _check_output_is_seen(self, job: Job, now: float) -> None:
        """Fail a job whose output folder lies on a slave that is lost."""
        if job.state is JobState.CLEANING or job.setup_slave_id is None:
            return
        if all(one.is_lost or one.sees_output is False for one in job.slaves.values()):
            home = job.slave(job.setup_slave_id)
            if home.is_lost:
                reason = f"output folder {job.spec.output} was on {home.hostname or home.slave_id}, which is lost"
                self.abandon(job, JobState.FAILED, reason, now)

    # --- Ends -----------------------------------------------------------------------------------------

    def abandon(self, job: Job, outcome: JobState, reason: str, now: float) -> None:
        """Let a job fail or be killed: end its attempts, tidy its output folder, then be done."""
        if job.state is JobState.CLEANING or job.state.is_terminal:
            return
        job.reason = reason
        job.outcome = outcome
        job.clean_from = now + CLEAN_WAIT_S
        job.clean_until = now + CLEAN_LIMIT_S
        job.change(JobState.CLEANING)
        job.pending.clear()
        for attempt in job.attempts.values():
            self.effects.append(KillAttempt(task_id=attempt.task_id))
        if job.setup_slave_id is None:
            self._end_cleaning(job, now)
            return
        job.add_task(TaskKind.CLEANUP)
        self.must_revive = True
        self.gates += [job.clean_from, job.clean_until]
        self.effects.append(SaveJob(record=job.record()))
        self.effects.append(JobChanged(job_id=job.job_id))

    def resume_cleaning(self, job: Job, now: float) -> None:
        """After a restart: clean up again, with new limits."""
        job.clean_from = now + CLEAN_WAIT_S
        job.clean_until = now + CLEAN_LIMIT_S
        job.pending.clear()
        job.add_task(TaskKind.CLEANUP)

    def review(self, job: Job, now: float) -> None:
        """Do what is due for a job."""
        if job.state is JobState.PROBING:
            self.try_to_plan(job, now)
        elif job.state is JobState.CLEANING and now >= job.clean_until:
            job.reason += f"\n{job.spec.output}/_temporary could not be removed; remove it by hand"
            self._end_cleaning(job, now)

    def _end_cleaning(self, job: Job, now: float) -> None:
        self._finish(job, job.outcome or JobState.FAILED, now)

    def _finish(self, job: Job, state: JobState, now: float) -> None:
        job.final_counters = job.counters()
        job.finished_unix_s = now + self._unix_offset_s
        job.change(state)
        for attempt in job.attempts.values():
            self.effects.append(KillAttempt(task_id=attempt.task_id))
        for slave in job.slaves.values():
            if slave.has_executor and not slave.is_lost:
                self.effects.append(EndExecutor(executor_id=job.executor_id, slave_id=slave.slave_id))
        job.attempts.clear()
        job.pending.clear()
        job.tasks.clear()
        job.maps_done = job.map_count if state is JobState.SUCCEEDED else 0
        job.reduces_done = job.spec.reducers if state is JobState.SUCCEEDED else 0
        self.effects.append(SaveJob(record=job.record()))
        self.effects.append(ForgetTasks(job_id=job.job_id))
        self.effects.append(JobChanged(job_id=job.job_id))
        self.effects.append(
            Log(INFO, "job ended", {"job_id": job.job_id, "state": state.value, "reason": job.reason[:200]})
        )

    def _change(self, job: Job, state: JobState) -> None:
        job.change(state)
        self.must_revive = True
        self.effects.append(SaveJob(record=job.record()))
        self.effects.append(JobChanged(job_id=job.job_id))


def _counters(report: Report) -> Counters:
    counters: Counters = {}
    for group, name, value in report.counters:
        counters.setdefault(group, {})[name] = value
    return counters
