"""Hosts on one machine: each with a network, mounts, a /tmp and a name of its own, on one switch.

A host is a process that holds namespaces without names: they and all links are gone with the last
process in them, whatever happens to the test. What hosts share is what `visible` names, as over a
network file system, and the machine's programs; each one's /tmp is a file system that nobody else
can reach by any path. Needs root.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from meseta.keys import Cluster, create_cluster_keys, read_key_file, write_cluster
from tests.integration.real_cluster import Daemon, wait_for

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PRIVATE_DIR: Final = Path("/tmp")  # The same path on every host, and another folder on each.
MASTER_PORT: Final = 5055
COMMAND_LIMIT_S: Final = 30.0
_NETWORK: Final = "10.213.0"
_TOOLS: Final = ("bridge", "ip", "mount", "nsenter", "tc", "unshare")
_END_LIMIT_S: Final = 10.0

# STAGE NAME ADDRESSES VISIBLE...: what is covered by the new /tmp is bound into the stage before, and from there, by
# paths relative to a working directory that no path leads to any more, to its place in the new /tmp.
_HOLD: Final = """
set -eu
stage=$1; echo "$2" > /proc/sys/kernel/hostname; addresses=$3; shift 3
mount -t tmpfs -o size=256m meseta-host "$stage"
cd "$stage"
mkdir -m 1777 tmp
echo "$addresses" > addresses
mount --bind addresses /etc/hosts
count=0
for path; do
    count=$((count + 1)); mkdir -p "visible/$count"; mount --bind "$path" "visible/$count"
done
mount --no-canonicalize --bind tmp /tmp
count=0
for path; do
    count=$((count + 1)); mkdir -p "$path"; mount --no-canonicalize --bind "visible/$count" "$path"
