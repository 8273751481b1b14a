"""Options of daemons: flags, variables, files; log lines."""

import io
import logging
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from meseta.errors import InvalidInput, StoreError
from meseta.log import INFO, Log, log_event, perform_log
from meseta.options import DURATION, SIZE, DaemonCommand, daemon_options, parse_duration, parse_size, unknown_name


@click.command("example", cls=DaemonCommand)
@click.option("--ping-timeout", type=DURATION, default="15s")
@click.option("--cache", type=SIZE, default="1MiB")
@click.option("--fail", default="")
@daemon_options
def example(*, ping_timeout: float, cache: float, fail: str, record: Path | None, log_level: str) -> None:
    """Print what was understood."""
    if fail == "input":
        raise InvalidInput("key: is wrong; write it right")
    if fail == "store":
        raise StoreError("registry is in use")
    click.echo(f"{ping_timeout} {cache} {record} {log_level}")


def _run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(example, arguments, env=environment)


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('ping-timeout = "2s"\ncache = "2KiB"\nlog_level = "debug"\n')
    assert _run().output == "15.0 1048576 None info\n"
    assert _run("--config", str(file)).output == "2.0 2048 None debug\n"
    assert _run("--config", str(file), MESETA_PING_TIMEOUT="3s").output == "3.0 2048 None debug\n"
    assert _run("--config", str(file), "--ping-timeout", "500ms", MESETA_PING_TIMEOUT="3s").output.startswith("0.5 ")


def test_file_can_be_named_by_its_variable(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('cache = "3B"\n')
    assert _run(MESETA_CONFIG=str(file)).output == "15.0 3 None info\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('pnig-timeout = "2s"', "there is no key pnig-timeout; did you mean ping-timeout?"),
        ("ping-timeout = 2", "'2' is no duration"),
        ("[ping-timeout]\nx = 1", "ping-timeout is a table"),
        ("ping-timeout = ", "is no TOML"),
    ],
)
def test_bad_file_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    result = _run("--config", str(file))
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_misspelt_flag_is_refused_with_the_one_that_was_meant() -> None:
    result = _run("--pnig-timeout", "2s")
    assert result.exit_code == 2
    assert "Did you mean" in result.output
    assert "--ping-timeout" in result.output


def test_our_errors_become_exit_codes() -> None:
    result = _run("--fail", "input")
    assert (result.exit_code, "key: is wrong; write it right" in result.output) == (2, True)
    result = _run("--fail", "store")
    assert (result.exit_code, result.output) == (1, "Error: registry is in use\n")


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("2m", 120), ("1.5h", 5400), ("7d", 604800), ("1w", 604800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, field="x") == seconds


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1 year", "nans", "1e3s", "99999999999s"])
def test_bad_durations_name_field_and_remedy(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^x: "):
        parse_duration(text, field="x")


def test_sizes() -> None:
    assert [parse_size(text, field="x") for text in ("1B", "1KiB", "1.5MiB", "2 GiB")] == [1, 1024, 1572864, 2**31]
    for text in ("1", "1.5B", "1MB", "x"):
        with pytest.raises(InvalidInput, match=r"^x: "):
            parse_size(text, field="x")


def test_unknown_name_lists_what_there_is() -> None:
    assert unknown_name("kind", "zzz", ["b", "a"]) == "there is no kind zzz; there are a, b"


def test_log_line_quotes_what_could_forge_another() -> None:
    stream = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(stream))
    log_event(logger, INFO, "slave lost", slave_id="s-1", silent_s=75.0, text='a "b"\nINFO fake', none=None, empty="")
    assert stream.getvalue() == (
        'slave lost slave_id=s-1 silent_s=75 text="a \\"b\\"\\nINFO fake" none=None empty=""\n'
    )


def test_log_effect_is_written_as_it_says() -> None:
    stream = io.StringIO()
    logger = logging.Logger("test", level=INFO)
    logger.addHandler(logging.StreamHandler(stream))
    perform_log(logger, Log(level=10, phrase="hidden"))
    perform_log(logger, Log(level=INFO, phrase="shown", values={"count": 3}))
    assert stream.getvalue() == "shown count=3\n"
