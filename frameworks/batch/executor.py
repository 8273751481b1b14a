"""The batch executor: one for each job on each slave; runs attempts in worker processes.

`python -P -m frameworks.batch.executor`, started by a slave. It copies what reducers need, starts a
worker for each attempt, watches its memory and progress, and tells the scheduler how it went.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

import msgspec

from frameworks.batch.fetch import Fetched, Fetcher
from frameworks.batch.model import (
    CleanupOrder,
    CommitOrder,
    Heartbeat,
    JobPackage,
    Listing,
    MapOrder,
    Order,
    OutputLocation,
    ProbeOrder,
    ReduceOrder,
    Report,
    SetupOrder,
    Verdict,
    decode_order,
    encode_report,
)
from frameworks.batch.output import owner
from frameworks.batch.work import (
    OUTPUT_FILE,
    STDERR_FILE,
    STDOUT_FILE,
    CleanupWork,
    CommitWork,
    Job,
    MapWork,
    ProbeWork,
    ReduceWork,
    Result,
    SetupWork,
    Work,
    read_progress,
    read_result,
    write_work,
)
from meseta.driver_events import ExecutorSlave
from meseta.errors import DecodeError
from meseta.executor import Executor, ExecutorDriver, run_executor
from meseta.ids import ContainerId, FrameworkId, TaskId
from meseta.model import DATA_LIMIT_BYTES, ExecutorInfo, FrameworkInfo, TaskInfo, TaskState, TaskStatus
from meseta.resources import MILLI
from meseta.transport import KeyPair

HEARTBEAT_INTERVAL_S = 1.0
STALLED_AFTER_S = 600.0  # Hadoop's mapreduce.task.timeout: an attempt with no progress for so long is ended.
BUFFER_SHARE = 0.4  # Of a task's memory: what a collector may hold; sorting and the job's own code need the rest.
STDERR_TAIL_BYTES = 2000
_FOLDER = "attempts"
_JOB_FOLDER = "job"
_OOM_SCORE = b"900"  # The kernel ends a worker before its executor.


def output_path(attempt_id: TaskId) -> str:
    """Return where in its sandbox a map attempt's output lies."""
    return f"{_FOLDER}/{attempt_id}/{OUTPUT_FILE}"


