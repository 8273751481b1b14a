"""`dcos batch`: run, list, show, kill. Talks with the batch framework's own service, found through the master."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cli.commands import DcosGroup
from cli.connection import Master, Where, cluster_options, connect, user_name
from cli.output import describe_age, describe_duration, json_option, note, print_json, print_table
from meseta.errors import InvalidInput, RequestRefused, SessionLost, TransportError

if TYPE_CHECKING:
    from frameworks.batch.model import JobSpec, JobView
    from meseta.model import FrameworkView
    from meseta.service_client import ServiceClient

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
RECONNECT_LIMIT_S: Final = 60.0  # While a job is watched: the daemon may be started again in the meantime.
_RECONNECT_PAUSE_S: Final = 0.5
_MILLI: Final = 1000
_MIB: Final = 1 << 20


@click.group("batch", cls=DcosGroup)
def group() -> None:
    """Map and reduce over files, in parallel, on the whole cluster."""


@group.command("run")
@click.argument("names", nargs=-1, required=True, metavar="[JOB.py] INPUT...")
@click.option("-o", "--output", required=True, help="Folder for the results; it must not exist.")
@click.option("--reducers", type=click.IntRange(1, 10_000), default=1, help="Reduce tasks, and so files of output.")
@click.option("--name", help="The job's name.  [default: the job file's]")
@click.option("--mapper", help="A command that maps lines, instead of a job file.")
@click.option("--reducer", help="A command that reduces sorted lines; goes with --mapper.")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file that the job brings along; may be repeated.",
)
@click.option("--cpus", type=click.FloatRange(0.01), help="Of each task.  [default: 1, or what a slave has]")
@click.option("--mem", help="Of each task, as 512MiB.  [default: 512MiB, or what a slave has]")
@click.option("--split-size", help="Input of one map task, as 32MiB.  [default: by input and slaves, 4 to 64MiB]")
@click.option("--detach", is_flag=True, help="Submit the job and do not wait for it.")
@json_option
@cluster_options
def run(where: Where, *, as_json: bool, detach: bool, **options: Any) -> int:
    """Run a job and wait for it. Ctrl-C kills it; a second one leaves it to die alone.

    JOB.py holds map and reduce; INPUTs are files, folders or globs as the slaves see them.
    """
    spec = _spec(**options)
    return asyncio.run(_run(where, spec, is_detached=detach, as_json=as_json))


@group.command("list")
@json_option
@cluster_options
def list_jobs(where: Where, *, as_json: bool) -> None:
    """List the jobs, newest last."""
    from frameworks.batch.service import LIST, Jobs, ListJobs  # noqa: PLC0415 - see cli/connection.py

    async def ask() -> Jobs:
        async with _service(where) as client:
            return await client.call(LIST, ListJobs(), Jobs)

    views = asyncio.run(ask()).jobs
    if as_json:
        print_json({"jobs": [_job_json(view, is_whole=False) for view in views]})
        return
    rows = [
        [
            view.job_id,
            view.name,
            view.user,
            view.state.value,
            _percent(view.map_progress),
            _percent(view.reduce_progress),
            describe_age(view.submitted_unix_s),
            view.output,
        ]
        for view in views
    ]
    columns = ("id", "name", "user", "state", "map>", "reduce>", "age>", "output")
    print_table(columns, rows, empty="no jobs; run one with `dcos batch run JOB.py INPUT... -o OUTPUT`")


@group.command("show")
@click.argument("job")
@json_option
@cluster_options
def show(where: Where, *, job: str, as_json: bool) -> None:
    """Show a job: how far it is, its attempts, its counters, and why it failed."""
    from frameworks.batch.model import JobView  # noqa: PLC0415
    from frameworks.batch.service import SHOW, NameJob  # noqa: PLC0415

    async def ask() -> JobView:
        async with _service(where) as client:
            return await client.call(SHOW, NameJob(job), JobView)

    view = asyncio.run(ask())
    if as_json:
        print_json({"job": _job_json(view, is_whole=True)})
    else:
        _print_job(view)


@group.command("kill")
@click.argument("job")
@json_option
@cluster_options
def kill(where: Where, *, job: str, as_json: bool) -> None:
    """Kill a job: end its tasks and remove what it left in its output folder."""
    from frameworks.batch.service import KILL, NameJob, Submitted  # noqa: PLC0415

    async def ask() -> Submitted:
        async with _service(where) as client:
            return await client.call(KILL, NameJob(job), Submitted)

    killed = asyncio.run(ask())
    if as_json:
        print_json({"job_id": killed.job_id})
    else:
        note(f"{killed.job_id} is being killed")


# --- Running ----------------------------------------------------------------------------------------


def _spec(
    *,
    names: tuple[str, ...],
    output: str,
    reducers: int,
    name: str | None,
    mapper: str | None,
    reducer: str | None,
    files: tuple[Path, ...],
    cpus: float | None,
    mem: str | None,
    split_size: str | None,
) -> "JobSpec":
    from frameworks.batch.model import JobSpec  # noqa: PLC0415
    from frameworks.batch.service import check_spec  # noqa: PLC0415
    from meseta.options import parse_size  # noqa: PLC0415

    job_file: Path | None = None
    inputs = names
    if mapper is None and reducer is None:
        job_file, inputs = Path(names[0]), names[1:]
        if not inputs:
            raise InvalidInput(f"no input is given; write: dcos batch run {names[0]} INPUT... -o {output}")
    spec = JobSpec(
        name=name or (job_file.stem if job_file is not None else (mapper or reducer or "").split()[0])[:255],
        user=user_name(),
        inputs=tuple(os.path.abspath(one) for one in inputs),
        output=os.path.abspath(output),
        reducers=reducers,
        file_name="" if job_file is None else job_file.name,
        job_file=b"" if job_file is None else _read(job_file),
        mapper=mapper or "",
        reducer=reducer or "",
        files={one.name: _read(one) for one in files},
        cpus_milli=None if cpus is None else round(cpus * _MILLI),
        mem_milli=None if mem is None else parse_size(mem, field="--mem") * _MILLI // _MIB,
        split_bytes=None if split_size is None else parse_size(split_size, field="--split-size"),
    )
    check_spec(spec)
    return spec


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error


async def _run(where: Where, spec: "JobSpec", *, is_detached: bool, as_json: bool) -> int:
    from frameworks.batch.service import SUBMIT, Submitted  # noqa: PLC0415

    async with connect(where) as master:
        await _refuse_too_large(master, spec)
        async with _client(master, await _framework(master)) as client:
            submitted = await client.call(SUBMIT, spec, Submitted)
    if is_detached:
        if as_json:
            print_json({"job_id": submitted.job_id})
        else:
            click.echo(submitted.job_id)
        return 0
    view, was_interrupted = await _follow(where, submitted.job_id, is_told=not as_json)
    if as_json:
        print_json({"job": _job_json(view, is_whole=True)})
    else:
        _print_end(view)
    if view.state.value == "succeeded":
        return 0
    return EXIT_INTERRUPTED if was_interrupted else EXIT_FAILED


async def _refuse_too_large(master: Master, spec: "JobSpec") -> None:
    """Refuse tasks that no slave could ever run."""
    wanted = {"cpus": spec.cpus_milli, "mem": spec.mem_milli}
    nodes = [node for node in await master.nodes() if node.state == "active"]
    for name, amount in wanted.items():
        largest = max((node.total.get(name) for node in nodes), default=0)
        if amount is not None and nodes and amount > largest:
            unit = "MiB" if name == "mem" else ""
            raise InvalidInput(
                f"--{name} {amount / _MILLI:g}{unit}: no slave has as much; the largest has {largest / _MILLI:g}{unit}"
            )


async def _follow(where: Where, job_id: str, *, is_told: bool) -> "tuple[JobView, bool]":
    """Show progress until the job has ended; the first Ctrl-C kills it."""
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    watching = asyncio.current_task()
    assert watching is not None

    def on_interrupt() -> None:
        if interrupted.is_set():
            watching.cancel()
        interrupted.set()

    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    if is_told:  # Not before: whoever reads it may press Ctrl-C, which must kill the job from here on.
        note(f"{job_id} submitted")
    killing = asyncio.create_task(_kill_when(where, job_id, interrupted))
    try:
        with _Bar() as bar:
            async for view in _views(where, job_id):
                bar.show(view)
        return view, interrupted.is_set()
    except asyncio.CancelledError as error:
        raise click.Abort from error
    finally:
        killing.cancel()
        loop.remove_signal_handler(signal.SIGINT)


async def _kill_when(where: Where, job_id: str, interrupted: asyncio.Event) -> None:
    from frameworks.batch.service import KILL, NameJob, Submitted  # noqa: PLC0415

    await interrupted.wait()
    note(f"killing {job_id}; Ctrl-C again leaves it alone")
    try:
        async with _service(where) as client:
            await client.call(KILL, NameJob(job_id), Submitted)
    except RequestRefused as error:
        note(str(error))


async def _views(where: Where, job_id: str) -> "AsyncIterator[JobView]":
    """Yield the job's views to its end, also over a restart of the batch daemon or the master."""
    from frameworks.batch.model import JobView  # noqa: PLC0415
    from frameworks.batch.service import WATCH, NameJob  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    gone_since: float | None = None
    while True:
        try:
            async with _service(where) as client, aclosing(client.stream(WATCH, NameJob(job_id), JobView)) as views:
                async for view in views:
                    gone_since = None
                    yield view
                    if view.finished_unix_s:
                        return
        except (SessionLost, TransportError):
            gone_since = gone_since or loop.time()
            if loop.time() > gone_since + RECONNECT_LIMIT_S:
                raise
        await asyncio.sleep(_RECONNECT_PAUSE_S)


