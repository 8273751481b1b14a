"""A follower of a real cluster: a task's life while `dcos run` runs, and a master that is killed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from meseta.errors import TransportError
from meseta.follower import Follower
from meseta.follower_core import Change, Mirror
from meseta.keys import Cluster, read_cluster, read_key_file
from meseta.messages import GetTasks, Hello, TaskChanged, Tasks
from meseta.model import TaskState
from meseta.requests import Requester
from meseta.transport import KeyPair, generate_keypair
from tests.integration.cli_cluster import CliCluster
from tests.unit.transport_peers import Notes

LIMIT_S = 40.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[CliCluster]:
    cluster = CliCluster(tmp_path / "cluster")
    cluster.up("--slaves", "1", "--resources", "cpus:2;mem:1GiB", "--isolation", "posix")
    yield cluster
    cluster.dcos("down")
    assert cluster.leftovers() == []


class FollowerNotes(Notes):
    """A follower's handler."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals: list[Mirror] = []
        self.changes: list[Change] = []
        self.reasons: list[str] = []

    def renewed(self, mirror: Mirror) -> None:
        self.renewals.append(mirror)
        self.noted()

    def changed(self, change: Change) -> None:
        self.changes.append(change)
        self.noted()

    def outdated(self, reason: str) -> None:
        self.reasons.append(reason)
        self.noted()

    def states(self) -> list[TaskState]:
        """Return the states that a task was seen in, each once, in order."""
        return list(dict.fromkeys(one.task.state for one in self.changes if isinstance(one, TaskChanged)))


def opened(cluster: CliCluster) -> tuple[Cluster, KeyPair]:
    return (
        read_cluster(cluster.layout.cluster_file),
        read_key_file(cluster.layout.keys_dir / "operator.json").pair,
    )


async def run_command(cluster: CliCluster, *command: str) -> int:
    process = await asyncio.create_subprocess_exec(
        *cluster.command("run", "--", *command), env=cluster.environment(), stdout=asyncio.subprocess.DEVNULL
    )
    return await process.wait()


def test_follower_sees_a_tasks_life_and_recovers_from_a_killed_master(cluster: CliCluster) -> None:
    where, keys = opened(cluster)
    assert where.events is not None
    assert where.master_public_key is not None

    async def main() -> None:
        notes = FollowerNotes()
        async with (
            asyncio.timeout(LIMIT_S),
            Follower(where.master, notes, keys=keys, server_public_key=where.master_public_key) as follower,
        ):
            await notes.until(lambda: notes.renewals)
            (node,) = follower.mirror.nodes.values()
            assert node.state == "active"
            assert follower.mirror.tasks == {}
            assert await run_command(cluster, "true") == 0
            await notes.until(lambda: TaskState.FINISHED in notes.states())
            assert notes.states()[0] is TaskState.STAGING
            assert [task.state for task in follower.mirror.tasks.values()] == [TaskState.FINISHED]
            assert notes.reasons == []

            cluster.kill9("master")
            await notes.until(lambda: notes.reasons)
            assert not follower.is_current
            assert len(follower.mirror.nodes) == 1  # The old state is shown until the new one is whole.
            await notes.until(lambda: follower.is_current)
            assert follower.mirror is notes.renewals[-1]
            await notes.until(lambda: [one.state for one in follower.mirror.nodes.values()] == ["active"])
            notes.changes.clear()
            assert await run_command(cluster, "true") == 0
            await notes.until(lambda: TaskState.FINISHED in notes.states())
            await is_equal_to_the_masters(follower, where, keys)

    asyncio.run(main())


async def is_equal_to_the_masters(follower: Follower, where: Cluster, keys: KeyPair) -> None:
    async with Requester(
        where.master, hello=Hello(kind="operator"), keys=keys, server_public_key=where.master_public_key
    ) as requester:
        page = await requester.request(GetTasks(request_id=requester.next_id(), include_completed=True))
    assert isinstance(page, Tasks)
    assert sorted(page.tasks, key=lambda task: task.task_id) == sorted(
        follower.mirror.tasks.values(), key=lambda task: task.task_id
    )


def test_follower_with_an_unknown_key_is_refused(cluster: CliCluster) -> None:
    where, _ = opened(cluster)

    async def main() -> None:
        notes = FollowerNotes()
        follower = Follower(where.master, notes, keys=generate_keypair(), server_public_key=where.master_public_key)
        with pytest.raises(TransportError, match="does not know our key"):
            async with follower:
                pass

    asyncio.run(main())
