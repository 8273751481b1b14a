"""`dcos task list`, `log` and `kill`."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from cli.commands import DcosGroup
from cli.connection import Master, Where, ask_master, cluster_options, connect, slave_files
from cli.output import describe_age, describe_resources, json_option, note, print_json, print_table, resources_json
from cli.partial_ids import resolve
from cli.tail import SandboxFile, follow_task
from meseta.errors import InvalidInput, MesetaError, RequestRefused
from meseta.model import FrameworkView, Node, Task
from meseta.options import DURATION

_STATE_PREFIX: Final = "TASK_"
_COMPLETION_LIMIT_S: Final = 1.0  # Nobody waits longer after pressing Tab.
_END_POLL_S: Final = 1.0  # How often `log --follow` asks whether the task has ended.


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks with the names of what they belong to."""

    tasks: list[Task]
    frameworks: dict[str, FrameworkView]
    nodes: dict[str, Node]

    def framework_name(self, task: Task) -> str:
        view = self.frameworks.get(task.framework_id)
        return view.framework_info.name if view is not None else task.framework_id

    def hostname(self, task: Task) -> str:
        node = self.nodes.get(task.slave_id)
        return node.hostname if node is not None else task.slave_id


async def overview(master: Master, *, with_completed: bool) -> Overview:
    """Ask for tasks, frameworks and nodes at once."""
    tasks, frameworks, nodes = await asyncio.gather(
        master.tasks(include_completed=with_completed),
        master.frameworks(include_completed=with_completed),
        master.nodes(),
    )
    return Overview(
        tasks=tasks,
        frameworks={view.framework_info.id or "": view for view in frameworks},
        nodes={node.slave_id: node for node in nodes},
    )


@click.group("task", cls=DcosGroup)
def group() -> None:
    """Tasks: processes that frameworks run on slaves."""


@group.command("list")
@click.option("--all", is_flag=True, help="Completed tasks too, as many as the master remembers.")
@click.option("--framework", help="Only those of this framework: its name, or its id or the beginning of it.")
@click.option("--node", help="Only those on this node: its hostname, or its id or the beginning of it.")
@cluster_options
@json_option
def list_command(*, where: Where, all: bool, framework: str | None, node: str | None, as_json: bool) -> None:
    """List the tasks that run."""
    seen = ask_master(where, lambda master: overview(master, with_completed=all))
    tasks = seen.tasks
    if framework is not None:
        names = {id: view.framework_info.name for id, view in seen.frameworks.items()}
        wanted = _ids_of("framework", framework, names)
        tasks = [task for task in tasks if task.framework_id in wanted]
    if node is not None:
        wanted = _ids_of("node", node, {id: one.hostname for id, one in seen.nodes.items()})
        tasks = [task for task in tasks if task.slave_id in wanted]
    if as_json:
        print_json({"tasks": [task_json(task, seen) for task in tasks]})
        return
    columns = ("id", "framework", "node", "state", "uses", "user", "for>", "message")
    rows = [
        (
            task.task_id,
            seen.framework_name(task),
            seen.hostname(task),
            task.state.removeprefix(_STATE_PREFIX),
            describe_resources(task.resources),
            task.user or "-",
            describe_age(task.started_unix_s),
            task.status.message if task.status is not None else "",
        )
        for task in tasks
    ]
    empty = "There are no tasks." if all else "No task runs; `dcos task list --all` shows completed ones."
    print_table(columns, rows, empty=empty)


