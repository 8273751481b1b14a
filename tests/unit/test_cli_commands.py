"""The command line itself: help without imports, sentences for what was mistyped, config files, completion."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import ENTRIES, main, read_config, root
from meseta.errors import InvalidInput

LIMIT_S = 30


def dcos(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
        check=False,
    )


def test_help_names_every_command_and_loads_none_of_them() -> None:
    script = (
        "import sys\n"
        "from cli.main import root\n"
        "root.main(['--help'], standalone_mode=False)\n"
        "heavy = {'zmq', 'msgspec', 'rich', 'asyncio', 'cli.run', 'cli.cluster', 'master', 'slave'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in ENTRIES)


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_command_loads_and_has_help(name: str) -> None:
    done = CliRunner().invoke(root, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"Usage: root {name}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nod"], "dcos: there is no command dcos nod; did you mean node?\n"),
        (["task", "lst"], "dcos: there is no command dcos task lst; did you mean list?\n"),
        (["xyz"], "dcos: there is no command dcos xyz; there are up, down, status,"),
        (["node", "list", "--jsn"], "dcos: No such option '--jsn'. Did you mean '--json'?\n"),
        (["up", "--slaves", "many"], "dcos: Invalid value for '--slaves': 'many' is not a valid integer"),
        (["run", "--cpus", "two", "--", "true"], "dcos: --cpus: cpus:two is no quantity; write a number such as"),
        (["run", "--mem", "5GB", "--", "true"], "dcos: --mem: mem:5GB has unit 'GB'; mem takes KiB, MiB, GiB or TiB\n"),
        (["run", "--env", "X", "--", "true"], "dcos: --env: 'X' is not NAME=VALUE, as in LANG=C.UTF-8\n"),
        (["run"], "dcos: Missing argument"),
        (["completion"], "dcos: Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish; see"),
        (["keygen", "--principal", "", "--dir", "/tmp"], "dcos: '' is no name of a principal; take letters"),
        (["task", "log", "x", "--json", "--follow"], "dcos: --json: one object cannot be printed while --follow"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_2(arguments: list[str], sentence: str) -> None:
    done = dcos(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(sentence), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_cluster_that_does_not_exist_is_named_with_the_remedy(tmp_path: Path) -> None:
    done = dcos("node", "list", "--dir", str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path}/cluster.json does not exist; start a cluster with `dcos up`" in done.stderr


def test_folder_of_somebody_else_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/home/ann/.meseta/run/lock")

    monkeypatch.setattr(root, "main", refuse)
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 1
    assert (
        capsys.readouterr().err
        == "dcos: /home/ann/.meseta/run/lock: permission denied; run this as its owner or as root\n"
    )


def test_keygen_makes_keys_once_and_adds_a_principal(tmp_path: Path) -> None:
    first = dcos("keygen", "--dir", str(tmp_path))
    assert first.returncode == 0, first.stderr
    assert [line.rsplit("  ", 1)[1] for line in first.stdout.splitlines()] == ["made"] * 4
    key = (tmp_path / "keys" / "master.json").read_text()
    more = dcos("keygen", "--principal", "ann", MESETA_DIR=str(tmp_path))
    assert more.stdout == f"{tmp_path}/keys/ann.json  made\n"
    again = dcos("keygen", "--dir", str(tmp_path))
    assert [line.rsplit("  ", 1)[1] for line in again.stdout.splitlines()] == ["kept"] * 4
    assert (tmp_path / "keys" / "master.json").read_text() == key
    assert "ann" in (tmp_path / "keys" / "principals.json").read_text()


def test_option_comes_from_flag_then_variable_then_config_file(tmp_path: Path) -> None:
    (tmp_path / "dcos.toml").write_text('[run]\nmem = "3QiB"\n[keygen]\nprincipal = "filed"\n')
    folder = {"MESETA_DIR": str(tmp_path)}
    assert "mem:3QiB has unit" in dcos("run", "--", "true", **folder).stderr
    assert "mem:4QiB has unit" in dcos("run", "--", "true", **folder, MESETA_RUN_MEM="4QiB").stderr
    assert "mem:5QiB has unit" in dcos("run", "--mem", "5QiB", "--", "true", **folder, MESETA_RUN_MEM="4QiB").stderr
    assert "filed.json" in dcos("keygen", **folder).stdout


def test_unknown_keys_of_the_config_file_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[run]\ncpu = 1\n")
    done = dcos("--config", str(config), "run", "--", "true")
    assert (done.returncode, done.stderr) == (2, "dcos: config file: [run] has no key cpu; did you mean cpus?\n")
    config.write_text("[rnu]\ncpus = 1\n")
    with pytest.raises(InvalidInput, match="there is no command rnu; did you mean run"):
        read_config(config)
    config.write_text("[task.list]\nalll = true\n")
    done = dcos("--config", str(config), "task", "list")
    assert done.stderr == "dcos: config file: [task.list] has no key alll; did you mean all?\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_code_is_printed_for_each_shell(shell: str) -> None:
    done = dcos("completion", shell)
    assert done.returncode == 0, done.stderr
    assert "_DCOS_COMPLETE" in done.stdout


def test_completion_offers_commands_and_options() -> None:
    words = dcos(_DCOS_COMPLETE="bash_complete", COMP_WORDS="dcos fra", COMP_CWORD="1")
    assert words.stdout == "plain,framework\n"
    words = dcos(_DCOS_COMPLETE="bash_complete", COMP_WORDS="dcos task log --st", COMP_CWORD="3")
    assert words.stdout == "plain,--stderr\n"
