"""The parts of `dcos` that decide: ids, words for waiting, shares, back-off, tails of files, records."""

import asyncio
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from cli.layout import Layout, ServiceRecord, Settings, is_alive, open_process, start_ticks
from cli.output import describe_duration, describe_resources, describe_share, resources_json
from cli.partial_ids import resolve
from cli.services import BACKOFF_LIMIT_S, SETTLED_S, Backoff, describe_end, services, shares_of
from cli.starting import choose_settings
from cli.tail import LinePrinter, offset_of_last_lines
from cli.waiting import describe_no_fit, describe_waiting, refusal
from meseta.errors import InvalidInput, RequestRefused
from meseta.ids import SlaveId
from meseta.model import Address, Node, WaitReasons
from meseta.resources import Resources, resources


def node(cpus: float, used: float = 0, *, name: str = "s-1", state: str = "active", mem: float = 1000) -> Node:
    return Node(
        slave_id=SlaveId(name),
        hostname=f"host-{name}",
        state=state,
        address=Address(endpoint="tcp://127.0.0.1:1"),
        attributes={},
        total=resources(cpus=cpus, mem_mib=mem),
        used=resources(cpus=used),
        offered=Resources(),
        tasks_active=0,
    )


# --- Ids ---


def test_whole_id_and_unique_beginning_are_found() -> None:
    ids = ["task-1", "task-10", "other"]
    assert resolve("task", "task-1", ids, listing="x") == "task-1"
    assert resolve("task", "task-10", ids, listing="x") == "task-10"
    assert resolve("task", "o", ids, listing="x") == "other"


@pytest.mark.parametrize("text", ["task", ""])
def test_beginning_of_several_is_refused_with_their_names(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"is the beginning of .*task-1, task-2; type more of it"):
        resolve("task", text, ["task-2", "task-1"], listing="x")


def test_many_matches_are_counted() -> None:
    with pytest.raises(InvalidInput, match="t-4 and 3 more; type more"):
        resolve("task", "t", [f"t-{n}" for n in range(8)], listing="x")


def test_unknown_id_names_what_was_probably_meant_or_where_to_look() -> None:
    with pytest.raises(RequestRefused, match="did you mean sleeper-12"):
        resolve("task", "sleepr-12", ["sleeper-12"], listing="dcos task list")
    with pytest.raises(RequestRefused, match="there is no task 'zzz'; see `dcos task list`"):
        resolve("task", "zzz", ["sleeper-12"], listing="dcos task list")


# --- Words for waiting ---


def test_impossible_resources_name_the_option_and_the_largest_slave() -> None:
    text = refusal(resources(cpus=4), [node(1), node(2, name="s-2")])
    assert text == "--cpus: 4 cpus is more than any slave has (2 cpus at most); ask for less or add a larger slave"
    assert refusal(resources(cpus=2), [node(2)]) is None
    assert refusal(resources(cpus=2), []) is None
    text = refusal(resources(cpus=2, mem_mib=900), [node(2, mem=100), node(1, name="s-2")])
    assert text is not None
    assert text.startswith("no slave has 2 cpus, 900MiB mem together")


def test_waiting_for_used_resources_names_what_the_nearest_slave_lacks() -> None:
    nodes = [node(4, 4), node(4, 3.5, name="s-2"), node(1, name="s-3")]
    assert describe_no_fit(resources(cpus=2), nodes) == (
        "2 slaves would be large enough and are in use; the nearest lacks 1.5 cpus for now"
    )
    assert describe_no_fit(resources(cpus=2), []) == "no slave is registered"
    assert describe_no_fit(resources(cpus=2), [node(4, state="unreachable")]) == (
        "1 slave would be large enough and is unreachable"
    )
    assert describe_no_fit(resources(cpus=2), [node(4, 1)]) == "host-s-1 has enough free, an offer should come"


def test_masters_reasons_become_a_sentence() -> None:
    assert describe_waiting(None) == ""
    assert describe_waiting(WaitReasons(since_s=5)) == ""
    assert describe_waiting(WaitReasons(since_s=65, no_slaves=True)) == "for 1m: no slave is registered"
    reasons = WaitReasons(
        since_s=5, filtered_slaves=1, too_small_slaves=2, too_small_by=resources(cpus=0.5), suppressed_roles=("a", "b")
    )
    assert describe_waiting(reasons) == (
        "for 5s: it wants no offers for role a, b; it has declined what 1 slave had free;"
        " 2 slaves had too little free, the nearest lacks 0.5 cpus"
    )


# --- Output ---


