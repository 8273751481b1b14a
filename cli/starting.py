"""What `dcos up` does before and after the keeper starts: keys, ports, shares, and waiting for the daemons."""

import asyncio
import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from cli.connection import Where, connect
from cli.ending import end_cluster, stop_daemons
from cli.layout import KEEPER, Layout, Settings
from cli.output import note
from cli.services import FRAMEWORKS, shares_of
from meseta.errors import InvalidInput, MesetaError
from meseta.keys import DEFAULT_PRINCIPALS, Cluster, create_cluster_keys, read_cluster, read_key_file, write_cluster
from meseta.resources import Resources, parse_resources

DEFAULT_PORT: Final = 5055
DEFAULT_EVENTS_PORT: Final = 5056
READY_LIMIT_S: Final = 30.0  # Ten times what three slaves need on two cores.
DEATHS_LIMIT: Final = 3  # Starts that failed before `up` gives up: what fails thrice in a second does not heal.
_POLL_S: Final = 0.03
_LOG_TAIL_BYTES: Final = 4096


class NotReady(MesetaError):
    """The daemons did not come up; says which, and what its log ends with."""


def choose_settings(
    layout: Layout,
    *,
    slaves: int | None,
    address: str | None,
    resources: str | None,
    isolation: str | None,
    without: tuple[str, ...],
    record: bool | None,
    log_level: str | None,
) -> Settings:
    """Return what was asked for; what was not is as in the cluster that is to be repaired, else by default.

    Raises:
        InvalidInput: the resources cannot be read, or would give all slaves the same ports.
    """
    before = layout.read_settings() or Settings(python="", bind="", address="127.0.0.1", slaves={})
    if before.slaves and resources is None and slaves in (None, len(before.slaves)):
        shares = before.slaves
    else:
        shares = slave_shares(layout.folder, slaves or len(before.slaves) or 1, resources)
    services = before.services if before.slaves and not without else tuple(FRAMEWORKS)
    return Settings(
        python=sys.executable,
        bind="",
        address=address or before.address,
        slaves=shares,
        services=tuple(name for name in services if name not in without),
        isolation=isolation or before.isolation,
        log_level=log_level or before.log_level,
        has_records=before.has_records if record is None else record,
    )


def prepare(layout: Layout, settings: Settings, *, port: int | None) -> Settings:
    """Make keys and cluster file, end what a killed keeper left, and write the settings for the next one.

    Raises:
        InvalidInput: the folder belongs to a master elsewhere, or the port is taken.
    """
    if layout.cluster_file.exists() and not (layout.keys_dir / "master.json").exists():
        master = read_cluster(layout.cluster_file).master
        raise InvalidInput(
            f"--dir: {layout.folder} is of the cluster at {master}, which was started elsewhere; name another folder"
        )
    _end_leftovers(layout, settings)
    create_cluster_keys(layout.folder, tuple({**dict.fromkeys(DEFAULT_PRINCIPALS), **dict.fromkeys(settings.services)}))
    settings = _bound(layout, settings, port)
    public_key = read_key_file(layout.keys_dir / "master.json").public
    cluster = Cluster(master=settings.bind, master_public_key=public_key, events=settings.events)
    write_cluster(layout.cluster_file, cluster)
    layout.write_settings(settings)
    return settings


def _end_leftovers(layout: Layout, settings: Settings) -> None:
    """End the daemons of a keeper that was killed; their tasks run on if the same slaves start again."""
    before = layout.read_settings()
    layout.remove_record(KEEPER)
    if before is None:
        return
    if before.slaves == settings.slaves:
        stop_daemons(layout, before, note)
    else:
        end_cluster(layout, before, note)


def _bound(layout: Layout, settings: Settings, port: int | None) -> Settings:
    """Return the settings with the master's endpoint: the port that was asked for, or one that is free."""
    address = settings.address
    known = read_cluster(layout.cluster_file) if layout.cluster_file.exists() else Cluster(master="")
    if port is not None:
        if not _is_free(address, port):
            raise InvalidInput(f"--port: {port} is taken at {address}; leave --port away and one is chosen")
        chosen = port
    else:
        chosen = _first_free(address, known.master, DEFAULT_PORT)
    events = _first_free(address, known.events or "", DEFAULT_EVENTS_PORT, but=chosen)
    return msgspec.structs.replace(settings, bind=f"tcp://{address}:{chosen}", events=f"tcp://{address}:{events}")


