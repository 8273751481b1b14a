"""Starts a process: its folder, its output files, its user, and plain words when it cannot be.

For a small, single-threaded process that owns what it starts: it changes its own working
directory for the moment of the start.
"""

import errno
import os
import pwd
import select
import signal
import stat
from typing import Final, NamedTuple, NoReturn

from meseta.errors import IsolationError

STDOUT: Final = "stdout"
STDERR: Final = "stderr"

# From fork to exec: 1 ms. Nothing else is done meanwhile, and a user's broken mount must not hold it up for ever.
START_LIMIT_S: Final = 5.0

_OUTPUT_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_OUTPUT_MODE: Final = 0o644
_DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
# Those that Python or we ourselves ignore or handle. What is ignored would stay so after exec.
_SIGNALS_TO_RESET: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)
_FAILURE_LIMIT_BYTES: Final = 8192


class Login(NamedTuple):
    """A user to run as: what login(1) would set."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


class Command(NamedTuple):
    """What to start. `folder` is where; output is appended to files in it. `login` None: as ourselves."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    login: Login | None = None


def find_login(user: str) -> Login | None:
    """Return the login to switch to, None if we are that user.

    Raises:
        IsolationError: there is no such user, or we may not become it.
    """
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError) as error:
        raise IsolationError(f"user {user!r} does not exist on this slave") from error
    own_uid = os.geteuid()
    if entry.pw_uid == own_uid:
        return None
    if own_uid != 0:
        raise IsolationError(
            f"cannot run as user {user!r}: the slave runs as uid {own_uid}, "
            f"and only a slave that runs as root can switch users"
        )
    groups = tuple(os.getgrouplist(user, entry.pw_gid))
    return Login(name=user, uid=entry.pw_uid, gid=entry.pw_gid, groups=groups)


def spawn(command: Command) -> int:
    """Start a process that leads a session of its own; return its pid.

    It is born in whatever cgroups the caller stands in, with no descriptor but 0, 1 and 2 and all
    signals at their defaults.

    Raises:
        IsolationError: nothing was started; says why.
    """
    if not command.arguments or not command.arguments[0]:
        raise IsolationError("there is no program to start: the arguments are empty")
    try:
        if command.login is None:
            return _spawn_as_ourselves(command)
        return _fork_as(command.login, command)
    except ValueError as error:  # A NUL, or a variable's name with "=".
        raise IsolationError(f"arguments or environment cannot be passed on: {error}") from error
    except OSError as error:
        raise IsolationError(f"no process could be made: {error.strerror}") from error


def _spawn_as_ourselves(command: Command) -> int:
    try:
        os.chdir(command.folder)
    except OSError as error:
        raise IsolationError(f"sandbox {command.folder}: {error.strerror}") from error
    try:
        program = _find_program(command)
        return os.posix_spawn(
            program,
            command.arguments,
            command.environment,
            file_actions=(
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, STDOUT, _OUTPUT_FLAGS, _OUTPUT_MODE),
                (os.POSIX_SPAWN_OPEN, 2, STDERR, _OUTPUT_FLAGS, _OUTPUT_MODE),
            ),
            setsid=True,
            setsigmask=(),
            setsigdef=_SIGNALS_TO_RESET,
        )
    except OSError as error:
        # posix_spawn does not say which of its steps failed.
        for name in (STDOUT, STDERR):
            _check_writable(command, name)
        raise _refusal(error, program, command) from error
    finally:
        os.chdir("/")  # Or the folder's file system could not be unmounted.


def _fork_as(login: Login, command: Command) -> int:
    """Start as another user.

    Not by changing our own user around posix_spawn: in that moment any process of the user
    could kill us, and every task of the slave with us. The fork costs 0.6 ms more.
    """
    report, complaint = os.pipe2(os.O_CLOEXEC)
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _become(login, command, complaint)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.close(complaint)
        waiter = select.poll()
        waiter.register(report, select.POLLIN)
        if not waiter.poll(START_LIMIT_S * 1000):
            os.kill(pid, signal.SIGKILL)  # Reaped when it dies, as any child that is nobody's first process.
            raise IsolationError(
                f"program {command.arguments[0]!r} did not start within {START_LIMIT_S:g} s: "
                f"does a file system hang that it is on?"
            )
        failure = os.read(report, _FAILURE_LIMIT_BYTES)  # Empty when exec closed the other end.
    finally:
        os.close(report)
    if failure:
        os.waitpid(pid, 0)
        raise IsolationError(failure.decode(errors="replace"))
    return pid


