"""`dcos framework list`."""

from typing import Any

import click

from cli.commands import DcosGroup
from cli.connection import Where, ask_master, cluster_options
from cli.output import describe_age, describe_resources, json_option, print_json, print_table, resources_json
from cli.waiting import describe_waiting
from meseta.model import FrameworkView


@click.group("framework", cls=DcosGroup)
def group() -> None:
    """Frameworks: who runs tasks here."""


@group.command("list")
@click.option("--all", is_flag=True, help="Completed frameworks too.")
@cluster_options
@json_option
def list_command(*, where: Where, all: bool, as_json: bool) -> None:
    """List the frameworks: what they use, and why those wait that get no offers."""
    views = ask_master(where, lambda master: master.frameworks(include_completed=all))
    if as_json:
        print_json({"frameworks": [framework_json(view) for view in views]})
        return
    columns = ("id", "name", "state", "roles", "tasks>", "used", "up>", "waits")
    rows = [
        (
            view.framework_info.id or "-",
            view.framework_info.name,
            view.state,
            ",".join(view.framework_info.roles),
            str(view.tasks_active),
            describe_resources(view.used),
            describe_age(view.registered_unix_s),
            describe_waiting(view.waiting) or "-",
        )
        for view in views
    ]
    print_table(columns, rows, empty="No framework is registered.")


def framework_json(view: FrameworkView) -> dict[str, Any]:
    """Return a framework as `--json` shows it; `waits` is for people, `waiting` for programs."""
    info, waiting = view.framework_info, view.waiting
    return {
        "id": info.id,
        "name": info.name,
        "state": view.state,
        "user": info.user,
        "principal": view.principal,
        "roles": list(info.roles),
        "hostname": info.hostname,
        "webui_url": info.webui_url,
        "labels": info.labels,
        "endpoint": info.address.endpoint if info.address is not None else None,
        "tasks_active": view.tasks_active,
        "tasks_completed": view.tasks_completed,
        "used": resources_json(view.used),
        "offered": resources_json(view.offered),
        "registered_unix_s": view.registered_unix_s,
        "waits": describe_waiting(waiting) or None,
        "waiting": None
        if waiting is None
        else {
            "since_s": waiting.since_s,
            "suppressed_roles": list(waiting.suppressed_roles),
            "filtered_slaves": waiting.filtered_slaves,
            "too_small_slaves": waiting.too_small_slaves,
            "too_small_by": resources_json(waiting.too_small_by),
            "role_share": waiting.role_share,
            "lost_to_lower_share": waiting.lost_to_lower_share,
            "no_slaves": waiting.no_slaves,
        },
    }