def _first_free(address: str, known: str, default: int, *, but: int | None = None) -> int:
    """Return the port of the endpoint `known` if it is free, else `default`, else any."""
    port = known.rpartition(":")[2]
    for candidate in (int(port) if port.isdigit() else 0, default):
        if candidate not in (0, but) and _is_free(address, candidate):
            return candidate
    while (chosen := _any_port(address)) == but:
        continue
    return chosen


def _is_free(address: str, port: int) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return False
        raise InvalidInput(f"--address: {address} is no address of this machine; see `ip address`") from error
    return True


def _any_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def slave_shares(folder: Path, count: int, told: str | None) -> dict[str, str]:
    """Return the resources of each of `count` slaves as text: its share of the machine, changed by `told`.

    Raises:
        InvalidInput: `told` is no resources' text, or gives all slaves the same ports.
    """
    from slave.discovery import measure  # noqa: PLC0415 - the measuring is the slave's.

    extra = parse_resources(told, field="--resources") if told else Resources()
    names = {part.partition(":")[0].strip() for part in (told or "").split(";")}
    if extra.ranges and count > 1:
        name = next(iter(extra.ranges))
        raise InvalidInput(f"--resources: {name} would be the same for {count} slaves; leave it away, or start 1 slave")
    result: dict[str, str] = {}
    for index, share in enumerate(shares_of(measure(folder), count), start=1):
        scalars = {name: amount for name, amount in share.scalars.items() if name not in names} | extra.scalars
        ranges = {name: pieces for name, pieces in share.ranges.items() if name not in names} | extra.ranges
        result[f"slave-{index}"] = str(Resources(scalars, ranges, extra.sets))
    return result


def start_keeper(layout: Layout, lock: int, *, is_foreground: bool) -> subprocess.Popen[bytes]:
    """Start the keeper, which takes over the lock."""
    with layout.log_file(KEEPER).open("ab") as log:
        return subprocess.Popen(
            (sys.executable, "-P", "-m", "cli.keeper", str(layout.folder), str(lock)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=layout.folder,
            pass_fds=(lock,),
            start_new_session=not is_foreground,
        )


async def await_ready(layout: Layout, settings: Settings) -> None:
    """Wait until the master answers and all slaves and frameworks of the settings are registered.

    Raises:
        NotReady: that took too long, or a daemon dies again and again.
    """
    until = time.monotonic() + READY_LIMIT_S
    missing = ["master"]
    host, _, port = settings.bind.removeprefix("tcp://").rpartition(":")
    while not _answers(host.strip("[]"), int(port)):
        _check_progress(layout, missing, until)
        await asyncio.sleep(_POLL_S)
    async with connect(Where(folder=layout.folder), timeout_s=READY_LIMIT_S) as master:
        while True:
            active = {node.slave_id for node in await master.nodes() if node.state == "active"}
            missing = [name for name in settings.slaves if layout.slave_id(name) not in active]
            if settings.services and not missing:
                names = {one.framework_info.name for one in await master.frameworks() if one.state == "active"}
                missing = [name for name in settings.services if name not in names]
            if not missing:
                return
            _check_progress(layout, missing, until)
            await asyncio.sleep(_POLL_S)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def _check_progress(layout: Layout, missing: list[str], until: float) -> None:
    for name in missing:
        record = layout.record(name)
        if record is not None and record.restart_count >= DEATHS_LIMIT:
            raise NotReady(f"{name} does not start ({record.last_end}): {_last_line(layout, name)}")
    if time.monotonic() > until:
        texts = [f"{name}: {_last_line(layout, name)}" for name in missing]
        raise NotReady(f"not ready after {READY_LIMIT_S:.0f} s: {'; '.join(texts)}")


def _last_line(layout: Layout, name: str) -> str:
    """Return what a daemon's log ends with, and where it is."""
    path = layout.log_file(name)
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"{lines[-1]!r} in {path}" if lines else f"nothing in {path}"


def hand_over(lock: int) -> None:
    """Close our end of the lock: the keeper has its own."""
    os.close(lock)


def unenforced(settings: Settings) -> str | None:
    """Return why the slaves of this machine enforce no limits; None: they do, by cgroups."""
    from isolation.cgroups import CGROUP_ROOT, available  # noqa: PLC0415

    if settings.isolation == "posix":
        return "isolation posix was asked for"
    return available(CGROUP_ROOT, f"probe-{os.getpid()}")