def test_resources_are_shown_short_and_as_plain_numbers() -> None:
    value = Resources({"cpus": 1500, "mem": 512000, "disk": 1536000}, {"ports": ((31000, 31009),)})
    assert describe_resources(value) == "1.5 cpus, 1.5GiB disk, 512MiB mem, ports:[31000-31009]"
    assert resources_json(value) == {"cpus": 1.5, "disk": 1536, "mem": 512, "ports": [[31000, 31009]]}
    assert describe_resources(Resources()) == "nothing"
    assert describe_share("mem", Resources(), value) == "0/512MiB"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m"), (7199, "1h"), (86400 * 3, "3d"), (-5, "0s")]
)
def test_durations_are_shown_in_their_largest_unit(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text


# --- Services ---


def test_backoff_doubles_to_its_limit_and_starts_anew_after_a_good_life() -> None:
    backoff = Backoff()
    assert [backoff.after(0.1) for _ in range(4)] == [0.1, 0.2, 0.4, 0.8]
    assert [backoff.after(0.1) for _ in range(9)][-1] == BACKOFF_LIMIT_S
    assert backoff.after(SETTLED_S) == 0.1
    assert backoff.after(0.1) == 0.2


@pytest.mark.parametrize("parts", [1, 2, 3, 100])
def test_shares_fit_into_the_machine_and_have_ports_of_their_own(parts: int) -> None:
    machine = resources(cpus=2, mem_mib=23_000, disk_mib=250_001)
    shares = shares_of(machine, parts)
    total = shares[0]
    for share in shares[1:]:
        total = total + share  # Raises if a port were held twice.
    assert Resources(total.scalars) <= machine
    assert machine.get("cpus") - total.get("cpus") < parts


def choose(
    layout: Layout, slaves: int | None = None, resources: str | None = None, without: tuple[str, ...] = ()
) -> Settings:
    return choose_settings(
        layout,
        slaves=slaves,
        resources=resources,
        without=without,
        address=None,
        isolation=None,
        record=None,
        log_level=None,
    )


def test_repair_takes_what_the_cluster_was_started_with(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make_folders()
    first = choose(layout, slaves=2, resources="cpus:7", without=("batch",))
    assert [text.split(";")[0] for text in first.slaves.values()] == ["cpus:7", "cpus:7"]
    layout.write_settings(first)
    assert choose(layout) == msgspec.structs.replace(first, bind="")
    assert list(choose(layout, slaves=1).slaves) == ["slave-1"]


def test_same_ports_for_several_slaves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--resources: ports would be the same for 2 slaves"):
        choose(Layout(tmp_path), slaves=2, resources="ports:[1-2]")


def test_daemons_read_the_files_that_a_person_wrote(tmp_path: Path) -> None:
    (tmp_path / "slave.toml").touch()
    settings = Settings(
        python="python", bind="tcp://h:1", address="h", slaves={"slave-1": "cpus:1"}, services=("batch",)
    )
    found = services(Layout(tmp_path), settings)
    assert [(one.name, one.kind, "--config" in one.arguments) for one in found] == [
        ("master", "master", False),
        ("slave-1", "slave", True),
        ("batch", "framework", False),
    ]


@pytest.mark.parametrize(("status", "text"), [(3, "status 3"), (-9, "SIGKILL"), (-64, "SIGRTMAX"), (-63, "signal 63")])
def test_ends_of_processes_have_words(status: int, text: str) -> None:
    assert describe_end(status) == text


# --- Records ---


def test_record_is_of_one_process_and_of_no_later_owner_of_its_pid() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    ticks = start_ticks(child.pid)
    assert ticks is not None
    record = ServiceRecord(name="x", pid=child.pid, start_ticks=ticks, started_unix_s=0)
    assert is_alive(record)
    assert open_process(ServiceRecord(name="x", pid=child.pid, start_ticks=ticks + 1, started_unix_s=0)) is None
    process = open_process(record)
    assert process is not None
    child.kill()
    child.wait()
    assert not is_alive(record)
    assert open_process(record) is None
    process.close()


def test_runtime_folder_is_short_enough_for_sockets() -> None:
    layout = Layout(Path("/a/very/long/path" * 20))
    assert len(os.fsencode(layout.runtime_dir("slave-1") / "supervisor-00000000.sock")) < 107
    assert layout.runtime_dir("slave-1") != layout.runtime_dir("slave-2")


# --- Tails ---


def test_prefixed_lines_are_written_whole() -> None:
    written: list[bytes] = []
    printer = LinePrinter(written.append, "0| ")
    for piece in (b"on", b"e\ntw", b"o\nthree\nfo", b"ur"):
        printer.feed(piece)
    printer.end()
    assert b"".join(written) == b"0| one\n0| two\n0| three\n0| four\n"


@pytest.mark.parametrize(
    ("text", "count", "rest"),
    [
        (b"", 3, b""),
        (b"one", 1, b"one"),
        (b"one\n", 1, b"one\n"),
        (b"one\ntwo\n", 1, b"two\n"),
        (b"one\ntwo", 1, b"two"),
        (b"one\ntwo\n", 2, b"one\ntwo\n"),
        (b"one\ntwo\n", 9, b"one\ntwo\n"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"x" * 200_000 + b"\nlast\n", 1, b"last\n"),
        (b"y\n" + b"x" * 200_000 + b"\nlast\n", 2, b"x" * 200_000 + b"\nlast\n"),
    ],
)
def test_last_lines_are_found_from_the_end(text: bytes, count: int, rest: bytes) -> None:
    async def read(offset: int, length: int) -> bytes:
        return text[offset : offset + length]

    offset = asyncio.run(offset_of_last_lines(read, len(text), count))
    assert text[offset:] == rest
