"""What a cluster's folder holds for the keeper: settings, records of processes, logs, locks.

cluster.json, keys/          where the master is, and who has which key
master.toml, slave.toml, …   options of daemons, if you write them
logs/NAME.log                one for the keeper and each daemon
run/NAME.json                one for the keeper and each daemon: pid and start time
master/, slave-1/, …         the daemons' own folders
"""

import fcntl
import os
import shlex
import signal
import time
import zlib
from pathlib import Path
from typing import Final

import msgspec

from meseta.errors import InvalidInput, MesetaError

KEEPER: Final = "keeper"
_STAT_START: Final = 19  # Field 22 of /proc/PID/stat, counted from the field after the name: clock ticks since boot.
_SIGNAL_BITS: Final = 16  # SigCgt is hexadecimal.
_FOLDER_MODE: Final = 0o755  # Tasks of other users work in sandboxes below it; keys/ is closed by itself.


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What `dcos up` was asked for: all that the keeper needs to start the daemons."""

    python: str
    bind: str  # The master's endpoint.
    events: str = ""  # Where the master publishes its event stream.
    address: str  # Where the slaves of this machine serve their files.
    slaves: dict[str, str]  # The resources of each, by its name.
    services: tuple[str, ...] = ()
    isolation: str = "auto"
    log_level: str = "info"
    has_records: bool = False  # Every daemon writes the inputs of its core below records/.


class ServiceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the keeper's, or the keeper. `start_ticks` tells it from a later owner of its pid."""

    name: str
    pid: int
    start_ticks: int
    started_unix_s: float
    restart_count: int = 0
    last_end: str = ""  # How the one before it ended.


class Layout:
    """The paths of one cluster's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.cluster_file = self.folder / "cluster.json"
        self.keys_dir = self.folder / "keys"
        self.logs_dir = self.folder / "logs"
        self.run_dir = self.folder / "run"
        self.records_dir = self.folder / "records"
        self.settings_file = self.run_dir / "settings.json"

    def make_folders(self) -> None:
        """Make what is missing.

        Raises:
            InvalidInput: the folder cannot be made or written.
        """
        try:
            for path in (self.folder, self.logs_dir, self.run_dir):
                path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"--dir: {self.folder} cannot be used: {error.strerror}; name another folder") from error

    def log_file(self, name: str) -> Path:
        return self.logs_dir / f"{name}.log"

    def work_dir(self, name: str) -> Path:
        return self.folder / name

    def runtime_dir(self, name: str) -> Path:
        """Return where a slave has its sockets: short, since a socket's path has 107 bytes at most."""
        digest = f"{zlib.crc32(os.fsencode(self.work_dir(name))):08x}"
        if os.geteuid() == 0:
            return Path("/run/meseta") / digest
        return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/meseta-{os.geteuid()}") / "meseta" / digest

    def slave_id(self, name: str) -> str | None:
        """Return the id that the slave `name` has got, None if it has none yet."""
        try:
            values = msgspec.json.decode((self.work_dir(name) / "slave_id.json").read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return None
        return values.get("slave_id")

    def command(self, verb: str) -> str:
        """Return the `dcos` command for this cluster, to be shown to people."""
        default = Path(os.environ.get("MESETA_DIR") or Path.home() / ".meseta").absolute()
        return f"dcos {verb}" if self.folder == default else f"dcos {verb} --dir {shlex.quote(str(self.folder))}"

    # --- Settings and records -------------------------------------------------------------------

    def read_settings(self) -> Settings | None:
        """Return what the last `dcos up` was asked for, None if there was none or it was taken down."""
        try:
            return msgspec.json.decode(self.settings_file.read_bytes(), type=Settings)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise InvalidInput(f"{self.settings_file} is damaged: {error}; remove it after `dcos down`") from error

    def write_settings(self, settings: Settings) -> None:
        _write(self.settings_file, settings)

    def records(self) -> list[ServiceRecord]:
        """Return the records of all processes, in the order of their names."""
        found: list[ServiceRecord] = []
        for path in sorted(self.run_dir.glob("*.json")):
            if path == self.settings_file:
                continue
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=ServiceRecord))
            except (FileNotFoundError, msgspec.DecodeError):
                continue  # Removed meanwhile, or none of ours.
        return found

    def record(self, name: str) -> ServiceRecord | None:
        """Return the record of one process."""
        return next((record for record in self.records() if record.name == name), None)

    def write_record(self, record: ServiceRecord) -> None:
        _write(self.run_dir / f"{record.name}.json", record)

    def remove_record(self, name: str) -> None:
        (self.run_dir / f"{name}.json").unlink(missing_ok=True)

    def lock(self, *, wait_s: float = 0.0) -> int | None:
        """Return the descriptor of the lock that a keeper holds for life, None if another has it."""
        fd = os.open(self.run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                if time.monotonic() >= until:
                    os.close(fd)
                    return None
                time.sleep(0.02)


class Process:
    """A process that cannot be mistaken for another: its pidfd, opened before its start time was compared."""

    def __init__(self, record: ServiceRecord, pidfd: int) -> None:
        self.record = record
        self.pidfd = pidfd

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it; nothing happens if it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise MesetaError(
                f"{self.record.name} (pid {self.record.pid}) belongs to another user; run this as that user or as root"
            ) from error

    def catches(self, number: signal.Signals) -> bool:
        """Return whether it has a handler for this signal: a daemon that starts up has none yet."""
        try:
            status = Path(f"/proc/{self.record.pid}/status").read_text()
        except OSError:
            return False
        mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
        return bool(int(mask, _SIGNAL_BITS) >> (number - 1) & 1)

    def close(self) -> None:
        os.close(self.pidfd)


def open_process(record: ServiceRecord) -> Process | None:
    """Return the process of a record, None if it has ended."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except (ProcessLookupError, OSError):
        return None
    if not is_alive(record):
        os.close(pidfd)
        return None
    return Process(record, pidfd)


def is_alive(record: ServiceRecord) -> bool:
    """Return whether the process runs that the record was written for."""
    return start_ticks(record.pid) == record.start_ticks


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[_STAT_START])


def _write(path: Path, value: msgspec.Struct) -> None:
    """Write whole or not at all; not synced, since no process outlives the machine."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(value)) + b"\n")
    os.replace(temporary, path)
