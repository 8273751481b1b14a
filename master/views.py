"""Slaves and frameworks as operators and followers of the event stream see them."""

from collections.abc import Iterable

from master.cluster import Cluster
from master.state import FrameworkEntry, SlaveEntry, SlaveState
from meseta.model import FrameworkView, Node
from meseta.resources import Resources


def node_view(cluster: Cluster, slave: SlaveEntry) -> Node:
    """Return a slave with its sums."""
    return Node(
        slave_id=slave.slave_id,
        hostname=slave.info.hostname,
        state=_NODE_STATES[slave.state],
        address=slave.info.address,
        attributes=slave.info.attributes,
        total=slave.info.resources,
        used=cluster.used(slave),
        offered=cluster.offered(slave),
        tasks_active=count_active(slave),
        version=slave.info.version,
        registered_unix_s=slave.record.registered_unix_s,
    )


def framework_view(framework: FrameworkEntry) -> FrameworkView:
    """Return a framework with its sums, without what it waits for."""
    tasks = list(framework.tasks.values())
    held = [task.resources for task in (*tasks, *framework.disowned.values()) if task.is_charged]
    held += [executor.info.resources for executor in framework.executors.values()]
    return FrameworkView(
        framework_info=framework.info,
        state=framework.state.value,
        principal=framework.principal,
        used=sum_scalars(held),
        offered=sum_scalars(entry.offer.resources for entry in framework.offers.values()),
        tasks_active=sum(not task.state.is_terminal for task in tasks),
        tasks_completed=framework.tasks_completed,
        registered_unix_s=framework.registered_unix_s,
    )


_NODE_STATES = {
    SlaveState.RECOVERED: "recovered",
    SlaveState.ACTIVE: "active",
    SlaveState.DISCONNECTED: "disconnected",
    SlaveState.MARKING: "unreachable",
    SlaveState.UNREACHABLE: "unreachable",
    SlaveState.READMITTING: "recovered",
}


def count_active(slave: SlaveEntry) -> int:
    """Return how many tasks of a slave have not ended."""
    return sum(not task.state.is_terminal for task in slave.tasks.values())


def sum_scalars(many: Iterable[Resources]) -> Resources:
    """Return the sum of the scalars: ranges and sets of several slaves overlap."""
    sums: dict[str, int] = {}
    for one in many:
        for name, amount in one.scalars.items():
            sums[name] = sums.get(name, 0) + amount
    return Resources(sums)
