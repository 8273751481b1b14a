"""`dcos node list`."""

from typing import Any

import click

from cli.commands import DcosGroup
from cli.connection import Where, ask_master, cluster_options
from cli.output import describe_age, describe_share, json_option, print_json, print_table, resources_json
from meseta.model import Node


@click.group("node", cls=DcosGroup)
def group() -> None:
    """Machines of the cluster."""


@group.command("list")
@cluster_options
@json_option
def list_command(*, where: Where, as_json: bool) -> None:
    """List the slaves: used and total resources, state, tasks."""
    nodes = ask_master(where, lambda master: master.nodes())
    if as_json:
        print_json({"nodes": [node_json(node) for node in nodes]})
        return
    columns = ("id", "host", "state", "cpus>", "mem>", "disk>", "tasks>", "up>", "attributes")
    rows = [
        (
            node.slave_id,
            node.hostname,
            node.state,
            *(describe_share(name, node.used, node.total) for name in ("cpus", "mem", "disk")),
            str(node.tasks_active),
            describe_age(node.registered_unix_s),
            ";".join(f"{name}:{value}" for name, value in node.attributes.items()),
        )
        for node in nodes
    ]
    print_table(columns, rows, empty="No slave is registered; start one with `dcos slave`.")


def node_json(node: Node) -> dict[str, Any]:
    """Return a node as `--json` shows it."""
    return {
        "id": node.slave_id,
        "hostname": node.hostname,
        "state": node.state,
        "endpoint": node.address.endpoint,
        "attributes": node.attributes,
        "total": resources_json(node.total),
        "used": resources_json(node.used),
        "offered": resources_json(node.offered),
        "tasks_active": node.tasks_active,
        "version": node.version,
        "registered_unix_s": node.registered_unix_s,
    }
