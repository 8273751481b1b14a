"""What all benchmarks share: a cluster of the shipped daemons, their CPU time and memory, and the one JSON line.

CPU is counted over whole process trees, children that have ended included, since that is what the
machine pays; the load before the run is printed beside it, since these machines are shared.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DCOS = str(Path(sys.executable).with_name("dcos"))
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
UP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Usage:
    """CPU seconds of a set of process trees, and the moment they were read."""

    cpu_s: float
    moment_s: float


def _stat(pid: int) -> tuple[int, float, float] | None:
    """Return parent, own CPU seconds and those of reaped children of `pid`; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    utime, stime, cutime, cstime = (int(field) * TICK_S for field in fields[11:15])
    return int(fields[1]), utime + stime, cutime + cstime


def tree(roots: Sequence[int]) -> list[int]:
    """Return `roots` and all that descends from them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            children.setdefault(stat[0], []).append(int(entry.name))
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.append(pid)
            waiting += children.get(pid, [])
    return found


def cpu_seconds(roots: Sequence[int]) -> float:
    """Return the CPU seconds of the trees under `roots`, ended and reaped children included."""
    stats = [stat for pid in tree(roots) if (stat := _stat(pid)) is not None]
    return sum(own + reaped for _, own, reaped in stats)


def pss_mib(pid: int) -> float:
    """Return the proportional set size of one process in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def dcos(folder: Path, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run a `dcos` command on the cluster of `folder`; a failure shows what it said."""
    command = [DCOS, *arguments]
    environment = os.environ | {"MESETA_DIR": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}: {result.stderr.strip()}")
    return result


def status(folder: Path) -> Any:
    """Return what `dcos status --json` says."""
    return json.loads(dcos(folder, "status", "--json").stdout)


def daemon_pids(folder: Path) -> dict[str, int]:
    """Return the pids of a cluster's daemons by name, supervisors as `supervisor-1` and so on."""
    found = {daemon["name"]: int(daemon["pid"]) for daemon in status(folder)["daemons"]}
    for entry in sorted(Path("/proc").iterdir()):
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "slave.supervisor" in words and any(word.startswith(f"{folder}/") for word in words):
            found[f"supervisor-{sum(name.startswith('supervisor') for name in found) + 1}"] = int(entry.name)
    return found


@contextmanager
def cluster(*, slaves: int, options: Sequence[str] = ()) -> Iterator[Path]:
    """Start a cluster of the shipped daemons with default flags in a folder of its own, and take it down."""
    with tempfile.TemporaryDirectory(prefix="meseta-bench-") as name:
        folder = Path(name)
        dcos(folder, "up", "--slaves", str(slaves), "--dir", name, *options, timeout_s=UP_TIMEOUT_S)
        try:
            yield folder
        finally:
            dcos(folder, "down", "--dir", name, timeout_s=UP_TIMEOUT_S)


def emit(benchmark: str, **values: object) -> None:
    """Print the one JSON line of a benchmark."""
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
    load = round(os.getloadavg()[0], 2)
    print(json.dumps({"benchmark": benchmark, **rounded, "load_1min": load}), flush=True)


def timed(command: Sequence[str], *, repeat: int, environment: dict[str, str] | None = None) -> list[float]:
    """Run a command `repeat` times; return its wall times in seconds, ascending."""
    times: list[float] = []
    for _ in range(repeat):
        started = time.perf_counter()
        subprocess.run(list(command), check=True, capture_output=True, env=os.environ | (environment or {}))
        times.append(time.perf_counter() - started)
    return sorted(times)


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return the value below which `share` of an ascending list lies."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
