"""Finding the cluster and asking its master."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from meseta.errors import TransportError
from meseta.ids import FrameworkId, SlaveId, TaskId

if TYPE_CHECKING:
    from meseta.files import SlaveFiles
    from meseta.keys import Cluster
    from meseta.messages import MasterStatus, Message
    from meseta.model import Address, FrameworkView, Node, Task
    from meseta.requests import Requester
    from meseta.transport_keys import KeyPair

ANSWER_LIMIT_S: Final = 10.0  # A keeper has a dead master back within two seconds; beyond it a person must look.

_Answer = TypeVar("_Answer")


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Which cluster a command is about, as its options say."""

    folder: Path
    cluster: Path | None = None
    key: Path | None = None

    @property
    def cluster_file(self) -> Path:
        return self.cluster or self.folder / "cluster.json"

    @property
    def key_file(self) -> Path:
        return self.key or self.cluster_file.parent / "keys" / "operator.json"


def folder_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--dir`; the command gets `folder: Path`, absolute."""

    @click.option(
        "--dir",
        "folder",
        envvar="MESETA_DIR",
        default=lambda: str(Path.home() / ".meseta"),
        show_default="~/.meseta",
        type=click.Path(file_okay=False, path_type=Path, resolve_path=True),
        help="The cluster's folder.",
    )
    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    return wrapped


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--dir`, `--cluster` and `--key`; the command gets `where: Where`."""
    path = click.Path(dir_okay=False, path_type=Path)

    @folder_option
    @click.option(
        "--cluster", envvar="MESETA_CLUSTER", type=path, help="The cluster's file.  [default: cluster.json in --dir]"
    )
    @click.option(
        "--key", envvar="MESETA_KEY", type=path, help="Your key file.  [default: keys/operator.json beside --cluster]"
    )
    @wraps(command)
    def wrapped(*args: Any, folder: Path, cluster: Path | None, key: Path | None, **kwargs: Any) -> Any:
        return command(*args, where=Where(folder=folder, cluster=cluster, key=key), **kwargs)

    return wrapped


def find_cluster(where: Where) -> "tuple[Cluster, KeyPair | None]":
    """Read the cluster's file and our key.

    Raises:
        InvalidInput: a file is missing or damaged; says what to do.
    """
    from meseta.keys import read_cluster, read_key_file  # noqa: PLC0415 - loads ZeroMQ.

    cluster = read_cluster(where.cluster_file)
    if cluster.master_public_key is None:
        return cluster, None  # The cluster runs with --insecure.
    return cluster, read_key_file(where.key_file).pair


class Master:
    """A session with the master. Lists are whole, however many pages they take."""

    def __init__(self, requester: "Requester", keys: "KeyPair | None") -> None:
        self.requester = requester
        self.keys = keys

    async def status(self) -> "MasterStatus":
        """Return the master's own state."""
        from meseta.messages import GetMaster, MasterStatus  # noqa: PLC0415

        return await self.ask(GetMaster(request_id=self.requester.next_id()), MasterStatus)

    async def nodes(self) -> "list[Node]":
        """Return all slaves in the order of their ids."""
        from meseta.messages import GetNodes, Nodes  # noqa: PLC0415

        found: list[Node] = []
        after: str | None = ""
        while after is not None:
            page = await self.ask(GetNodes(request_id=self.requester.next_id(), after=after), Nodes)
            found += page.nodes
            after = page.next
        return found

    async def frameworks(self, *, name: str | None = None, include_completed: bool = False) -> "list[FrameworkView]":
        """Return frameworks in the order of their ids, of one name if it is given."""
        from meseta.messages import Frameworks, GetFrameworks  # noqa: PLC0415

        found: list[FrameworkView] = []
        after: str | None = ""
        while after is not None:
            question = GetFrameworks(
                request_id=self.requester.next_id(), after=after, name=name, include_completed=include_completed
            )
            page = await self.ask(question, Frameworks)
            found += page.frameworks
            after = page.next
        return found

    async def tasks(
        self,
        *,
        framework_id: FrameworkId | None = None,
        slave_id: SlaveId | None = None,
        include_completed: bool = False,
    ) -> "list[Task]":
        """Return tasks in the order of framework id and task id."""
        from meseta.messages import GetTasks, Tasks  # noqa: PLC0415

        found: list[Task] = []
        after: str | None = ""
        while after is not None:
            question = GetTasks(
                request_id=self.requester.next_id(),
                after=after,
                framework_id=framework_id,
                slave_id=slave_id,
                include_completed=include_completed,
            )
            page = await self.ask(question, Tasks)
            found += page.tasks
            after = page.next
        return found

    async def kill_task(self, framework_id: FrameworkId, task_id: TaskId, *, grace_period_s: float | None) -> None:
        """Have the task's slave end it; returns when the master has sent that on."""
        from meseta.messages import Done, OperatorKillTask  # noqa: PLC0415

        question = OperatorKillTask(
            request_id=self.requester.next_id(),
            framework_id=framework_id,
            task_id=task_id,
            grace_period_s=grace_period_s,
        )
        await self.ask(question, Done)

    async def ask(self, question: "Message", kind: type[_Answer]) -> _Answer:
        """Return the answer to `question`, which must be a `kind`."""
        answer = await self.requester.request(question)
        if not isinstance(answer, kind):
            raise TransportError(
                f"{self.requester.endpoint} answers {type(answer).__name__} to {type(question).__name__};"
                " its version is not ours"
            )
        return answer


