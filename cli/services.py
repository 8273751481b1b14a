"""What `dcos up` starts: the one list of daemons, how they are started, and how soon again."""

import os
import signal
import subprocess
import time
from typing import Final

import msgspec

from cli.layout import Layout, ServiceRecord, Settings, start_ticks
from meseta.resources import MILLI, Resources

BACKOFF_BASE_S: Final = 0.1
BACKOFF_LIMIT_S: Final = 10.0
SETTLED_S: Final = 30.0  # A daemon that has lived so long was a good one: the back-off starts anew.

PORTS: Final = (31000, 32767)  # Up to where Linux takes the ports of outgoing connections from.

# Frameworks that `dcos up` starts, by name: each is a module with the flags of a daemon.
FRAMEWORKS: Final = {"batch": "frameworks.batch"}


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One daemon. `kind`: master, slave or framework."""

    name: str
    kind: str
    arguments: tuple[str, ...]


def services(layout: Layout, settings: Settings) -> list[Service]:
    """Return all daemons of the cluster, in the order in which they are started."""
    cluster = ("--cluster", str(layout.cluster_file))
    principals = ("--principals", str(layout.keys_dir / "principals.json"))
    events = ("--events-bind", settings.events) if settings.events else ()
    master = (*_key(layout, "master"), *principals, "--bind", settings.bind, *events)
    found = [Service(name="master", kind="master", arguments=_start(layout, settings, "master", "master") + master)]
    for name, resources in settings.slaves.items():
        flags = (
            *cluster,
            *_key(layout, "slave"),
            *principals,
            *("--runtime-dir", str(layout.runtime_dir(name))),
            *("--bind", f"tcp://{settings.address}:0"),
            *("--resources", resources),
            *(("--isolation", settings.isolation) if settings.isolation != "auto" else ()),
        )
        found.append(Service(name=name, kind="slave", arguments=_start(layout, settings, name, "slave") + flags))
    for name in settings.services:
        own = (*cluster, *_key(layout, name), *principals, "--bind", f"tcp://{settings.address}:0")
        start = _start(layout, settings, name, FRAMEWORKS[name])
        found.append(Service(name=name, kind="framework", arguments=start + own))
    return found


def _start(layout: Layout, settings: Settings, name: str, module: str) -> tuple[str, ...]:
    """Return the beginning of a daemon's command line, with the options that a person wrote to its file, if any."""
    config = layout.folder / ("slave.toml" if module == "slave" else f"{name}.toml")
    return (
        *(settings.python, "-P", "-m", module),
        *(("--config", str(config)) if config.exists() else ()),
        *("--work-dir", str(layout.work_dir(name))),
        *(("--log-level", settings.log_level) if settings.log_level != "info" else ()),
    )


def _key(layout: Layout, principal: str) -> tuple[str, str]:
    return "--key", str(layout.keys_dir / f"{principal}.json")


def spawn(
    layout: Layout, settings: Settings, service: Service, *, restart_count: int = 0, last_end: str = ""
) -> subprocess.Popen[bytes]:
    """Start a daemon in a session of its own, with its log, and write its record."""
    arguments = service.arguments
    if settings.has_records:
        layout.records_dir.mkdir(exist_ok=True)
        # A file for each life: a recording begins with the state that its core began with.
        path = layout.records_dir / f"{service.name}-{time.time_ns()}.rec"
        arguments = (*arguments, "--record", str(path))
    with layout.log_file(service.name).open("ab") as log:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=layout.folder,
            env=_environment(),
            start_new_session=True,
        )
    record = ServiceRecord(
        name=service.name,
        pid=process.pid,
        start_ticks=start_ticks(process.pid) or 0,
        started_unix_s=time.time(),
        restart_count=restart_count,
        last_end=last_end,
    )
    layout.write_record(record)
    return process


def _environment() -> dict[str, str]:
    """Return our own without MESETA_ variables: those of one command would become options of all daemons."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MESETA_")}


def describe_end(status: int) -> str:
    """Return how a process ended: `status 1`, or `SIGKILL`."""
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


class Backoff:
    """How long a daemon that died waits for its next start: 100 ms, doubled up to 10 s."""

    def __init__(self) -> None:
        self._delay_s = 0.0

    def after(self, lived_s: float) -> float:
        """Return the pause after a life of `lived_s` seconds."""
        if lived_s >= SETTLED_S or self._delay_s == 0.0:
            self._delay_s = BACKOFF_BASE_S
        else:
            self._delay_s = min(BACKOFF_LIMIT_S, self._delay_s * 2)
        return self._delay_s


def shares_of(measured: Resources, parts: int) -> list[Resources]:
    """Divide a machine among `parts` slaves: equal cpus, mem and disk, and disjoint ports.

    Cpus are rounded down to thousandths, mem and disk to whole MiB.
    """
    cpus = measured.get("cpus") // parts
    sizes = {name: measured.get(name) // parts // MILLI * MILLI for name in ("mem", "disk")}
    first, last = PORTS
    size = (last - first + 1) // parts
    return [
        Resources({"cpus": cpus, **sizes}, {"ports": ((first + index * size, first + (index + 1) * size - 1),)})
        for index in range(parts)
    ]
