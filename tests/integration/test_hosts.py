"""Master and slaves on hosts of their own: logs and shuffle cross a wire, and the wire is cut.

Nothing of a slave but its addresses can be reached from another host: see `hosts.py`.
"""

import os
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hosts import PRIVATE_DIR, Host, HostCluster, Hosts
from tests.integration.real_cluster import read_json_lines, read_lines, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="hosts need root, for their namespaces"),
]

PACKAGES = ("asyncio", "concurrent", "email", "http", "json", "logging", "multiprocessing", "unittest", "xml")
PINGS = ("--ping-timeout", "500ms", "--max-missed-pings", "4")
OUTPUT_BYTES = 1 << 20
WORD = re.compile(r"[A-Za-z_]+")
WORD_COUNT_JOB = r"""
import re
from collections import Counter

WORD = re.compile(r"[A-Za-z_]+")

def map_lines(lines):
    counts = Counter()
    for line in lines:
        counts.update(WORD.findall(line))
    return counts

def reduce(word, counts):
    yield word, sum(counts)
"""
IDENTITY_JOB = """
def map(line):
    yield line, 1

def reduce(line, counts):
    yield line, sum(counts)
"""
LINE_COUNT = 60_000  # 4 MB, of which a third leaves slave-0, at a rate of 2 Mbit/s in 5 s.
SHUFFLE_BYTES = 200_000  # More than what slave-0 tells master and batch daemon before.
JOB_LIMIT_S = 50.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    with HostCluster(tmp_path_factory.mktemp("hosts")) as cluster:
        yield cluster
        cluster.check()


def test_slaves_announce_addresses_that_other_hosts_reach(cluster: HostCluster) -> None:
    endpoints = {name: node["endpoint"].rpartition(":")[0] for name, node in cluster.nodes().items()}
    address, told = cluster.hosts["slave-0"].address, cluster.hosts["slave-2"].address
    assert endpoints == {"slave-0": f"tcp://{address}", "slave-1": "tcp://slave-1", told: f"tcp://{told}"}


def test_output_of_tasks_is_read_over_the_wire(cluster: HostCluster) -> None:
    before = {name: cluster.hosts.sent_bytes(name) for name in cluster.slave_names}
    program = f"hostname=$(cat /proc/sys/kernel/hostname); echo $hostname; yes $hostname | head -c {OUTPUT_BYTES}"
    run = cluster.dcos("run", "--name", "teller", "--instances", "3", "--cpus", "2", "--", "sh", "-c", program)
    assert run.returncode == 0, run.stderr
    names = Counter(line.split()[1] for line in run.stdout.splitlines())
    assert set(cluster.slave_names) <= set(names), "each slave has room for one instance"
    tasks = [one for one in cluster.json("task", "list", "--all")["tasks"] if one["name"] == "teller"]
    logs = [cluster.dcos("task", "log", task["id"]).stdout for task in tasks]
    assert sorted(log.partition("\n")[0] for log in logs) == sorted(cluster.slave_names)
    for log in logs:
        name, _, rest = log.partition("\n")
        assert rest == (f"{name}\n" * OUTPUT_BYTES)[:OUTPUT_BYTES], name
        # Twice: while the task ran, and now.
        assert cluster.hosts.sent_bytes(name) - before[name] > 2 * OUTPUT_BYTES, name


def test_no_host_sees_the_work_directory_of_another(cluster: HostCluster) -> None:
    run = cluster.dcos("run", "--name", "hider", "--", "sh", "-c", "echo hidden > treasure; pwd")
    assert run.returncode == 0, run.stderr
    treasure = Path(run.stdout.strip()) / "treasure"
    assert treasure.is_relative_to(PRIVATE_DIR / "work")
    assert not treasure.exists(), "it lies on the machine itself"
    seeing = [name for name in ("master", *cluster.slave_names) if _sees(cluster, name, treasure)]
    assert len(seeing) == 1, seeing
    assert seeing[0] in cluster.slave_names


def test_word_count_shuffles_over_the_wire(cluster: HostCluster) -> None:
    before = {name: cluster.hosts.sent_bytes(name) for name in cluster.slave_names}
    job_id = submit_word_count(cluster, "whole")
    job = finish(cluster, job_id, "whole", plain_count())
    assert job["failed_attempts"] == 0, job
    shuffled = job["counters"]["batch"]["shuffle bytes"]
    assert shuffled > 0
    sent = {name: cluster.hosts.sent_bytes(name) - before[name] for name in cluster.slave_names}
    assert sum(sent.values()) > shuffled, sent


@pytest.mark.slow  # Each fetch that meets the cut is given up after 6 s, and there may be some.
@pytest.mark.timeout(90)
def test_word_count_ends_right_while_two_slaves_cannot_reach_each_other(cluster: HostCluster) -> None:
    lost_before = lost_outputs(cluster)
    cluster.hosts.set_pair_cut("slave-0", "slave-1", is_cut=True)
    try:
        job_id = submit_word_count(cluster, "cut")
        finish(cluster, job_id, "cut", plain_count())
    finally:
        cluster.hosts.set_pair_cut("slave-0", "slave-1", is_cut=False)
    assert lost_outputs(cluster) > lost_before, "no fetch met the cut"
    assert all(node["state"] == "active" for node in cluster.nodes().values())


