"""Operators' commands against a real cluster of two slaves."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli_cluster import CliCluster
from tests.integration.real_cluster import wait_for


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliCluster]:
    cluster = CliCluster(tmp_path_factory.mktemp("cluster"))
    cluster.up("--slaves", "2", "--resources", "cpus:2;mem:1GiB")
    yield cluster
    cluster.note_groups()
    cluster.dcos("down")
    assert cluster.leftovers() == []


def start_run(cluster: CliCluster, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        cluster.command("run", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster.environment(),
    )


def end_run(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    return run.returncode, out, err


def test_up_reports_itself_up_when_called_again(cluster: CliCluster) -> None:
    done = cluster.dcos("up")
    assert "is up already" in done.stderr
    assert "slave-2" in done.stdout


def test_up_refuses_another_number_of_slaves_while_it_is_up(cluster: CliCluster) -> None:
    done = cluster.dcos("up", "--slaves", "3", status=1)
    assert "--slaves: 3 asked for, and the cluster is up with 2" in done.stderr
    assert "dcos down" in done.stderr


def test_status_names_master_epoch_keeper_and_daemons(cluster: CliCluster) -> None:
    status = cluster.json("status")
    assert status["master"]["epoch"] >= 1
    assert status["master"]["endpoint"] == f"tcp://127.0.0.1:{cluster.port}"
    assert status["keeper"]["is_alive"]
    assert {one["name"]: one["is_alive"] for one in status["daemons"]} == {
        "master": True,
        "slave-1": True,
        "slave-2": True,
    }


def test_slaves_have_the_resources_that_were_told_and_ports_of_their_own(cluster: CliCluster) -> None:
    nodes = cluster.json("node", "list")["nodes"]
    assert [(node["total"]["cpus"], node["total"]["mem"]) for node in nodes] == [(2, 1024), (2, 1024)]
    first, second = sorted(node["total"]["ports"][0] for node in nodes)
    assert 31000 <= first[0] <= first[1] < second[0] <= second[1]


def test_run_passes_output_and_exit_status_on(cluster: CliCluster) -> None:
    done = cluster.dcos("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7", status=7)
    assert done.stdout == "out\n"
    assert done.stderr == "err\n"


def test_run_gives_environment_and_every_byte_of_the_output(cluster: CliCluster) -> None:
    script = "import os, sys; sys.stdout.write(os.environ['LETTER'] * 3_000_000)"
    done = cluster.dcos("run", "--env", "LETTER=x", "--", "python3", "-c", script)
    assert done.stdout == "x" * 3_000_000


def test_run_shows_output_while_the_task_runs(cluster: CliCluster) -> None:
    run = start_run(cluster, "--", "sh", "-c", "echo first; exec sleep 1000")
    assert run.stdout is not None
    assert run.stdout.readline() == "first\n"
    status, _, err = end_run(run)
    assert status == 130
    assert "killing" in err
    wait_for(lambda: cluster.json("task", "list")["tasks"] == [], "the end of the task")


def test_run_of_several_instances_prefixes_lines_and_exits_with_the_greatest_status(cluster: CliCluster) -> None:
    script = 'echo "at $MESETA_TASK_ID"; case $MESETA_TASK_ID in *.1) exit 3;; esac'
    done = cluster.dcos("run", "--instances", "3", "--name", "many", "--", "sh", "-c", script, status=3)
    lines = sorted(done.stdout.splitlines())
    assert [line.split("at many")[0] for line in lines] == ["0| ", "1| ", "2| "]
    assert ".1: exited with status 3" in done.stderr


def test_run_as_json_prints_one_object(cluster: CliCluster) -> None:
    done = cluster.dcos("run", "--json", "--", "sh", "-c", "echo hi; exit 4", status=4)
    values = json.loads(done.stdout)
    assert values["exit_code"] == 4
    assert values["instances"] == [{"stdout": "hi\n", "stderr": ""}]


def test_run_refuses_what_no_slave_has_at_once_and_in_words(cluster: CliCluster) -> None:
    done = cluster.dcos("run", "--cpus", "64", "--", "true", status=2)
    assert done.stderr == (
        "dcos: --cpus: 64 cpus is more than any slave has (2 cpus at most); ask for less or add a larger slave\n"
    )


def test_run_tells_why_it_waits(cluster: CliCluster) -> None:
    hog = start_run(cluster, "--instances", "2", "--cpus", "2", "--name", "hog", "--", "sleep", "1000")
    try:
        wait_for(lambda: len(cluster.json("task", "list")["tasks"]) == 2, "two tasks that fill the cluster")
        waiting = start_run(cluster, "--cpus", "0.5", "--", "true")
        assert waiting.stderr is not None
        line = waiting.stderr.readline()
        assert "1 of 1 wait: 2 slaves would be large enough and are in use; the nearest lacks 0.5 cpus" in line
    finally:
        end_run(hog)
    out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out) == (0, ""), err


def test_run_says_what_ended_a_task_that_has_no_status(cluster: CliCluster) -> None:
    done = cluster.dcos("run", "--", "no-such-program", status=1)
    assert "'no-such-program' was not found" in done.stderr


def test_ids_may_be_shortened_and_ambiguous_ones_are_listed(cluster: CliCluster) -> None:
    runs = [start_run(cluster, "--name", f"short-{letter}", "--", "sleep", "1000") for letter in "ab"]
    try:
        wait_for(lambda: len(cluster.json("task", "list")["tasks"]) == 2, "both tasks")
        ambiguous = cluster.dcos("task", "kill", "short-", status=2)
        assert "short-a-" in ambiguous.stderr
        assert "short-b-" in ambiguous.stderr
        assert "type more of it" in ambiguous.stderr
        unknown = cluster.dcos("task", "kill", "short-a", "nobody", status=1)
        assert "there is no task 'nobody'" in unknown.stderr
        assert len(cluster.json("task", "list")["tasks"]) == 2
        cluster.dcos("task", "kill", "short-a", "short-b")
        assert [run.wait(timeout=30) for run in runs] == [143, 143]
    finally:
        for run in runs:
            run.communicate(timeout=30)


def test_log_of_a_finished_task_by_lines_and_streams(cluster: CliCluster) -> None:
    cluster.dcos("run", "--name", "speaker", "--", "sh", "-c", "seq 1 100000; echo oops >&2; printf end")
    assert cluster.dcos("task", "log", "speaker").stdout == "".join(f"{n}\n" for n in range(1, 100001)) + "end"
    assert cluster.dcos("task", "log", "speaker", "--lines", "3").stdout == "99999\n100000\nend"
    assert cluster.dcos("task", "log", "speaker", "--stderr").stdout == "oops\n"
    assert cluster.json("task", "log", "speaker", "--lines", "1")["text"] == "end"


def test_ids_of_tasks_are_completed(cluster: CliCluster) -> None:
    cluster.dcos("run", "--name", "completed", "--", "true")
    words = {"_DCOS_COMPLETE": "bash_complete", "COMP_WORDS": "dcos task log compl", "COMP_CWORD": "3"}
    (line,) = cluster.dcos(status=None, **words).stdout.splitlines()
    assert line.startswith("plain,completed-")


def test_log_follows_a_task_to_its_end(cluster: CliCluster, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo one; while [ ! -e {gate} ]; do sleep 0.05; done; echo two"
    run = start_run(cluster, "--name", "writer", "--", "sh", "-c", script)
    assert run.stdout is not None
    assert run.stdout.readline() == "one\n"
    assert len(cluster.json("task", "list", "--framework", "writer")["tasks"]) == 1
    follow = subprocess.Popen(
        cluster.command("task", "log", "--follow", "writer"),
        stdout=subprocess.PIPE,
        text=True,
        env=cluster.environment(),
    )
    assert follow.stdout is not None
    assert follow.stdout.readline() == "one\n"
    gate.touch()
    out, _ = follow.communicate(timeout=30)
    assert (follow.returncode, out) == (0, "two\n")
    run.communicate(timeout=30)


def test_run_survives_the_death_of_its_slave_and_of_the_master(cluster: CliCluster, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo one; while [ ! -e {gate} ]; do sleep 0.05; done; echo two; exit 5"
    run = start_run(cluster, "--name", "tough", "--", "sh", "-c", script)
    assert run.stdout is not None
    assert run.stdout.readline() == "one\n"
    for name in ("slave-1", "slave-2", "master"):
        cluster.kill9(name)
    wait_for(lambda: len(_active_slaves(cluster)) == 2, "both slaves")
    gate.touch()
    out, err = run.communicate(timeout=50)
    assert (run.returncode, out) == (5, "two\n"), err


def _active_slaves(cluster: CliCluster) -> list[str]:
    done = cluster.dcos("node", "list", "--json", status=None)
    if done.returncode:
        return []
    return [node["id"] for node in json.loads(done.stdout)["nodes"] if node["state"] == "active"]


def test_a_reader_that_has_had_enough_is_no_traceback(cluster: CliCluster) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        cluster.command("node", "list"),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        env=cluster.environment(),
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("figure", [("--help", 0.2), ("node list", 0.4)])
def test_commands_answer_in_a_blink(cluster: CliCluster, figure: tuple[str, float]) -> None:
    # CPU time: other work on this machine does not change it, and nothing here waits for more than a millisecond.
    text, limit_s = figure
    before = _children_cpu_s()
    started = time.monotonic()
    cluster.dcos(*text.split())
    assert _children_cpu_s() - before < limit_s, f"took {time.monotonic() - started:.2f} s"


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def test_key_of_one_more_principal_opens_the_running_cluster(cluster: CliCluster) -> None:
    cluster.dcos("keygen", "--principal", "ann")
    key = str(cluster.layout.keys_dir / "ann.json")
    assert len(json.loads(cluster.dcos("node", "list", "--key", key, "--json").stdout)["nodes"]) == 2
    assert cluster.dcos("run", "--key", key, "--", "echo", "ann").stdout == "ann\n"


def test_slave_of_another_folder_joins_by_the_clusters_files(cluster: CliCluster, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    for name in ("cluster.json", "keys/slave.json", "keys/principals.json"):
        (tmp_path / name).write_bytes((cluster.layout.folder / name).read_bytes())
        (tmp_path / name).chmod(0o600)
    with (tmp_path / "log").open("wb") as log:
        slave = subprocess.Popen(
            [*cluster.command("slave"), "--resources", "cpus:5"],
            stderr=log,
            env=cluster.environment(MESETA_DIR=str(tmp_path), MESETA_ATTRIBUTES="rack:r9"),
        )
    try:
        wait_for(lambda: len(_active_slaves(cluster)) == 3, "the third slave")
        attributes = [node["attributes"] for node in cluster.json("node", "list")["nodes"]]
        assert {"rack": "r9"} in attributes
        assert cluster.dcos("run", "--cpus", "4", "--", "echo", "there").stdout == "there\n"
    finally:
        wait_for(lambda: b"ready" in (tmp_path / "log").read_bytes(), "its signal handlers")
        slave.send_signal(signal.SIGUSR1)
        assert slave.wait(timeout=30) == 0