class Attempt:
    """An attempt on this executor."""

    def __init__(self, task: TaskInfo, folder: Path) -> None:
        self.task_id = task.task_id
        self.folder = folder
        self.mem_bytes = task.resources.get("mem") * (1 << 20) // MILLI
        self.process: asyncio.subprocess.Process | None = None
        self.run: asyncio.Task[None] | None = None
        self.is_reduce = False
        self.is_killed = False
        self.ended_because = ""  # Why we ended its worker.
        self.copied = 0.0
        self.progress = 0.0
        self.moved_at = 0.0

    def overall_progress(self) -> float:
        """Return 0 to 1; a third of a reduce is its copying."""
        done = read_progress(self.folder)
        return (self.copied + 2 * done) / 3 if self.is_reduce else done

    def signal(self, signum: int) -> None:
        """Send a signal to the worker and what it started."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)


class BatchExecutor(Executor):
    """Runs the attempts of one job on one slave."""

    def __init__(self, sandbox: Path) -> None:
        self._sandbox = sandbox
        self._attempts: dict[TaskId, Attempt] = {}
        self._is_shut_down = False
        self._heartbeats: asyncio.Task[None] | None = None

    def registered(
        self, driver: ExecutorDriver, executor_info: ExecutorInfo, framework_info: FrameworkInfo, slave: ExecutorSlave
    ) -> None:
        """Unpack the job."""
        self._package = msgspec.msgpack.decode(executor_info.data, type=JobPackage)
        self._slave = slave
        assert framework_info.id is not None
        self._framework_id: FrameworkId = framework_info.id
        self._job = _unpack(self._package, self._sandbox / _JOB_FOLDER)
        self._heartbeats = asyncio.get_running_loop().create_task(self._beat(driver))

    def reregistered(self, driver: ExecutorDriver, slave: ExecutorSlave) -> None:
        """The slave's files may have another address now."""
        self._slave = slave

    def launch_task(self, driver: ExecutorDriver, task: TaskInfo) -> None:
        """Start an attempt."""
        attempt = Attempt(task, self._sandbox / _FOLDER / task.task_id)
        self._attempts[task.task_id] = attempt
        attempt.run = asyncio.get_running_loop().create_task(self._run(driver, attempt, task.data))

    def kill_task(self, driver: ExecutorDriver, task_id: TaskId, grace_period_s: float) -> None:
        """End an attempt."""
        attempt = self._attempts.get(task_id)
        if attempt is None:
            return
        attempt.is_killed = True
        if attempt.process is None:
            assert attempt.run is not None
            attempt.run.cancel()
        else:
            attempt.signal(signal.SIGTERM)
            asyncio.get_running_loop().call_later(grace_period_s, attempt.signal, signal.SIGKILL)

    def shutdown(self, driver: ExecutorDriver) -> None:
        """The job is over: end what runs, and give back the disk."""
        self._is_shut_down = True
        for task_id in list(self._attempts):
            self.kill_task(driver, task_id, 0.0)
        self._end_if_done(driver)

    def _end_if_done(self, driver: ExecutorDriver) -> None:
        if self._is_shut_down and not self._attempts:
            if self._heartbeats is not None:
                self._heartbeats.cancel()
            for folder in (self._sandbox / _FOLDER).glob("*"):
                _tidy(folder)
            driver.stop()

    # --- One attempt --------------------------------------------------------------------------------

    async def _run(self, driver: ExecutorDriver, attempt: Attempt, data: bytes) -> None:
        driver.send_status_update(TaskStatus(task_id=attempt.task_id, state=TaskState.RUNNING))
        state = TaskState.FAILED
        try:
            report = await self._work(attempt, decode_order(data))
            if not report.error:
                state = TaskState.FINISHED
        except (OSError, DecodeError) as error:
            report = Report(error=f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            if not attempt.is_killed:
                raise
            report = Report()
        except Exception as error:  # Outermost: else the attempt would never end.
            traceback.print_exc()
            report = Report(error=f"the executor failed: {type(error).__name__}: {error}")
        if attempt.is_killed and state is not TaskState.FINISHED:
            state = TaskState.KILLED
        status_data = encode_report(report)
        if len(status_data) > DATA_LIMIT_BYTES:
            state = TaskState.FAILED
            report = Report(error="the inputs have too many files to list; name fewer, or pack them together")
            status_data = encode_report(report)
        if state is not TaskState.FINISHED or report.location is None:
            await asyncio.to_thread(_tidy, attempt.folder)
        message = "" if state is TaskState.FINISHED else report.error[:1000]
        driver.send_status_update(TaskStatus(task_id=attempt.task_id, state=state, message=message, data=status_data))
        del self._attempts[attempt.task_id]
        self._end_if_done(driver)

    async def _work(self, attempt: Attempt, order: Order) -> Report:
        await asyncio.to_thread(_make_folder, attempt.folder, self._job)
        fetched = Fetched()
        if isinstance(order, ReduceOrder):
            attempt.is_reduce = True
            if await asyncio.to_thread(owner, Path(order.output)) != self._job.job_id:
                return Report(error=f"{order.output} is not to be seen from here", verdict=Verdict.OUTPUT_INVISIBLE)
            fetched = await self._fetch(attempt, order)
            if fetched.lost:
                return Report(error=fetched.error, verdict=Verdict.FETCH_FAILED, lost_outputs=tuple(fetched.lost))
        work = _work_of(order, fetched, int(attempt.mem_bytes * BUFFER_SHARE))
        write_work(attempt.folder, attempt.task_id, self._job, work)
        exit_status = await self._run_worker(attempt)
        result = await asyncio.to_thread(read_result, attempt.folder)
        return self._report(attempt, order, result, exit_status, fetched)

    async def _fetch(self, attempt: Attempt, order: ReduceOrder) -> Fetched:
        def copied(fraction: float) -> None:
            attempt.copied = fraction

        keys = None
        if self._package.task_public_key and self._package.task_secret_key:
            keys = KeyPair(public=self._package.task_public_key, secret=self._package.task_secret_key)
        fetcher = Fetcher(
            order,
            attempt.folder,
            framework_id=self._framework_id,
            own_container_id=ContainerId(self._slave.container_id),
            own_sandbox=self._sandbox,
            keys=keys,
            path_of=output_path,
            progress=copied,
        )
        fetched = await fetcher.fetch()
        attempt.copied = 1.0
        return fetched

    async def _run_worker(self, attempt: Attempt) -> int:
        with (attempt.folder / STDOUT_FILE).open("wb") as stdout, (attempt.folder / STDERR_FILE).open("wb") as stderr:
            attempt.process = await _start_worker(attempt, self._job, stdout, stderr)
        if attempt.is_killed:  # In the meantime.
            attempt.signal(signal.SIGKILL)
        return await attempt.process.wait()

    def _report(
        self, attempt: Attempt, order: Order, result: Result | None, exit_status: int, fetched: Fetched
    ) -> Report:
        tail = _tail(attempt.folder / STDERR_FILE)
        if attempt.ended_because or result is None:
            return Report(error=attempt.ended_because or _describe_end(exit_status), stderr_tail=tail)
        if result.error:
            return Report(error=result.error, verdict=Verdict(result.verdict), stderr_tail=tail)
        counters = list(result.counters)
        location = listing = None
        if isinstance(order, ReduceOrder):
            counters.append(("batch", "shuffle bytes", fetched.remote_bytes))
        if isinstance(order, MapOrder):
            location = OutputLocation(
                address=self._slave.address,
                container_id=ContainerId(self._slave.container_id),
                path=output_path(attempt.task_id),
                offsets=result.payload,
            )
        if isinstance(order, ProbeOrder):
            inputs, has_output, has_output_parent = result.payload
            listing = Listing(inputs=inputs, has_output=has_output, has_output_parent=has_output_parent)
        return Report(counters=tuple(counters), location=location, listing=listing)

    # --- Heartbeats ---------------------------------------------------------------------------------

    async def _beat(self, driver: ExecutorDriver) -> None:
        loop = asyncio.get_running_loop()
        while True:
            progress: dict[str, float] = {}
            for attempt in list(self._attempts.values()):
                progress[attempt.task_id] = self._look_at(attempt, loop.time())
            heartbeat = Heartbeat(job_id=self._job.job_id, progress=progress)
            driver.send_framework_message(msgspec.msgpack.encode(heartbeat))
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    def _look_at(self, attempt: Attempt, now: float) -> float:
        """Return an attempt's progress; end it if it takes too much memory or makes none."""
        progress = attempt.overall_progress()
        if progress > attempt.progress or not attempt.moved_at:
            attempt.progress = progress
            attempt.moved_at = now
        if attempt.process is None or attempt.process.returncode is not None:
            return progress
        resident_bytes = _resident_bytes(attempt.process.pid)
        if attempt.mem_bytes and resident_bytes > attempt.mem_bytes:
            used, given = resident_bytes >> 20, attempt.mem_bytes >> 20
            attempt.ended_because = f"the attempt took {used} MiB of memory and has {given}; give it more with --mem"
            attempt.signal(signal.SIGKILL)
        elif now - attempt.moved_at > STALLED_AFTER_S:
            attempt.ended_because = f"the attempt made no progress for {STALLED_AFTER_S:.0f} s"
            attempt.signal(signal.SIGKILL)
        return progress


async def _start_worker(attempt: Attempt, job: Job, stdout: BinaryIO, stderr: BinaryIO) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "frameworks.batch.worker",
        str(attempt.folder),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        process_group=0,  # Not a session of its own: by that the slave knows what belongs to this container.
        env={**os.environ, "MESETA_JOB_ID": job.job_id, "MESETA_JOB_NAME": job.name, "MESETA_TASK_ID": attempt.task_id},
    )
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_bytes(_OOM_SCORE)
    return process


