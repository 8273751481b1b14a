"""`dcos run`: one-off command tasks, with their output here and their exit status as ours."""

import asyncio
import contextlib
import logging
import re
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO, Final

import click

from cli.connection import Master, Where, cluster_options, connect, find_cluster, user_name
from cli.output import json_option, note, print_json
from cli.run_scheduler import Plan, RunScheduler
from cli.tail import LinePrinter, follow_task
from cli.waiting import describe_no_fit, describe_waiting, refusal
from meseta.errors import InvalidInput, MesetaError
from meseta.ids import ContainerId, FrameworkId, SlaveId
from meseta.model import Capability, CommandInfo, FrameworkInfo
from meseta.options import DURATION
from meseta.resources import Resources, parse_scalar
from meseta.scheduler import MesetaSchedulerDriver

EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143
INSTANCES_LIMIT: Final = 1000  # One terminal shows no more; beyond it a framework of one's own does better.
FAILOVER_S: Final = 60.0  # A `dcos run` that was killed cannot come back: its tasks end after this.
_EXPLAIN_FIRST_S: Final = 3.0
_EXPLAIN_AGAIN_S: Final = 5.0
_NAME_LENGTH: Final = 40
_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]+")


@click.command("run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--cpus", default="0.1", help="For each instance; a weight among those that compete.")
@click.option("--mem", default="128MiB", help="For each instance; one that needs more is killed.")
@click.option("--disk", default="0", help="For each instance.")
@click.option("--instances", type=click.IntRange(1, INSTANCES_LIMIT), default=1, help="How many.")
@click.option("--name", help="Of framework and tasks.  [default: the command's]")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="An environment variable; may be given again.")
@click.option("--user", help="As whom it runs on the slave.  [default: you]")
@click.option("--role", default="*", help="Whose share of the cluster it uses.")
@click.option("--grace", type=DURATION, default="3s", help="From SIGTERM to SIGKILL when it is killed.")
@cluster_options
@json_option
@click.argument("command_line", nargs=-1, required=True, metavar="-- COMMAND [ARGUMENT]...")
def command(
    *,
    where: Where,
    cpus: str,
    mem: str,
    disk: str,
    instances: int,
    name: str | None,
    env: tuple[str, ...],
    user: str | None,
    role: str,
    grace: float,
    as_json: bool,
    command_line: tuple[str, ...],
) -> None:
    """Run COMMAND on the cluster, show its output as it comes, and exit with its status.

    It runs in an empty folder on some slave, without a shell: for pipes write `-- sh -c 'a | b'`. Of several
    instances each line begins with its number, and the greatest status counts. Ctrl-C kills and exits with 130.
    """
    chosen = _NOT_IN_NAME.sub("-", name or command_line[0].rpartition("/")[2])[:_NAME_LENGTH].lstrip(".-") or "run"
    plan = Plan(
        task_prefix=f"{chosen}-{secrets.token_hex(3)}",
        name=chosen,
        instance_count=instances,
        command=CommandInfo(arguments=command_line, environment=_environment(env), user=user),
        resources=_resources(cpus, mem, disk),
        kill_grace_s=grace,
    )
    sys.exit(asyncio.run(_run(where, plan, role, as_json=as_json)))


def _resources(cpus: str, mem: str, disk: str) -> Resources:
    texts = {"cpus": cpus, "mem": mem, "disk": disk}
    wanted = Resources(
        {name: parse_scalar(name, text, field=f"--{name}") for name, text in texts.items() if text != "0"}
    )
    if not wanted:
        raise InvalidInput("--cpus and --mem: 0 of everything cannot be offered; ask for --cpus 0.01 at least")
    return wanted


def _environment(texts: tuple[str, ...]) -> dict[str, str]:
    environment: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidInput(f"--env: {text!r} is not NAME=VALUE, as in LANG=C.UTF-8")
        environment[name] = value
    return environment


async def _run(where: Where, plan: Plan, role: str, *, as_json: bool) -> int:
    cluster, keys = find_cluster(where)
    info = FrameworkInfo(
        name=plan.name,
        user=plan.command.user or user_name(),
        roles=(role,),
        failover_timeout_s=FAILOVER_S,
        capabilities=(Capability.PARTITION_AWARE, Capability.TASK_KILLING_STATE),
        hostname=socket.gethostname(),
    )
    async with connect(where) as master:
        fault = refusal(plan.resources, await master.nodes())
        if fault is not None:
            raise InvalidInput(fault)
        terminal = _Terminal(master, plan, is_quiet=as_json)
        scheduler = RunScheduler(plan, terminal)
        driver = MesetaSchedulerDriver(
            scheduler,
            info,
            endpoint=cluster.master,
            keys=keys,
            master_public_key=cluster.master_public_key,
            auto_suppress=False,  # It suppresses by itself, as soon as nothing waits.
        )
        _leave_refusals_to_us()
        driver.start()
        joined = asyncio.create_task(driver.join())
        explaining = asyncio.create_task(_explain(master, plan, scheduler))
        with _signals(scheduler, driver) as interruption:
            try:
                await asyncio.wait((joined, terminal.done), return_when=asyncio.FIRST_COMPLETED)
                if terminal.done.done():
                    await terminal.finish()
            finally:
                explaining.cancel()
                driver.stop()
                await joined
        code = interruption[0] if interruption else scheduler.exit_code
    if scheduler.problem:
        raise MesetaError(f"the master ended this run: {scheduler.problem}")
    if as_json:
        print_json({"name": plan.name, "framework_id": scheduler.framework_id, "exit_code": code, **terminal.result()})
    return code