def _become(login: Login, command: Command, complaint: int) -> NoReturn:
    """In the child: take on the user, then exec. Whatever goes wrong is written to `complaint`."""
    try:
        for signum in _SIGNALS_TO_RESET:
            signal.signal(signum, signal.SIG_DFL)
        os.setsid()
        os.setgroups(login.groups)
        os.setresgid(login.gid, login.gid, login.gid)
        os.setresuid(login.uid, login.uid, login.uid)
        _open_as_user(login, command)
        program = _find_program(command)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execve(program, command.arguments, command.environment)
        except OSError as error:
            raise _refusal(error, program, command) from error
    except BaseException as error:  # No exception may leave the child: it would run on as a second supervisor.
        os.write(complaint, str(error).encode(errors="replace")[:_FAILURE_LIMIT_BYTES])
    finally:
        os._exit(127)


def _open_as_user(login: Login, command: Command) -> None:
    try:
        os.chdir(command.folder)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0, inheritable=True)
        for target, name in ((1, STDOUT), (2, STDERR)):
            # Another task of the user may have put anything there; a pipe would make us wait for its reader.
            fd = os.open(name, _OUTPUT_FLAGS | os.O_NONBLOCK, _OUTPUT_MODE)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", name)
            os.set_blocking(fd, True)
            os.dup2(fd, target, inheritable=True)
    except OSError as error:
        raise IsolationError(
            f"user {login.name!r} cannot use sandbox {command.folder}: {error.strerror}"
            + (f" ({error.filename})" if error.filename else "")
        ) from error


def _find_program(command: Command) -> str:
    """Return the path of the program as execvp would find it with the task's own PATH."""
    program = command.arguments[0]
    if "/" in program:
        return program
    path = command.environment.get("PATH", _DEFAULT_PATH)
    not_executable = None
    for folder in path.split(":"):
        candidate = f"{folder or '.'}/{program}"
        try:
            is_file = stat.S_ISREG(os.stat(candidate).st_mode)
        except OSError:
            continue
        if is_file and os.access(candidate, os.X_OK, effective_ids=True):
            return candidate
        not_executable = candidate
    if not_executable is not None:
        raise IsolationError(f"program {program!r}: {not_executable} is no executable file")
    origin = "" if "PATH" in command.environment else " (the default: the task's environment has no PATH)"
    raise IsolationError(f"program {program!r} was not found in PATH={path}{origin}")


def _check_writable(command: Command, name: str) -> None:
    try:
        os.close(os.open(name, _OUTPUT_FLAGS | os.O_CLOEXEC, _OUTPUT_MODE))
    except OSError as error:
        raise IsolationError(f"cannot write {name} in sandbox {command.folder}: {error.strerror}") from error


def _refusal(error: OSError, program: str, command: Command) -> IsolationError:
    name = repr(command.arguments[0])
    match error.errno:
        case errno.ENOENT if os.path.exists(program):
            return IsolationError(f"program {name}: the interpreter that its first line names does not exist")
        case errno.ENOENT | errno.ENOTDIR:
            return IsolationError(f"program {name} does not exist (seen from the sandbox)")
        case errno.EACCES:
            return IsolationError(f"program {name} may not be executed: {error.strerror}")
        case errno.ENOEXEC:
            return IsolationError(f"program {name} is nothing that the kernel can run; a script begins with #!")
        case errno.E2BIG:
            return IsolationError(
                f"program {name}: arguments and environment are larger than the kernel takes "
                f"(128 KiB for one string, 2 MiB in all)"
            )
        case errno.EAGAIN:
            return IsolationError(f"program {name}: no more processes may be made here ({error.strerror})")
        case _:
            return IsolationError(f"program {name} could not be started: {error.strerror}")