def _work_of(order: Order, fetched: Fetched, limit_bytes: int) -> Work:
    match order:
        case ProbeOrder():
            return ProbeWork(order.inputs, order.output)
        case SetupOrder():
            return SetupWork(order.output)
        case MapOrder():
            pieces = tuple((one.path, one.start, one.end, one.size_bytes) for one in order.pieces)
            return MapWork(pieces, limit_bytes)
        case ReduceOrder():
            return ReduceWork(order.partition, tuple(fetched.parts), order.output, limit_bytes)
        case CommitOrder():
            return CommitWork(order.output, tuple(order.attempt_ids))
        case CleanupOrder():
            return CleanupWork(order.output)


def _describe_end(exit_status: int) -> str:
    if exit_status == -signal.SIGKILL:
        return "the worker was killed; if for want of memory, give it more with --mem"
    if exit_status < 0:
        return f"the worker was ended by {signal.Signals(-exit_status).name}"
    return f"the worker exited with {exit_status}"


def _unpack(package: JobPackage, folder: Path) -> Job:
    """Write the job's files to the sandbox."""
    folder.mkdir(exist_ok=True)
    if package.file_name:
        (folder / package.file_name).write_bytes(package.job_file)
    for name, content in package.files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
    return Job(
        job_id=package.job_id,
        name=package.name,
        folder=str(folder),
        file_name=package.file_name,
        mapper=package.mapper,
        reducer=package.reducer,
        reducers=package.reducers,
        files=tuple(package.files),
    )


def _make_folder(folder: Path, job: Job) -> None:
    folder.mkdir(parents=True)
    for name in job.files:
        (folder / name).symlink_to(Path(job.folder) / name)


def _tidy(folder: Path) -> None:
    """Remove what an attempt wrote, but for what people read."""
    for path in folder.glob("*"):
        if path.name not in (STDOUT_FILE, STDERR_FILE):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - STDERR_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _resident_bytes(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(run_executor(BatchExecutor(Path(os.environ["MESETA_SANDBOX"]))))
