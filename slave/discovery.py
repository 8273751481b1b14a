"""What this machine has: cpus, memory, disk, ports, and its names. As Mesos measures it."""

import os
import pwd
import socket
from pathlib import Path
from typing import Final

import psutil

from meseta.errors import InvalidInput
from meseta.resources import MILLI, Resources, parse_resources

DEFAULT_PORTS: Final = ((31000, 32000),)
_MIB: Final = 1 << 20
_MEM_KEPT_BYTES: Final = 1 << 30  # For the system itself: 1 GiB, of small machines half.
_DISK_KEPT_BYTES: Final = 5 << 30
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def measure(work_dir: Path) -> Resources:
    """Return the machine's resources; disk is that of `work_dir`'s file system, which must exist."""
    cpus = psutil.cpu_count(logical=True) or 1
    mem = psutil.virtual_memory().total
    disk = psutil.disk_usage(str(work_dir)).total
    return Resources(
        {
            "cpus": cpus * MILLI,
            "mem": (mem - min(_MEM_KEPT_BYTES, mem // 2)) // _MIB * MILLI,
            "disk": (disk - min(_DISK_KEPT_BYTES, disk // 2)) // _MIB * MILLI,
        },
        {"ports": DEFAULT_PORTS},
    )


def discover(work_dir: Path, override: str | None) -> Resources:
    """Return what is measured, with each resource that `override` names replaced by its value there.

    `override` is the text form (`cpus:2;mem:4GiB`); `cpus:0` takes a resource away.

    Raises:
        InvalidInput: `override` is no resources' text.
    """
    measured = measure(work_dir)
    if not override:
        return measured
    told = parse_resources(override, field="--resources")
    names = {part.partition(":")[0].strip() for part in override.split(";")}
    return Resources(
        {name: value for name, value in measured.scalars.items() if name not in names} | told.scalars,
        {name: value for name, value in measured.ranges.items() if name not in names} | told.ranges,
        {name: value for name, value in measured.sets.items() if name not in names} | told.sets,
    )


def parse_attributes(text: str | None) -> dict[str, str]:
    """Return attributes from `rack:r1;zone:z`.

    Raises:
        InvalidInput: a part has no name or no value, or comes twice.
    """
    attributes: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in (text or "").split(";"))):
        name, colon, value = (piece.strip() for piece in part.partition(":"))
        if not colon or not name or not value:
            raise InvalidInput(f"--attributes: {part!r} is not NAME:VALUE, as in rack:r1;zone:z")
        if name in attributes:
            raise InvalidInput(f"--attributes: {name} is given twice; give each attribute once")
        attributes[name] = value
    return attributes


def boot_id() -> str:
    """Return what differs after each boot of this machine; empty where the kernel does not tell."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def own_user() -> str:
    """Return who this process is, whatever its environment says: tasks of that user run as we do."""
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # A container's user without a name.
        return str(uid)


def hostname() -> str:
    """Return this machine's name."""
    return socket.gethostname()