def test_job_ends_right_after_a_cut_in_the_middle_of_its_shuffle(cluster: HostCluster) -> None:
    rng = random.Random(1)
    lines = [rng.randbytes(32).hex() for _ in range(LINE_COUNT)]
    (cluster.shared / "lines").write_text("".join(f"{line}\n" for line in lines))
    lost_before, sent_before = lost_outputs(cluster), cluster.hosts.sent_bytes("slave-0")
    with cluster.hosts.slow_link("slave-0", rate="2mbit"):
        job_id = submit(cluster, "middle", IDENTITY_JOB, [str(cluster.shared / "lines")])
        wait_for(lambda: cluster.hosts.sent_bytes("slave-0") > sent_before + SHUFFLE_BYTES, "the shuffle's begin")
        cluster.hosts.set_pair_cut("slave-0", "slave-1", is_cut=True)
    try:
        wait_for(lambda: lost_outputs(cluster) > lost_before, "a fetch to meet the cut")
    finally:
        cluster.hosts.set_pair_cut("slave-0", "slave-1", is_cut=False)
    finish(cluster, job_id, "middle", Counter(lines))


def test_hosts_leave_nothing_behind_when_a_test_fails(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["left", "right"], [])
    with pytest.raises(ZeroDivisionError), hosts:
        leave_sleepers_and_fail(hosts["left"])
    networks = [_network(path) for path in Path("/proc").glob("[0-9]*")]
    assert not [name for name in ("left", "right") if hosts[name].network in networks]


def test_partition_from_the_master_heals(tmp_path: Path) -> None:
    with HostCluster(tmp_path, master_options=PINGS) as cluster:
        _start_gates(cluster)
        cut_off = cluster.nodes()["slave-1"]["id"]
        before = cluster.nodes()
        wait_for(lambda: len(_running(cluster)) == 9, "three tasks on each slave")
        cluster.hosts.disconnect("slave-1")
        _check_lost(cluster, cut_off)
        (cluster.shared / "brief").touch()  # These end out of the master's sight.
        wait_for(lambda: _count(cluster, "end", f"aware-brief-{cut_off}"), "an end in the partition")
        _check_running_on(cluster, f"aware-long-{cut_off}")
        assert _states(cluster, "aware", f"aware-brief-{cut_off}")[-1] == "TASK_UNREACHABLE"
        assert _lives(cluster, f"unaware-long-{cut_off}")
        cluster.hosts.reconnect("slave-1")
        wait_for(lambda: _states(cluster, "aware", f"aware-long-{cut_off}")[-1] == "TASK_RUNNING", "its return")
        assert {name: node["id"] for name, node in cluster.nodes().items()} == {
            name: node["id"] for name, node in before.items()
        }
        # A framework that was told TASK_LOST may have started it elsewhere: it must not run on here.
        wait_for(lambda: not _lives(cluster, f"unaware-long-{cut_off}"), "the kill of a lost task")
        (cluster.shared / "long").touch()
        for name in ("aware", "unaware"):
            gates = cluster.daemons.pop(name)
            assert gates.process is not None
            assert gates.process.wait(20) == 0, gates.log.read_text()
        _check_ends(cluster, cut_off)
        cluster.check()


def plain_count() -> Counter[str]:
    """Count words as the job does, without it."""
    counts: Counter[str] = Counter()
    for folder in inputs():
        for path in sorted(folder.rglob("*.py")):
            counts.update(WORD.findall(path.read_text(encoding="utf-8", errors="surrogateescape")))
    return counts


def inputs() -> list[Path]:
    """Return folders that all hosts see."""
    return [Path(sysconfig.get_path("stdlib")) / name for name in PACKAGES]


def submit_word_count(cluster: HostCluster, name: str) -> str:
    return submit(cluster, name, WORD_COUNT_JOB, [f"{folder}/**/*.py" for folder in inputs()])


def submit(cluster: HostCluster, name: str, program: str, sources: Sequence[str]) -> str:
    """Submit a job whose reduces just fit on all slaves together; return its id."""
    job, output = cluster.shared / f"{name}.py", cluster.shared / f"{name}.out"
    job.write_text(program)
    options = ("--reducers", "6", "--split-size", "256KiB", "--cpus", "1", "--mem", "128MiB", "--detach")
    return str(cluster.json("batch", "run", *options, str(job), *sources, "-o", str(output))["job_id"])


def finish(cluster: HostCluster, job_id: str, name: str, expected: Counter[str]) -> dict[str, Any]:
    """Wait for a job, compare its output and return what the batch framework says of it."""
    view: dict[str, Any] = {}

    def is_over() -> bool:
        view.update(cluster.json("batch", "show", job_id)["job"])
        return view["finished_unix_s"] is not None

    wait_for(is_over, f"the end of {job_id}", limit_s=JOB_LIMIT_S)
    assert view["state"] == "succeeded", view
    output = cluster.shared / f"{name}.out"
    assert (output / "_SUCCESS").exists()
    found: Counter[str] = Counter()
    for part in sorted(output.glob("part-*")):
        for line in part.read_text().splitlines():
            word, count = line.split("\t")
            assert word not in found, f"{word} is there twice"
            found[word] = int(count)
    assert found == expected
    return view


