"""`dcos up`, `down`, `status` and `keygen`."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cli.connection import Where, cluster_options, connect, folder_option
from cli.ending import LEAVE_LIMIT_S, STOP_LIMIT_S, LeftBehind, end_cluster, wait_for_end
from cli.layout import KEEPER, Layout, Process, ServiceRecord, Settings, is_alive, open_process
from cli.output import (
    describe_age,
    describe_duration,
    describe_resources,
    json_option,
    note,
    print_json,
    print_table,
    resources_json,
)
from cli.services import FRAMEWORKS
from meseta.errors import InvalidInput, MesetaError, TransportError

if TYPE_CHECKING:
    from meseta.messages import MasterStatus

SLAVES_LIMIT: Final = 100  # Each needs some 30 MiB and a share of the ports: more belong on more machines.
_DOWN_LIMIT_S: Final = 2 * STOP_LIMIT_S + 2 * LEAVE_LIMIT_S
_LOCK_WAIT_S: Final = 5.0
_STATUS_LIMIT_S: Final = 3.0  # A status that waits longer is of no use to who looks for what is wrong.


class NotUp(MesetaError):
    """There is no cluster to speak of."""


@click.command("up")
@folder_option
@click.option("--slaves", type=click.IntRange(1, SLAVES_LIMIT), help="How many slaves.  [default: 1, or as before]")
@click.option("--port", type=click.IntRange(1, 65535), help="The master's port.  [default: 5055, or a free one]")
@click.option(
    "--address", help="Where master and slaves listen; slaves elsewhere need a real one.  [default: 127.0.0.1]"
)
@click.option("--resources", help="What each slave has instead of its share of the machine, as cpus:2;mem:4GiB.")
@click.option(
    "--isolation",
    type=click.Choice(["auto", "cgroups", "posix"]),
    help="auto: cgroups where there are rights, else posix, which enforces no limits.  [default: auto]",
)
@click.option("--without", multiple=True, type=click.Choice(list(FRAMEWORKS)), help="A service not to start.")
@click.option(
    "--record/--no-record",
    default=None,
    help="Write the inputs of every daemon's core below records/, for replay.  [default: no]",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Of the daemons.  [default: info]"
)
@click.option("--foreground", is_flag=True, help="Stay here; Ctrl-C takes the cluster down.")
@json_option
def up(
    *,
    folder: Path,
    port: int | None,
    foreground: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Start a cluster on this machine: a master, slaves, the batch service, and a keeper that restarts them.

    Keys are made on the first call. If the keeper was killed, the cluster is repaired with what it was started with,
    and tasks run on. Options of the daemons may be written to master.toml, slave.toml and batch.toml in the folder.
    """
    from cli.starting import choose_settings, hand_over, prepare, start_keeper  # noqa: PLC0415

    started_at = time.monotonic()
    layout = Layout(folder)
    layout.make_folders()
    lock = layout.lock()
    if lock is None:
        _already_up(layout, given["slaves"], as_json=as_json)
        return
    settings = prepare(layout, choose_settings(layout, **given), port=port)
    keeper = start_keeper(layout, lock, is_foreground=foreground)
    hand_over(lock)
    _await_start(layout, settings, keeper.pid)
    if foreground:
        _leave_signals_to(keeper.pid)
    _tell_start(layout, settings, as_json=as_json, took_s=time.monotonic() - started_at)
    if foreground:
        _, status = os.waitpid(keeper.pid, 0)
        sys.exit(os.waitstatus_to_exitcode(status))


def _await_start(layout: Layout, settings: Settings, pid: int) -> None:
    from cli.starting import await_ready  # noqa: PLC0415

    try:
        asyncio.run(await_ready(layout, settings))
    except (MesetaError, KeyboardInterrupt):
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise


def _tell_start(layout: Layout, settings: Settings, *, as_json: bool, took_s: float) -> None:
    from cli.starting import unenforced  # noqa: PLC0415

    if as_json:
        print_json({**_status(layout)[0], "took_s": round(took_s, 3)})
        return
    count = len(settings.slaves)
    plural = "slave" if count == 1 else "slaves"
    click.echo(f"Up in {took_s:.1f} s: master at {settings.bind}, {count} {plural}, folder {layout.folder}")
    hints = (
        (layout.command("node list"), "see the machines"),
        (f"{layout.command('run')} -- echo hello", "run a command on one of them"),
        (layout.command("down"), "take it all down again"),
    )
    width = max(len(command) for command, _ in hints)
    for command, why in hints:
        note(f"  {command:<{width}}  {why}")
    if (missing := unenforced(settings)) is not None:
        note(f"Limits on cpus, mem and pids are NOT enforced here: {missing}")


