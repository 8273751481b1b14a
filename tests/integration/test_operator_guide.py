"""The operator's guide tells the truth: every command in it exists, and its examples answer as it says."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli.main import ENTRIES, root
from tests.integration.cli_cluster import CliCluster

GUIDE = (Path(__file__).parents[2] / "docs" / "operator-guide.md").read_text()
EXAMPLES = re.findall(r"^\$ (?:[A-Z_]+=\S+ )*(dcos .*)$", GUIDE, re.MULTILINE)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliCluster]:
    cluster = CliCluster(tmp_path_factory.mktemp("guide"))
    cluster.up("--slaves", "3")
    yield cluster
    cluster.dcos("down")
    assert cluster.leftovers() == []


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that an example calls, and its arguments."""
    command: click.Command = root
    context = click.Context(root)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"there is no {words}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("example", EXAMPLES)
def test_options_of_every_example_exist(example: str) -> None:
    words = shlex.split(example)[1:]
    if words in (["nod"], ["node", "list", "--jsn"]):
        return  # These show what misspelling gives.
    command, rest = find_command(words)
    known = {flag for one in command.params for flag in one.opts} | {"--help"}
    flags = rest[: rest.index("--")] if "--" in rest else rest
    assert {flag for flag in flags if flag.startswith("-")} <= known


def test_every_command_is_in_the_guide() -> None:
    for name in ENTRIES:
        assert f"dcos {name}" in GUIDE, name


def test_every_option_of_up_and_run_is_in_its_table() -> None:
    for name in ("up", "run"):
        command, _ = find_command([name])
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in ("as_json", "folder", "cluster", "key"):
                assert f"`{option.opts[0]}" in GUIDE, option.opts


def test_config_file_of_the_guide_is_accepted(cluster: CliCluster, tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    tomllib.loads(text)
    (tmp_path / "mine.toml").write_text(text)
    cluster.dcos("run", "--", "true")
    listed = cluster.dcos("--config", str(tmp_path / "mine.toml"), "task", "list").stdout
    assert "FINISHED" in listed


@pytest.mark.parametrize(
    ("command", "said", "status"),
    [
        (("run", "--", "echo", "hello"), "hello\n", 0),
        (("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7"), "out\nerr\n", 7),
        (("nod",), "dcos: there is no command dcos nod; did you mean node?\n", 2),
        (("node", "list", "--jsn"), "dcos: No such option '--jsn'. Did you mean '--json'?\n", 2),
    ],
)
def test_examples_answer_as_the_guide_says(
    cluster: CliCluster, command: tuple[str, ...], said: str, status: int
) -> None:
    done = cluster.dcos(*command, status=status)
    assert done.stdout + done.stderr == said
    assert said in GUIDE


def test_tables_have_the_columns_that_the_guide_shows(cluster: CliCluster) -> None:
    cluster.dcos("run", "--", "true")
    for words in (("node", "list"), ("framework", "list", "--all"), ("task", "list", "--all"), ("status",)):
        header = next(line for line in cluster.dcos(*words).stdout.splitlines() if re.match(r"[A-Z]{2,} ", line))
        assert any(line.split() == header.split() for line in GUIDE.splitlines()), header


@pytest.mark.parametrize(
    ("command", "heading"),
    [
        (("status",), "`up`, `status`"),
        (("node", "list"), "`node list`"),
        (("framework", "list"), "`framework list`"),
        (("task", "list"), "`task list`"),
        (("keygen",), "`keygen`"),
    ],
)
def test_objects_have_the_fields_that_the_guide_names(
    cluster: CliCluster, command: tuple[str, ...], heading: str
) -> None:
    (row,) = [line for line in GUIDE.splitlines() if line.startswith(f"| {heading} |")]
    for field in cluster.json(*command):
        assert f"`{field}`" in row