def lost_outputs(cluster: HostCluster) -> int:
    """Return how many outputs of maps the batch daemon has given up."""
    return cluster.daemons["batch"].log.read_text().count(" map output lost ")


def leave_sleepers_and_fail(host: Host) -> None:
    host.call("sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & sleep 1000 > /dev/null 2>&1 &")
    wait_for(lambda: len(host.processes()) == 2, "processes to leave behind")
    raise ZeroDivisionError


def _network(process: Path) -> str:
    try:
        return os.readlink(process / "ns/net")
    except OSError:
        return ""


def _sees(cluster: HostCluster, name: str, path: Path) -> bool:
    return cluster.hosts[name].run("test", "-e", str(path)).returncode == 0


# --- The partition from the master ----------------------------------------------------------------------


def _start_gates(cluster: HostCluster) -> None:
    module, shared = "tests.integration.gate_framework", str(cluster.shared)
    cluster.start("aware", "master", module, shared, "aware", "3", "long,brief", "partition-aware")
    cluster.start("unaware", "master", module, shared, "unaware", "3", "long")


def _running(cluster: HostCluster) -> list[str]:
    found: list[str] = []
    for name in ("aware", "unaware"):
        for record in read_json_lines(cluster.shared / f"{name}.journal"):
            if record["what"] == "status" and record["state"] == "TASK_RUNNING":
                found.append(str(record["task_id"]))
    return found


def _states(cluster: HostCluster, name: str, task_id: str) -> list[str]:
    """Return the states that a framework was told of a task, each update once."""
    told: list[str] = []
    seen: dict[object, None] = {}
    for record in read_json_lines(cluster.shared / f"{name}.journal"):
        if record["what"] == "status" and record["task_id"] == task_id:
            if record["uuid"] is not None and record["uuid"] in seen:
                continue
            seen[record["uuid"]] = None
            told.append(str(record["state"]))
    return told


def _has_news(cluster: HostCluster, name: str, task_id: str) -> bool:
    return len(_states(cluster, name, task_id)) > 1


def _count(cluster: HostCluster, word: str, task_id: str) -> int:
    return read_lines(cluster.shared / "witness").count([word, task_id])


def _check_lost(cluster: HostCluster, cut_off: str) -> None:
    """The master gives the slave up, and each framework is told as it wants to be."""
    wait_for(lambda: cluster.nodes()["slave-1"]["state"] == "unreachable", "the master to miss the slave")
    for name, gate, state in (
        ("aware", "long", "TASK_UNREACHABLE"),
        ("aware", "brief", "TASK_UNREACHABLE"),
        ("unaware", "long", "TASK_LOST"),
    ):
        task_id = f"{name}-{gate}-{cut_off}"
        wait_for(partial(_has_news, cluster, name, task_id), f"news of {task_id}")
        assert _states(cluster, name, task_id) == ["TASK_RUNNING", state], task_id
        lost = [
            record for record in read_json_lines(cluster.shared / f"{name}.journal") if record["what"] == "slave lost"
        ]
        assert [record["slave_id"] for record in lost] == [cut_off]


def _check_running_on(cluster: HostCluster, task_id: str) -> None:
    beats = _count(cluster, "beat", task_id)
    wait_for(lambda: _count(cluster, "beat", task_id) > beats + 2, f"{task_id} to run on")


def _lives(cluster: HostCluster, task_id: str) -> bool:
    """Say whether slave-1 has a process of the task."""
    pattern = f"echo beat {task_id}".encode()
    return any(pattern in _command_line(pid) for pid in cluster.hosts["slave-1"].processes())


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _check_ends(cluster: HostCluster, cut_off: str) -> None:
    """Compare the witness with what the frameworks were told."""
    slave_ids = [node["id"] for node in cluster.nodes().values()]
    assert cut_off in slave_ids
    for slave_id in slave_ids:
        for name, gate in (("aware", "long"), ("aware", "brief"), ("unaware", "long")):
            task_id = f"{name}-{gate}-{slave_id}"
            states = _states(cluster, name, task_id)
            assert _count(cluster, "start", task_id) == 1, task_id
            if slave_id != cut_off:
                assert states == ["TASK_RUNNING", "TASK_FINISHED"], task_id
            elif name == "unaware":
                assert states == ["TASK_RUNNING", "TASK_LOST"], task_id
            else:
                assert states[:2] == ["TASK_RUNNING", "TASK_UNREACHABLE"], task_id
                assert states.count("TASK_FINISHED") == 1, (task_id, states)
                assert states[-1] == "TASK_FINISHED", (task_id, states)
            is_killed = slave_id == cut_off and name == "unaware"
            assert _count(cluster, "end", task_id) == (0 if is_killed else 1), task_id