def _leave_signals_to(pid: int) -> None:
    """Let the keeper end everything: it gets the terminal's Ctrl-C itself, a SIGTERM is handed on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(pid, signal.SIGTERM))


def _already_up(layout: Layout, slaves: int | None, *, as_json: bool) -> None:
    settings = layout.read_settings()
    record = layout.record(KEEPER)
    if settings is None or record is None or not is_alive(record):
        raise MesetaError(f"another `dcos up` or `dcos down` is at work in {layout.folder}; wait for its end")
    if slaves is not None and slaves != len(settings.slaves):
        raise MesetaError(
            f"--slaves: {slaves} asked for, and the cluster is up with {len(settings.slaves)};"
            f" take it down first with `{layout.command('down')}`"
        )
    note(f"The cluster in {layout.folder} is up already.")
    _show_status(layout, as_json=as_json)


@click.command("down")
@folder_option
@json_option
def down(folder: Path, as_json: bool) -> None:
    """End the cluster: frameworks, then slaves with all their tasks, then the master.

    Works too if the keeper was killed. Keys, logs and sandboxes stay.
    """
    layout = Layout(folder)
    was_up = False
    if layout.run_dir.exists():
        record = layout.record(KEEPER)
        keeper = None if record is None else open_process(record)
        if keeper is not None:
            was_up = True
            _end_keeper(layout, keeper)
        was_up = _end_without_keeper(layout) or was_up
    if as_json:
        print_json({"folder": str(layout.folder), "was_up": was_up})
    else:
        click.echo(f"Down: {layout.folder}" if was_up else f"No cluster is up in {layout.folder}.")


def _end_keeper(layout: Layout, keeper: Process) -> None:
    keeper.send_signal(signal.SIGTERM)
    if wait_for_end([keeper], _DOWN_LIMIT_S):
        raise LeftBehind(f"the keeper (pid {keeper.record.pid}) has not ended; see {layout.log_file(KEEPER)}")
    keeper.close()


def _end_without_keeper(layout: Layout) -> bool:
    """End what a killed keeper left; False if there is nothing."""
    lock = layout.lock(wait_s=_LOCK_WAIT_S)
    if lock is None:
        raise MesetaError(f"another `dcos up` or `dcos down` is at work in {layout.folder}; wait for its end")
    try:
        settings = layout.read_settings()
        if settings is None:
            return False
        end_cluster(layout, settings, note)
        layout.settings_file.unlink(missing_ok=True)
        layout.remove_record(KEEPER)
        return True
    finally:
        os.close(lock)


@click.command("status")
@cluster_options
@json_option
def status(where: Where, as_json: bool) -> None:
    """Show the master, its epoch, the daemons of this machine and what the cluster has. Exit 1 if it is not up."""
    _show_status(Layout(where.cluster_file.parent), where, as_json=as_json)


def _show_status(layout: Layout, where: Where | None = None, *, as_json: bool) -> None:
    values, answer = _status(layout, where)
    if as_json:
        print_json(values)
    else:
        _print_status(values, answer)
    if values["master"] is None:
        if not as_json and values["problem"]:
            note(f"dcos: {values['problem']}")
        sys.exit(1)


def _status(layout: Layout, where: Where | None = None) -> "tuple[dict[str, Any], MasterStatus | None]":
    """Return what `--json` shows, and the master's own words."""
    records = layout.records()
    keeper = next((record for record in records if record.name == KEEPER), None)
    answer: MasterStatus | None = None
    endpoint, problem = "", ""
    nodes: dict[str, str] = {}
    try:
        answer, endpoint, nodes = asyncio.run(_ask_status(where or Where(folder=layout.folder)))
    except (TransportError, InvalidInput) as error:
        problem = str(error)
    values: dict[str, Any] = {
        "folder": str(layout.folder),
        "problem": problem,
        "master": None if answer is None else _master_json(answer, endpoint),
        "keeper": None if keeper is None else {"pid": keeper.pid, "is_alive": is_alive(keeper)},
        "daemons": [_daemon_json(layout, record, nodes) for record in records if record.name != KEEPER],
    }
    return values, answer