@asynccontextmanager
async def connect(where: Where, *, timeout_s: float = ANSWER_LIMIT_S) -> "AsyncIterator[Master]":
    """Open a session with the cluster's master.

    Raises:
        InvalidInput: a file of the cluster is missing or damaged.
        TransportError: the master does not answer; says what to do.
    """
    from meseta.messages import Hello  # noqa: PLC0415
    from meseta.requests import Requester  # noqa: PLC0415

    cluster, keys = find_cluster(where)
    _refuse_dead_cluster(where)
    requester = Requester(
        cluster.master,
        hello=Hello(kind="operator", name="dcos"),
        keys=keys,
        server_public_key=cluster.master_public_key,
        timeout_s=timeout_s,
    )
    async with requester:
        yield Master(requester, keys)


def ask_master(where: Where, question: Callable[[Master], Coroutine[Any, Any, _Answer]]) -> _Answer:
    """Open a session, ask one question in it and return its answer."""

    async def ask() -> _Answer:
        async with connect(where) as master:
            return await question(master)

    return asyncio.run(ask())


@asynccontextmanager
async def slave_files(
    address: "Address", keys: "KeyPair | None", *, timeout_s: float = ANSWER_LIMIT_S
) -> "AsyncIterator[SlaveFiles]":
    """Open a session with a slave's own ROUTER."""
    from meseta.files import SlaveFiles  # noqa: PLC0415
    from meseta.messages import Hello  # noqa: PLC0415

    files = SlaveFiles(
        address.endpoint,
        keys=keys if address.public_key is not None else None,
        server_public_key=address.public_key,
        hello=Hello(kind="operator", name="dcos"),
        timeout_s=timeout_s,
    )
    async with files:
        yield files


def user_name() -> str:
    """Return who runs this command."""
    import pwd  # noqa: PLC0415

    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _refuse_dead_cluster(where: Where) -> None:
    """Say at once that a cluster of this machine is down, instead of waiting for its master."""
    from cli.layout import Layout, is_alive  # noqa: PLC0415

    layout = Layout(where.cluster_file.parent)
    if not layout.run_dir.exists():
        return  # Not started by `dcos up`, or not here.
    records = {record.name: record for record in layout.records()}
    if not any(is_alive(record) for name, record in records.items() if name in ("keeper", "master")):
        raise TransportError(f"no cluster is up in {layout.folder}; start it with `{layout.command('up')}`")
