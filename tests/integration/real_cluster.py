"""A cluster of the shipped daemons for tests: started as operators would, killed as nobody should."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from meseta.keys import Cluster, create_cluster_keys, read_key_file, write_cluster

DEADLINE_S = 30.0
POLL_S = 0.02


def wait_for(condition: Callable[[], object], what: str, *, limit_s: float = DEADLINE_S) -> None:
    """Poll until `condition` holds; fail naming `what` after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit_s:.0f} s for {what}")
        time.sleep(POLL_S)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    import socket  # noqa: PLC0415 - used here alone

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Daemon:
    """One daemon: its command, its log and its present process."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: dict[str, str], *, prefix: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.log = log
        self._command = [*prefix, sys.executable, "-P", "-m", *command]  # The prefix becomes the daemon by exec.
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None
        self.start_count = 0
        self._log_offset = 0

    def start(self, *more: str) -> None:
        """Start it, with `more` arguments this time."""
        self.start_count += 1
        with self.log.open("ab") as log:
            self._log_offset = log.tell()
            self.process = subprocess.Popen(
                [*self._command, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environment,
                start_new_session=True,
            )

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def end(self, number: int = signal.SIGTERM, limit_s: float = 20.0) -> int:
        """End it in order; return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(limit_s)

    def is_ready_or_gone(self) -> bool:
        """True once the present process has said that it is ready, and so listens to signals, or has ended."""
        return b" ready " in self.log.read_bytes()[self._log_offset :] or not self.is_running

    @property
    def is_running(self) -> bool:
        """True while its process lives."""
        return self.process is not None and self.process.poll() is None


class RealCluster:
    """Keys, one master and some slaves in `folder`; started one by one, taken down as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        slaves: int,
        isolation: str = "posix",
        resources: str = "cpus:4;mem:4GiB",
        master_options: Sequence[str] = (),
        slave_options: Sequence[str] = (),
        record: bool = False,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.recordings = folder / "recordings"
        self.recordings.mkdir()
        self._records = record
        create_cluster_keys(folder)
        public_key = read_key_file(folder / "keys" / "master.json").public
        write_cluster(
            folder / "cluster.json", Cluster(master=f"tcp://127.0.0.1:{self.port}", master_public_key=public_key)
        )
        self.environment = {"MESETA_DIR": str(folder)}
        keys = folder / "keys"
        self.master = self._daemon(
            "master",
            "--bind",
            f"tcp://127.0.0.1:{self.port}",
            "--work-dir",
            str(folder / "master"),
            "--key",
            str(keys / "master.json"),
            "--principals",
            str(keys / "principals.json"),
            *master_options,
        )
        self.slaves: list[Daemon] = []
        self.runtime_dirs: list[Path] = []
        for index in range(slaves):
            runtime_dir = folder / f"r{index}"
            self.runtime_dirs.append(runtime_dir)
            name = f"slave-{index}"
            options = ["--work-dir", str(folder / name), "--runtime-dir", str(runtime_dir), "--isolation", isolation]
            daemon = self._daemon("slave", *options, "--resources", resources, *slave_options, name=name)
            self.slaves.append(daemon)

    def __enter__(self) -> "RealCluster":
        self.start(self.master)
        for slave in self.slaves:
            self.start(slave)
        return self

    def __exit__(self, *_: object) -> None:
        for slave in self.slaves:
            if slave.is_running:
                wait_for(slave.is_ready_or_gone, f"{slave.name} to be ready")
                slave.end(signal.SIGUSR1)
        if self.master.is_running:
            self.master.end()
        try:
            wait_for(lambda: not self.supervisors(), "the supervisors to end with their slaves", limit_s=10.0)
        finally:
            for pid in self.supervisors():
                os.kill(pid, signal.SIGKILL)

    def start(self, daemon: Daemon) -> None:
        """Start or restart a daemon, each time with a recording of its own if the cluster records."""
        recording = self.recordings / f"{daemon.name}-{daemon.start_count}.rec"
        daemon.start(*(["--record", str(recording)] if self._records else []))

    def supervisors(self) -> list[int]:
        """Return the pids of this cluster's supervisors."""
        marks = [str(runtime_dir).encode() for runtime_dir in self.runtime_dirs]
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if b"slave.supervisor" in command and any(mark in command for mark in marks):
                    found.append(int(entry.name))
        return found

    def dcos(self, *arguments: str, limit_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a `dcos` command on this cluster."""
        command = [str(Path(sys.executable).with_name("dcos")), *arguments]
        environment = os.environ | self.environment
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=environment, check=False)

    def logs(self) -> str:
        """Return the ends of all logs, for the report of a failure."""
        parts: list[str] = []
        for path in sorted(self.folder.glob("*.log")):
            parts.append(f"--- {path.name}\n{path.read_text()[-3000:]}")
        return "\n".join(parts)

    def _daemon(self, module: str, *options: str, name: str | None = None) -> Daemon:
        shown = name or module
        return Daemon(shown, [module, *options], self.folder / f"{shown}.log", self.environment)


def read_lines(path: Path) -> list[list[str]]:
    """Return the words of each whole line of a file that others append to."""
    if not path.exists():
        return []
    text = path.read_text()
    return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]


def read_json_lines(path: Path) -> list[dict[str, object]]:
    """Return the records of a file of JSON lines; a torn last one is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
