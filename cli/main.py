"""The `dcos` command: its groups, its errors, its exit status.

Exit 0 is done, 1 failed, 2 wrong use; `dcos run` passes its tasks' status on. Results go to
stdout, all else to stderr.
"""

import os
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from cli.commands import Entry, LazyGroup, did_you_mean
from meseta import __version__
from meseta.errors import InvalidInput, MesetaError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell shows it.
CONFIG_NAME: Final = "dcos.toml"

_CLUSTER: Final = "Cluster"
_LOOK: Final = "What there is"
_WORK: Final = "Work"
_REST: Final = "Further"

ENTRIES: Final = {
    "up": Entry("cli.cluster:up", "Start a cluster on this machine, or repair one.", _CLUSTER),
    "down": Entry("cli.cluster:down", "End the cluster and all its tasks.", _CLUSTER),
    "status": Entry("cli.cluster:status", "Show the cluster's daemons and what it has.", _CLUSTER),
    "master": Entry("cli.daemons:master", "Run a master in the foreground.", _CLUSTER),
    "slave": Entry("cli.daemons:slave", "Run a slave in the foreground.", _CLUSTER),
    "keygen": Entry("cli.cluster:keygen", "Make the keys of a cluster, or of one more principal.", _CLUSTER),
    "node": Entry("cli.node:group", "Machines: list.", _LOOK),
    "framework": Entry("cli.framework:group", "Frameworks, and why they wait: list.", _LOOK),
    "task": Entry("cli.task:group", "Tasks: list, log, kill.", _LOOK),
    "run": Entry("cli.run:command", "Run a command on the cluster, with its output here.", _WORK),
    "batch": Entry("cli.batch:group", "Map and reduce: run, list, show, kill.", _WORK),
    "completion": Entry("cli.completion:command", "Print completion code for bash, zsh or fish.", _REST),
}


@click.command(
    cls=LazyGroup,
    entries=ENTRIES,
    context_settings={
        "auto_envvar_prefix": "MESETA",
        "show_default": True,
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
    epilog="Every option may also come from a variable (MESETA_RUN_CPUS for `dcos run --cpus`) or from the config "
    "file (cpus = 2 below [run]). A flag beats a variable, a variable beats the file.",
)
@click.option(
    "--config",
    envvar="MESETA_CLI_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, param, value: load_config(ctx, value),
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"TOML file with a table for each command.  [default: {CONFIG_NAME} in the cluster's folder]",
)
@click.version_option(__version__, message="%(version)s")
def root() -> None:
    """Meseta: one pool of resources out of many machines."""


def load_config(ctx: click.Context, config: Path | None) -> None:
    """Give the commands the values of the config file, if there is one."""
    if ctx.resilient_parsing:
        return  # Completion needs no values.
    if config is None:
        folder = Path(os.environ.get("MESETA_DIR") or Path.home() / ".meseta")
        config = folder / CONFIG_NAME if (folder / CONFIG_NAME).exists() else None
    if config is not None:
        ctx.default_map = read_config(config)


def read_config(path: Path) -> dict[str, Any]:
    """Return the tables of a config file, by command; keys may be written with - or _.

    Raises:
        InvalidInput: it cannot be read, is no TOML, or names a command that is none.
    """
    import tomllib  # noqa: PLC0415 - most calls have no such file.

    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path} is no TOML: {error}") from error
    for name in tables:
        if name not in ENTRIES:
            raise InvalidInput(f"{path}: there is no command {name}{did_you_mean(name, ENTRIES)}")
    underscored = _underscored(tables)
    assert isinstance(underscored, dict)
    return underscored


def _underscored(value: object) -> object:
    if isinstance(value, dict):
        return {str(key).replace("-", "_"): _underscored(one) for key, one in value.items()}
    return value


def main() -> NoReturn:
    """Run `dcos` and exit."""
    try:
        status = root.main(prog_name="dcos", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.UsageError as error:
        status = _complain_of_usage(error)
    except click.ClickException as error:
        status = _complain(error.format_message(), EXIT_FAILED)
    except InvalidInput as error:
        status = _complain(str(error), EXIT_USAGE)
    except MesetaError as error:
        status = _complain(str(error), EXIT_FAILED)
    except PermissionError as error:
        status = _complain(
            f"{error.filename or error}: permission denied; run this as its owner or as root", EXIT_FAILED
        )
    except (click.Abort, KeyboardInterrupt):
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough (`dcos task list | head`). Python flushes at exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_FAILED
    sys.exit(status if isinstance(status, int) else 0)


def _complain(text: str, status: int) -> int:
    click.echo(f"dcos: {text.rstrip('.')}", err=True)
    return status


def _complain_of_usage(error: click.UsageError) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return EXIT_USAGE
    text = " ".join(error.format_message().split()).rstrip(".")  # click lists choices one on a line.
    has_remedy = "did you mean" in text.lower() or ";" in text
    if error.ctx is not None and not has_remedy:
        text += f"; see {error.ctx.command_path} --help"
    return _complain(text, EXIT_USAGE)


if __name__ == "__main__":
    main()