done
cd /
echo ready
exec cat
"""


class Host:
    """Network, mounts and host name, held by one process. `addresses` is its /etc/hosts."""

    def __init__(self, name: str, address: str, stage: Path, addresses: str, visible: Sequence[Path]) -> None:
        self.name = name
        self.address = address
        covered = [str(path) for path in visible if path.is_relative_to(PRIVATE_DIR)]
        words = [_HOLD, "sh", str(stage), name, addresses, *covered]
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "--", "sh", "-c", *words],
            stdin=subprocess.PIPE,  # Its end ends the holder.
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            self.close()
            raise AssertionError(f"host {name} has no namespaces: see what unshare and mount said above")
        self.network = os.readlink(f"/proc/{self.pid}/ns/net")

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def prefix(self) -> list[str]:
        """Return the words before a command that shall run on this host."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--"]

    def run(self, *command: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command here; its exit status is for the caller to look at."""
        return subprocess.run(
            [*self.prefix, *command],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            env=os.environ | environment,
            check=False,
        )

    def call(self, *command: str, stdin: str | None = None) -> str:
        """Run a command that must succeed here; return what it printed."""
        done = self.run(*command, stdin=stdin)
        assert done.returncode == 0, f"{self.name}: {' '.join(command)}: {done.stderr}"
        return done.stdout

    def processes(self) -> list[int]:
        """Return the pids of all that runs here, the holder apart."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                try:
                    network = os.readlink(entry / "ns/net")
                except OSError:  # It ended.
                    continue
                if network == self.network:
                    found.append(int(entry.name))
        return found

    def kill_all(self) -> None:
        """Kill what runs here, again until nothing is left: a process may start another meanwhile."""
        deadline = time.monotonic() + _END_LIMIT_S
        while pids := self.processes():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            assert time.monotonic() < deadline, f"host {self.name}: processes {pids} do not die"
            time.sleep(0.01)

    def close(self) -> None:
        """Let go of the namespaces."""
        self._holder.communicate()


class Hosts:
    """Hosts on a switch, which is a namespace too; used as a context manager."""

    def __init__(self, folder: Path, names: Sequence[str], visible: Sequence[Path]) -> None:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        assert not missing, f"hosts need {', '.join(missing)}; install iproute2, util-linux and mount"
        assert os.geteuid() == 0, "hosts need root, for their namespaces"
        self._stage = folder / "stage"
        self._stage.mkdir()
        prefixes = (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
        self._visible = tuple(dict.fromkeys((*prefixes, *visible)))
        self._address_by_name = {name: f"{_NETWORK}.{index}" for index, name in enumerate(names, 1)}
        self._hosts: dict[str, Host] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Hosts":
        with ExitStack() as stack:
            self._switch = self._add(stack, "switch", "")
            for name, address in self._address_by_name.items():
                self._hosts[name] = self._add(stack, name, address)
            self._connect()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def disconnect(self, name: str) -> None:
        """Pull a host's cable."""
        self._switch.call("ip", "link", "set", _port(name), "down")

    def reconnect(self, name: str) -> None:
        """Put it in again."""
        self._switch.call("ip", "link", "set", _port(name), "up")

    def set_pair_cut(self, *names: str, is_cut: bool) -> None:
        """Keep these hosts from reaching each other, and only each other; or let them again."""
        for name in names:
            self._switch.call("bridge", "link", "set", "dev", _port(name), "isolated", "on" if is_cut else "off")

    @contextmanager
    def slow_link(self, name: str, *, rate: str) -> Iterator[None]:
        """Let a host send at this rate only, as 2mbit."""
        host = self._hosts[name]
        host.call("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "16kb", "latency", "1s")
        try:
            yield
        finally:
            host.call("tc", "qdisc", "del", "dev", "eth0", "root")

    def sent_bytes(self, name: str) -> int:
        """Return how much a host has put on its wire."""
        (link,) = json.loads(self._switch.call("ip", "-json", "-stats", "link", "show", "dev", _port(name)))
        count: int = link["stats64"]["rx"]["bytes"]  # What the switch's port received.
        return count

    def _add(self, stack: ExitStack, name: str, address: str) -> Host:
        lines = ["127.0.0.1 localhost", *(f"{other} {its_name}" for its_name, other in self._address_by_name.items())]
        host = Host(name, address, self._stage, "\n".join(lines), self._visible)
        stack.callback(host.close)
        stack.callback(host.kill_all)
        return host

    def _connect(self) -> None:
        lines = ["link add bridge0 type bridge", "link set bridge0 up"]
        for name, host in self._hosts.items():
            lines.append(f"link add {_port(name)} type veth peer name eth0 netns {host.pid}")
            lines.append(f"link set {_port(name)} master bridge0 up")
        self._switch.call("ip", "-batch", "-", stdin="\n".join(lines))
        for host in self._hosts.values():
            address = f"address add {host.address}/24 dev eth0"
            host.call("ip", "-batch", "-", stdin=f"link set lo up\n{address}\nlink set eth0 up")


class HostCluster:
    """Master and batch daemon on one host, each slave on another; used as a context manager.

    `shared` is a folder that all hosts see; the daemons' work directories are seen by their host alone.
    """

    def __init__(self, folder: Path, *, slaves: int = 3, master_options: Sequence[str] = ()) -> None:
        self.folder = folder
        cluster = folder / "cluster"
        self.shared = cluster / "shared"
        self.shared.mkdir(parents=True)
        self.slave_names = tuple(f"slave-{index}" for index in range(slaves))
        self.hosts = Hosts(folder, ("master", *self.slave_names), [cluster])
        create_cluster_keys(cluster)
        self.environment = {"MESETA_DIR": str(cluster), "PYTHONPATH": str(REPOSITORY)}
        self._master_options = tuple(master_options)
        self.daemons: dict[str, Daemon] = {}

    def __enter__(self) -> "HostCluster":
        self.hosts.__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.hosts.__exit__()
        finally:
            for daemon in self.daemons.values():
                daemon.kill()

    def start(self, name: str, host: str, *command: str) -> Daemon:
        """Start a daemon, by its module and options, on a host; its log is outside, in `folder`."""
        prefix = self.hosts[host].prefix
        daemon = Daemon(name, command, self.folder / f"{name}.log", self.environment, prefix=prefix)
        self.daemons[name] = daemon
        daemon.start()
        return daemon

    def dcos(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `dcos` command on the master's host."""
        command = (sys.executable, "-P", "-m", "cli.main", *arguments)
        return self.hosts["master"].run(*command, **self.environment)

    def json(self, *arguments: str) -> Any:
        """Run a `dcos` command that must succeed, with --json, and return its object."""
        done = self.dcos(*arguments, "--json")
        assert done.returncode == 0, f"dcos {' '.join(arguments)}: {done.stderr}\n{self.logs()}"
        return json.loads(done.stdout)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return `dcos node list` by host name."""
        found: list[dict[str, Any]] = self.json("node", "list")["nodes"]
        by_name = {str(node["hostname"]): node for node in found}
        assert len(by_name) == len(found), f"a slave is registered twice: {found}"
        return by_name

    def check(self) -> None:
        """Every daemon that was started still runs."""
        dead = [name for name, daemon in self.daemons.items() if not daemon.is_running]
        assert not dead, f"{dead} ended\n{self.logs()}"

    def logs(self) -> str:
        """Return the ends of all logs, for the report of a failure."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def _start(self) -> None:
        endpoint = f"tcp://{self.hosts['master'].address}:{MASTER_PORT}"
        cluster = self.shared.parent
        public_key = read_key_file(cluster / "keys" / "master.json").public
        write_cluster(cluster / "cluster.json", Cluster(master=endpoint, master_public_key=public_key))
        work_dir = ("--work-dir", str(PRIVATE_DIR / "work"))
        self.start("master", "master", "master", "--bind", endpoint, *work_dir, *self._master_options)
        for name in self.slave_names:
            runtime_dir = ("--runtime-dir", str(PRIVATE_DIR / "run"))
            options = (*work_dir, *runtime_dir, *self._binding(name), "--resources", "cpus:2;mem:2GiB;disk:1GiB")
            self.start(name, name, "slave", *options, "--isolation", "posix")
        batch_dir = str(PRIVATE_DIR / "batch")
        self.start("batch", "master", "frameworks.batch", "--bind", "tcp://0.0.0.0:0", "--work-dir", batch_dir)
        wait_for(self._is_complete, "three slaves and the batch framework")

    def _binding(self, name: str) -> tuple[str, ...]:
        """Return what makes a slave reachable: by its address, by all of them and its own name, or by a told name."""
        address = self.hosts[name].address
        if name == "slave-1":
            return ("--bind", "tcp://0.0.0.0:0")
        if name == "slave-2":
            return ("--bind", "tcp://0.0.0.0:0", "--hostname", address)
        return ("--bind", f"tcp://{address}:0")

    def _is_complete(self) -> bool:
        self.check()
        if " ready " not in self.daemons["batch"].log.read_text():
            return False
        states = [node["state"] for node in self.nodes().values()]
        return states == ["active"] * len(self.slave_names)


def _port(name: str) -> str:
    """Return the name of a host's port on the switch: `master` alone is a keyword of ip."""
    return f"p-{name}"