class _Bar:
    """Progress on stderr: two bars at a terminal, else a line for each tenth."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._console = Console(stderr=True, highlight=False)
        self._last = ""
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description:<6}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._map = self._progress.add_task("map", total=1.0, detail="")
            self._reduce = self._progress.add_task("reduce", total=1.0, detail="")

    def __enter__(self) -> "_Bar":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, view: "JobView") -> None:
        """Show how far the job is."""
        if self._progress is None:
            line = (
                view.waiting
                or f"{view.state.value}: map {_tenth(view.map_progress)}, reduce {_tenth(view.reduce_progress)}"
            )
            if line != self._last and not view.finished_unix_s:
                self._last = line
                note(line)
            return
        maps = [one for one in view.running if one.kind.value == "map"]
        reduces = [one for one in view.running if one.kind.value == "reduce"]
        state = view.waiting or ("" if view.state.value == "running" else view.state.value)
        self._progress.update(
            self._map,
            completed=view.map_progress,
            detail=f"{view.maps_done}/{view.maps_total} done, {len(maps)} running {state}",
        )
        self._progress.update(
            self._reduce,
            completed=view.reduce_progress,
            detail=f"{view.reduces_done}/{view.reduces_total} done, {len(reduces)} running",
        )


# --- The service --------------------------------------------------------------------------------------


@asynccontextmanager
async def _service(where: Where) -> "AsyncIterator[ServiceClient]":
    async with connect(where) as master, _client(master, await _framework(master)) as client:
        yield client


@asynccontextmanager
async def _client(master: Master, framework: "FrameworkView") -> "AsyncIterator[ServiceClient]":
    from meseta.service_client import ServiceClient  # noqa: PLC0415

    address = framework.framework_info.address
    assert address is not None
    async with ServiceClient(address, keys=master.keys, name="dcos") as client:
        yield client


async def _framework(master: Master) -> "FrameworkView":
    from frameworks.batch.service import FRAMEWORK_NAME  # noqa: PLC0415

    found = await master.frameworks(name=FRAMEWORK_NAME)
    active = [one for one in found if one.state == "active" and one.framework_info.address is not None]
    if not active:
        state = f"is {found[-1].state}" if found else "has not registered"
        raise TransportError(f"the batch framework {state}; `dcos up` starts it, and `dcos status` shows its log")
    return max(active, key=lambda one: one.registered_unix_s)


# --- Printing -----------------------------------------------------------------------------------------


def _percent(fraction: float) -> str:
    return f"{int(fraction * 100)}%"


def _tenth(fraction: float) -> str:
    return f"{int(fraction * 10) * 10} %"


def _duration(view: "JobView") -> str:
    end = view.finished_unix_s
    return describe_duration(end - view.submitted_unix_s) if end else describe_age(view.submitted_unix_s)


def _print_end(view: "JobView") -> None:
    if view.state.value == "succeeded":
        note(f"{view.job_id} succeeded in {_duration(view)}: {view.attempts} attempts, {view.failed_attempts} failed")
        click.echo(view.output)
    else:
        note(f"{view.job_id} {view.state.value} after {_duration(view)}: {view.reason}")


def _print_job(view: "JobView") -> None:
    rows = [
        ("id", view.job_id),
        ("name", view.name),
        ("user", view.user),
        ("state", view.state.value),
        ("input", " ".join(view.inputs)),
        ("output", view.output),
        ("map", f"{_percent(view.map_progress)}, {view.maps_done} of {view.maps_total} done"),
        ("reduce", f"{_percent(view.reduce_progress)}, {view.reduces_done} of {view.reduces_total} done"),
        ("attempts", f"{view.attempts}, {view.failed_attempts} failed"),
        ("time", _duration(view)),
        ("waiting", view.waiting),
        ("reason", view.reason),
    ]
    for name, value in rows:
        if value:
            click.echo(f"{name + ':':<10} {value}")
    if view.running:
        click.echo()
        attempts = [[one.task_id, one.state.value, one.hostname, _percent(one.progress)] for one in view.running]
        print_table(("attempt", "state", "host", "progress>"), attempts, empty="")
    if view.counters:
        click.echo()
        counters = [
            [group_name, name, str(value)]
            for group_name, values in view.counters.items()
            for name, value in values.items()
        ]
        print_table(("group", "counter", "value>"), counters, empty="")


def _job_json(view: "JobView", *, is_whole: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "id": view.job_id,
        "name": view.name,
        "user": view.user,
        "state": view.state.value,
        "output": view.output,
        "reason": view.reason,
        "waiting": view.waiting,
        "map_progress": view.map_progress,
        "reduce_progress": view.reduce_progress,
        "maps_done": view.maps_done,
        "maps_total": view.maps_total,
        "reduces_done": view.reduces_done,
        "reduces_total": view.reduces_total,
        "attempts": view.attempts,
        "failed_attempts": view.failed_attempts,
        "submitted_unix_s": view.submitted_unix_s,
        "finished_unix_s": view.finished_unix_s or None,
    }
    if is_whole:
        result["inputs"] = list(view.inputs)
        result["counters"] = view.counters
        result["running"] = [
            {
                "id": one.task_id,
                "kind": one.kind.value,
                "state": one.state.value,
                "hostname": one.hostname,
                "progress": one.progress,
            }
            for one in view.running
        ]
    return result
