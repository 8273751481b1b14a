"""`dcos up` and `down`: from nothing to nothing, whoever was killed on the way."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.layout import is_alive
from tests.integration.cli_cluster import CliCluster
from tests.integration.real_cluster import wait_for


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[CliCluster]:
    cluster = CliCluster(tmp_path / "cluster")
    yield cluster
    cluster.dcos("down")
    assert cluster.leftovers() == []


def start_sleeper(cluster: CliCluster) -> "subprocess.Popen[str]":
    """Run a task that does not heed SIGTERM's friends and has children; return when it runs."""
    run = subprocess.Popen(
        cluster.command("run", "--name", "sleeper", "--", "sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=cluster.environment(),
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    return run


def abandon(run: "subprocess.Popen[str]") -> None:
    """End `dcos run` without a chance to end its tasks."""
    run.kill()
    run.communicate()


def test_down_leaves_no_process_socket_or_group_and_no_task(cluster: CliCluster) -> None:
    cluster.up("--slaves", "2")
    run = start_sleeper(cluster)
    cluster.note_groups()
    abandon(run)
    assert any("process" in one for one in cluster.leftovers())
    assert cluster.dcos("down").stdout.startswith("Down:")
    assert cluster.leftovers() == []


def test_down_works_when_everything_was_killed_but_the_tasks(cluster: CliCluster) -> None:
    cluster.up("--slaves", "2")
    run = start_sleeper(cluster)
    cluster.note_groups()
    for name in ("keeper", "master", "slave-1", "slave-2"):
        cluster.kill9(name)
    abandon(run)
    cluster.dcos("down")
    assert cluster.leftovers() == []


def test_down_does_not_signal_a_stranger_that_got_a_recorded_pid(cluster: CliCluster) -> None:
    cluster.up()
    for name in ("keeper", "master"):
        cluster.kill9(name)
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        text = json.loads((cluster.layout.run_dir / "master.json").read_text())
        text["pid"] = stranger.pid
        (cluster.layout.run_dir / "master.json").write_text(json.dumps(text))
        cluster.dcos("down")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_up_after_the_keepers_death_keeps_tasks_and_ids(cluster: CliCluster) -> None:
    cluster.up("--slaves", "2")
    run = start_sleeper(cluster)
    nodes = {node["id"] for node in cluster.json("node", "list")["nodes"]}
    cluster.kill9("keeper")
    assert "keeper     dead" in cluster.dcos("status").stdout
    cluster.up()
    assert {node["id"] for node in cluster.json("node", "list")["nodes"]} == nodes
    assert [task["state"] for task in cluster.json("task", "list")["tasks"]] == ["TASK_RUNNING"]
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=30)
    assert run.returncode == 130


def test_keeper_starts_a_killed_daemon_again(cluster: CliCluster) -> None:
    cluster.up()
    before = cluster.record("slave-1")
    cluster.kill9("slave-1")
    wait_for(lambda: cluster.record("slave-1").pid != before.pid, "a new slave")
    record = cluster.record("slave-1")
    assert (record.restart_count, record.last_end) == (1, "SIGKILL")
    wait_for(lambda: is_alive(record), "its life")


def test_down_right_after_a_slaves_death_ends_its_tasks(cluster: CliCluster) -> None:
    cluster.up()
    run = start_sleeper(cluster)
    cluster.note_groups()
    abandon(run)
    os.kill(cluster.record("slave-1").pid, signal.SIGKILL)
    cluster.dcos("down")
    assert cluster.leftovers() == []


def test_up_again_after_down_knows_the_same_keys_and_slaves(cluster: CliCluster) -> None:
    cluster.up()
    key = (cluster.layout.keys_dir / "operator.json").read_text()
    cluster.dcos("down")
    cluster.up("--slaves", "2")
    assert (cluster.layout.keys_dir / "operator.json").read_text() == key
    assert [node["state"] for node in cluster.json("node", "list")["nodes"]] == ["active", "active"]


def test_up_in_the_foreground_ends_all_at_ctrl_c(cluster: CliCluster) -> None:
    up = subprocess.Popen(
        cluster.command("up", "--without", "batch", "--port", str(cluster.port), "--foreground"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=cluster.environment(),
        start_new_session=True,
    )
    assert up.stdout is not None
    assert up.stdout.readline().startswith("Up in")
    os.killpg(up.pid, signal.SIGINT)  # As a terminal does it.
    assert up.wait(timeout=40) == 0
    up.stdout.close()
    assert cluster.leftovers() == []


def test_three_slaves_are_up_within_three_seconds_of_cpu(cluster: CliCluster) -> None:
    done = cluster.dcos("up", "--without", "batch", "--port", str(cluster.port), "--slaves", "3", "--json")
    values = json.loads(done.stdout)
    assert [one["node_state"] for one in values["daemons"] if one["slave_id"]] == ["active"] * 3
    load = os.getloadavg()[0]
    if load < 2:  # On a machine that does nothing else, the promise of the figures.
        assert values["took_s"] < 3


def test_up_says_which_port_is_taken(cluster: CliCluster) -> None:
    import socket  # noqa: PLC0415 - used here alone

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cluster.dcos("up", "--without", "batch", "--port", str(port), status=2)
    assert done.stderr == f"dcos: --port: {port} is taken at 127.0.0.1; leave --port away and one is chosen\n"


def test_up_that_fails_says_why_and_leaves_nothing(cluster: CliCluster) -> None:
    cluster.layout.make_folders()
    (cluster.layout.folder / "slave.toml").write_text('hostnam = "here"\n')
    started = time.monotonic()
    done = cluster.dcos("up", "--without", "batch", "--port", str(cluster.port), status=1)
    assert "slave-1 does not start (status 2)" in done.stderr
    assert "did you mean hostname?" in done.stderr
    assert time.monotonic() - started < 25
    assert cluster.leftovers() == []


def test_commands_say_at_once_that_the_cluster_is_down(cluster: CliCluster) -> None:
    cluster.up()
    cluster.dcos("down")
    done = cluster.dcos("node", "list", status=1)
    assert f"no cluster is up in {cluster.layout.folder}; start it with `dcos up`" in done.stderr
    cluster.dcos("status", status=1)
    assert cluster.dcos("down").stdout.startswith("No cluster is up")


def test_recordings_of_all_daemons_are_made(cluster: CliCluster) -> None:
    cluster.up("--record")
    cluster.dcos("run", "--", "true")
    names = sorted(path.name.rpartition("-")[0] for path in cluster.layout.records_dir.iterdir())
    assert names == ["master", "slave-1"]