def _daemon_json(layout: Layout, record: ServiceRecord, nodes: dict[str, str]) -> dict[str, Any]:
    slave_id = layout.slave_id(record.name)
    return {
        "name": record.name,
        "pid": record.pid,
        "is_alive": is_alive(record),
        "started_unix_s": record.started_unix_s,
        "restart_count": record.restart_count,
        "last_end": record.last_end,
        "slave_id": slave_id,
        "node_state": nodes.get(slave_id or ""),
    }


async def _ask_status(where: Where) -> "tuple[MasterStatus, str, dict[str, str]]":
    async with connect(where, timeout_s=_STATUS_LIMIT_S) as session:
        nodes = {str(node.slave_id): node.state for node in await session.nodes()}
        return await session.status(), session.requester.endpoint, nodes


def _master_json(answer: "MasterStatus", endpoint: str) -> dict[str, Any]:
    return {
        "endpoint": endpoint,
        "epoch": answer.epoch,
        "version": answer.version,
        "uptime_s": answer.uptime_s,
        "slaves_active": answer.slaves_active,
        "slaves_unreachable": answer.slaves_unreachable,
        "frameworks_active": answer.frameworks_active,
        "frameworks_disconnected": answer.frameworks_disconnected,
        "tasks_active": answer.tasks_active,
        "offers_outstanding": answer.offers_outstanding,
        "resources_total": resources_json(answer.resources_total),
        "resources_used": resources_json(answer.resources_used),
    }


def _print_status(values: dict[str, Any], answer: "MasterStatus | None") -> None:
    keeper = values["keeper"]
    if answer is not None:
        uptime = describe_duration(answer.uptime_s)
        endpoint = values["master"]["endpoint"]
        click.echo(f"master     {endpoint}, epoch {answer.epoch}, up {uptime}, version {answer.version}")
        click.echo(f"slaves     {answer.slaves_active} active, {answer.slaves_unreachable} unreachable")
        frameworks = f"{answer.frameworks_active} active, {answer.frameworks_disconnected} disconnected"
        click.echo(f"frameworks {frameworks}, {answer.tasks_active} tasks")
        click.echo(f"total      {describe_resources(answer.resources_total)}")
        click.echo(f"used       {describe_resources(answer.resources_used)}")
    if keeper is not None:
        state = f"pid {keeper['pid']}" if keeper["is_alive"] else "dead; `dcos up` repairs the cluster"
        click.echo(f"keeper     {state}")
    click.echo(f"folder     {values['folder']}")
    rows = [
        (
            one["name"],
            str(one["pid"]),
            "running" if one["is_alive"] else "dead",
            describe_age(one["started_unix_s"]) if one["is_alive"] else "-",
            str(one["restart_count"]),
            one["slave_id"] or "-",
            one["node_state"] or "-",
        )
        for one in values["daemons"]
    ]
    if rows:
        click.echo()
        print_table(("daemon", "pid>", "process", "for>", "restarts>", "slave id", "node"), rows, empty="")


@click.command("keygen")
@folder_option
@click.option("--principal", help="Make a key for one more principal, say of a person or a framework.")
@json_option
def keygen(folder: Path, principal: str | None, as_json: bool) -> None:
    """Make the keys of a cluster's folder: for master, operator, slaves and batch. Keys that exist are kept.

    Key files are below keys/; copy one to whom it belongs, with cluster.json. The public halves are in principals.json.
    """
    from meseta.keys import DEFAULT_PRINCIPALS, create_cluster_keys, read_key_file  # noqa: PLC0415

    layout = Layout(folder)
    layout.make_folders()
    names = DEFAULT_PRINCIPALS if principal is None else (principal,)
    known = {name for name in names if (layout.keys_dir / f"{name}.json").exists()}
    create_cluster_keys(layout.folder, names)
    files = [(name, layout.keys_dir / f"{name}.json") for name in names]
    if as_json:
        print_json(
            {
                "keys": [
                    {
                        "principal": name,
                        "file": str(path),
                        "public": read_key_file(path).public,
                        "is_new": name not in known,
                    }
                    for name, path in files
                ]
            }
        )
        return
    for name, path in files:
        click.echo(f"{path}  {'kept' if name in known else 'made'}")