def _complete_task(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of tasks that begin so, none if the master does not answer at once."""
    folder = ctx.params.get("folder") or Path(os.environ.get("MESETA_DIR") or Path.home() / ".meseta")
    where = Where(folder=folder, cluster=ctx.params.get("cluster"), key=ctx.params.get("key"))

    async def ask() -> list[str]:
        async with connect(where, timeout_s=_COMPLETION_LIMIT_S) as master:
            tasks = await master.tasks(include_completed=ctx.info_name == "log")
        return [task.task_id for task in tasks if task.task_id.startswith(incomplete)]

    try:
        return asyncio.run(ask())
    except MesetaError:
        return []


@group.command("log")
@click.argument("task", shell_complete=_complete_task)
@click.option("--stderr", is_flag=True, help="What it wrote to stderr instead of stdout.")
@click.option("--lines", type=click.IntRange(min=1), help="Only the last so many lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the task ends.")
@cluster_options
@json_option
def log_command(*, where: Where, task: str, stderr: bool, lines: int | None, follow: bool, as_json: bool) -> None:
    """Print what TASK wrote, also if it has ended. TASK is an id, or as much of it as is unique."""
    if as_json and follow:
        raise InvalidInput("--json: one object cannot be printed while --follow goes on; leave one of them away")
    asyncio.run(_log(where, task, "stderr" if stderr else "stdout", lines, follow=follow, as_json=as_json))


async def _log(where: Where, text: str, path: str, lines: int | None, *, follow: bool, as_json: bool) -> None:
    async with connect(where) as master:
        seen = await overview(master, with_completed=True)
        task = _find(text, seen.tasks)
        if task.container_id is None:
            raise RequestRefused(f"task {task.task_id} has no output: it was never started", code="not_found")
        node = seen.nodes.get(task.slave_id)
        if node is None:
            raise RequestRefused(
                f"the output of task {task.task_id} is out of reach: its slave {task.slave_id} is gone"
            )
        async with slave_files(node.address, master.keys) as files:
            file = SandboxFile(files, task.framework_id, task.container_id, path)
            offset = 0 if lines is None else await file.offset_of_last_lines(lines)
            if as_json:
                data = b"".join([piece async for piece in file.pieces(offset)])
                values = {"task_id": task.task_id, "file": path, "offset": offset}
                print_json({**values, "text": data.decode(errors="replace")})
                return
            async for data in file.pieces(offset):
                _write(data)
                offset += len(data)
        if follow and not task.state.is_terminal:
            await _follow(master, task, path, offset)


async def _follow(master: Master, task: Task, path: str, offset: int) -> None:
    assert task.container_id is not None
    has_ended = asyncio.Event()
    watch = asyncio.create_task(_watch_end(master, task, has_ended))
    try:
        async for data in follow_task(
            master, task.slave_id, task.framework_id, task.container_id, path, has_ended=has_ended, offset=offset
        ):
            _write(data)
    finally:
        watch.cancel()


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


async def _watch_end(master: Master, task: Task, has_ended: asyncio.Event) -> None:
    """Set `has_ended` when the task has no more to say."""
    while not has_ended.is_set():
        await asyncio.sleep(_END_POLL_S)
        tasks = await master.tasks(framework_id=task.framework_id, slave_id=task.slave_id)
        if not any(one.task_id == task.task_id and not one.state.is_terminal for one in tasks):
            has_ended.set()


@group.command("kill")
@click.argument("tasks", nargs=-1, required=True, shell_complete=_complete_task)
@click.option("--grace", type=DURATION, help="From SIGTERM to SIGKILL, as 10s.  [default: what the task asked for]")
@cluster_options
@json_option
def kill_command(*, where: Where, tasks: tuple[str, ...], grace: float | None, as_json: bool) -> None:
    """Kill TASKS: ids, or as much of each as is unique. Nothing is killed if one of them is wrong."""
    killed = ask_master(where, lambda master: _kill(master, tasks, grace))
    if as_json:
        print_json({"killed": [{"task_id": task.task_id, "framework_id": task.framework_id} for task in killed]})
        return
    for task in killed:
        note(f"Kill of {task.task_id} is on its way.")


async def _kill(master: Master, texts: Sequence[str], grace_period_s: float | None) -> list[Task]:
    known = await master.tasks(include_completed=True)
    found = [_find(text, known) for text in texts]
    for task in found:
        if task.state.is_terminal:
            raise RequestRefused(f"task {task.task_id} has ended already, as {task.state}; nothing was killed")
    for task in found:
        await master.kill_task(task.framework_id, task.task_id, grace_period_s=grace_period_s)
    return found


def _find(text: str, tasks: Sequence[Task]) -> Task:
    """Return the task that `text` names: its id or the beginning of it, with `FRAMEWORK/` before it if need be."""
    if "/" in text:
        ids = {f"{task.framework_id}/{task.task_id}": task for task in tasks}
        return ids[resolve("task", text, list(ids), listing="dcos task list --all")]
    chosen = resolve("task", text, [task.task_id for task in tasks], listing="dcos task list --all")
    matches = [task for task in tasks if task.task_id == chosen]
    if len(matches) > 1:
        names = ", ".join(f"{task.framework_id}/{task.task_id}" for task in matches)
        raise InvalidInput(f"task {text!r} is one of several frameworks; write one of {names}")
    return matches[0]


def _ids_of(kind: str, text: str, name_by_id: dict[str, str]) -> set[str]:
    """Return the ids whose name is `text`, or the one id that begins with it."""
    named = {one for one, name in name_by_id.items() if name == text}
    return named or {resolve(kind, text, list(name_by_id), listing=f"dcos {kind} list")}


def task_json(task: Task, seen: Overview) -> dict[str, Any]:
    """Return a task as `--json` shows it."""
    status = task.status
    return {
        "id": task.task_id,
        "name": task.name,
        "framework_id": task.framework_id,
        "framework": seen.framework_name(task),
        "slave_id": task.slave_id,
        "hostname": seen.hostname(task),
        "executor_id": task.executor_id,
        "container_id": task.container_id,
        "state": task.state,
        "role": task.role,
        "user": task.user,
        "resources": resources_json(task.resources),
        "started_unix_s": task.started_unix_s,
        "reason": status.reason if status is not None else None,
        "message": status.message if status is not None else "",
        "exit_status": status.exit_status if status is not None else None,
    }
