"""A cluster that `dcos up` started, and what must not be left of it."""

import binascii
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from cli.ending import supervisors
from cli.layout import Layout, ServiceRecord, is_alive
from tests.integration.real_cluster import free_port, wait_for

COMMAND_LIMIT_S: Final = 50.0


class CliCluster:
    """`dcos` with one cluster's folder."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder)
        self.port = free_port()
        self._groups: set[str] = set()

    def dcos(self, *arguments: str, status: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end; None: any exit status will do."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            env=self.environment(**environment),
            check=False,
        )
        if status is not None:
            assert done.returncode == status, f"{arguments}: {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def json(self, *arguments: str) -> Any:
        """Run one command with --json and return its object."""
        return json.loads(self.dcos(*arguments, "--json").stdout)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "cli.main", *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        return os.environ | {"MESETA_DIR": str(self.layout.folder)} | more

    def up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.dcos("up", "--without", "batch", "--port", str(self.port), *arguments)

    def record(self, name: str) -> ServiceRecord:
        record = self.layout.record(name)
        assert record is not None, f"{name} has no record"
        return record

    def kill9(self, name: str) -> None:
        """Kill a daemon or the keeper, and see it dead."""
        record = self.record(name)
        os.kill(record.pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(record), f"the death of {name}")

    def note_groups(self) -> None:
        """Remember which cgroups the present supervisors have: they are named after their sockets."""
        for name in ("slave-1", "slave-2", "slave-3"):
            for path in supervisors(self.layout.runtime_dir(name)):
                self._groups.add(f"{binascii.crc32(str(path).encode()):08x}")

    def leftovers(self) -> list[str]:
        """Return what is left of the cluster: processes, sockets, groups, records."""
        folder = str(self.layout.folder)
        left = [f"record {record.name}" for record in self.layout.records()]
        for name in ("slave-1", "slave-2", "slave-3"):
            runtime_dir = str(self.layout.runtime_dir(name))
            if os.path.exists(runtime_dir):
                left.append(f"folder {runtime_dir}")
            left += [f"process {one}" for one in _processes_of(runtime_dir)]
        left += [f"process {one}" for one in _processes_of(folder)]
        for path, folders, _ in os.walk("/sys/fs/cgroup"):
            left += [f"group {path}/{one}" for one in folders if one in self._groups]
        return left


def _processes_of(text: str) -> list[str]:
    """Return the processes that name `text` on their command line or in their environment, this one apart."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in words:
            found.append(f"{entry.name}: {words[:200].decode(errors='replace')}")
    return found