def _leave_refusals_to_us() -> None:
    """Keep the driver's log line of a refusal off the terminal: `scheduler.problem` says the same."""
    log = logging.getLogger("meseta.scheduler")
    log.addFilter(lambda record: not record.getMessage().startswith("framework refused"))


@contextlib.contextmanager
def _signals(scheduler: RunScheduler, driver: MesetaSchedulerDriver) -> Iterator[list[int]]:
    """Yield a list that is empty until Ctrl-C, and begins with our exit status then.

    The first Ctrl-C kills the tasks, the second tears the framework down, the third just leaves.
    """
    interruption: list[int] = []

    def interrupt(code: int) -> None:
        interruption.append(code)
        if len(interruption) == 1:
            note("dcos: killing; again to leave at once")
            scheduler.kill_all(driver)
        elif len(interruption) == 2:
            driver.stop()
        else:
            driver.abort()  # No master hears that we stop: it will tear the framework down when our time is over.

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupt, EXIT_INTERRUPTED)
    loop.add_signal_handler(signal.SIGTERM, interrupt, EXIT_TERMINATED)
    try:
        yield interruption
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


async def _explain(master: Master, plan: Plan, scheduler: RunScheduler) -> None:
    """Say why instances wait, after some seconds and when the reason changes."""
    told = ""
    await asyncio.sleep(_EXPLAIN_FIRST_S)
    while scheduler.waiting_count:
        with contextlib.suppress(MesetaError):  # A master that is away is waited for.
            reasons = await _reasons(master, plan, scheduler)
            text = f"{scheduler.waiting_count} of {plan.instance_count} wait: {reasons}"
            if text != told:
                note(f"dcos: {text}")
                told = text
        await asyncio.sleep(_EXPLAIN_AGAIN_S)


async def _reasons(master: Master, plan: Plan, scheduler: RunScheduler) -> str:
    views = await master.frameworks(name=plan.name)
    view = next((one for one in views if one.framework_info.id == scheduler.framework_id), None)
    if view is None:
        return "the framework is not registered with the master yet"
    ours = describe_no_fit(plan.resources, await master.nodes())
    waiting = view.waiting
    if waiting is None or not waiting.lost_to_lower_share:
        return ours
    return f"{ours} ({describe_waiting(waiting)})"


class _Terminal:
    """Shows the output of all instances as it comes."""

    def __init__(self, master: Master, plan: Plan, *, is_quiet: bool) -> None:
        self._master = master
        self._plan = plan
        self._is_quiet = is_quiet
        self._has_ended = [asyncio.Event() for _ in range(plan.instance_count)]
        self._streams: list[asyncio.Task[None]] = []
        self._texts: dict[tuple[int, str], bytearray] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def started(self, index: int, slave_id: SlaveId, framework_id: FrameworkId, container_id: ContainerId) -> None:
        for path, file in (("stdout", sys.stdout.buffer), ("stderr", sys.stderr.buffer)):
            pieces = follow_task(
                self._master, slave_id, framework_id, container_id, path, has_ended=self._has_ended[index]
            )
            stream = self._stream(index, path, file, pieces)
            self._streams.append(asyncio.create_task(stream))

    def ended(self, index: int) -> None:
        self._has_ended[index].set()

    def all_ended(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def tell(self, text: str) -> None:
        note(f"dcos: {text}")

    async def finish(self) -> None:
        """Wait until all output is shown."""
        await asyncio.gather(*self._streams)

    def result(self) -> dict[str, list[dict[str, str]]]:
        """Return what was gathered instead of shown, for `--json`."""
        instances = [
            {path: bytes(self._texts.get((index, path), b"")).decode(errors="replace") for path in ("stdout", "stderr")}
            for index in range(self._plan.instance_count)
        ]
        return {"instances": instances}

    async def _stream(self, index: int, path: str, file: BinaryIO, pieces: AsyncIterator[bytes]) -> None:
        prefix = "" if self._plan.instance_count == 1 or self._is_quiet else f"{index}| "
        printer = LinePrinter(lambda data: self._write(index, path, file, data), prefix)
        try:
            async for data in pieces:
                printer.feed(data)
        except MesetaError as error:
            note(f"dcos: the rest of {path} is out of reach: {error}")
        printer.end()

    def _write(self, index: int, path: str, file: BinaryIO, data: bytes) -> None:
        if self._is_quiet:
            self._texts.setdefault((index, path), bytearray()).extend(data)
            return
        file.write(data)
        file.flush()
