"""What clients of the batch daemon may ask: methods, parameters and answers. Imported by `dcos batch` too."""

import msgspec

from frameworks.batch.jobfile import JOB_FILE_LIMIT_BYTES, check_source
from frameworks.batch.model import JobSpec, JobView
from frameworks.batch.work import OUTPUT_FILE, PROGRESS_FILE, RESULT_FILE, STDERR_FILE, STDOUT_FILE, WORK_FILE
from meseta.errors import InvalidInput

FRAMEWORK_NAME = "batch"

SUBMIT = "submit"  # JobSpec in, Submitted out.
LIST = "list"  # ListJobs in, Jobs out.
SHOW = "show"  # NameJob in, JobView out.
WATCH = "watch"  # NameJob in, a stream of JobView out, until the job has ended.
KILL = "kill"  # NameJob in, Submitted out.

_RESERVED = (OUTPUT_FILE, PROGRESS_FILE, RESULT_FILE, STDERR_FILE, STDOUT_FILE, WORK_FILE)
_MAGIC = frozenset("*?[")


class NameJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job by its id, or by a beginning of it that no other job's id has."""

    job_id: str


class ListJobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask for the jobs."""


class Submitted(msgspec.Struct, frozen=True):
    """The job that was meant, by its whole id."""

    job_id: str


class Jobs(msgspec.Struct, frozen=True):
    """Jobs, oldest first; without counters and attempts, which `show` tells."""

    jobs: tuple[JobView, ...]


def check_spec(spec: JobSpec) -> None:
    """Refuse a job that cannot work, as far as can be told before it runs.

    Raises:
        InvalidInput: one sentence that names field and remedy.
    """
    for field, names in (("input", spec.inputs), ("output", (spec.output,))):
        for name in names:
            if not name.startswith("/"):
                raise InvalidInput(f"{field} {name!r} is not absolute; begin it with /")
    if spec.output.rstrip("/") != spec.output or "//" in spec.output:
        raise InvalidInput(f"output {spec.output!r} is not written plainly; leave out empty parts")
    has_commands = bool(spec.mapper or spec.reducer)
    if has_commands == bool(spec.file_name):
        raise InvalidInput("name either a job file, or a --mapper and a --reducer")
    if has_commands and not (spec.mapper and spec.reducer):
        raise InvalidInput(f"--{'mapper' if spec.reducer else 'reducer'} is missing; commands come in pairs")
    for name in (spec.file_name, *spec.files):
        if "/" in name or name.startswith(".") or name in _RESERVED:
            raise InvalidInput(f"a job cannot bring a file named {name!r}; rename it")
    if spec.file_name in spec.files:
        raise InvalidInput(f"--file {spec.file_name} has the job file's own name; rename it")
    size = len(spec.job_file) + sum(len(content) for content in spec.files.values())
    if size > JOB_FILE_LIMIT_BYTES:
        raise InvalidInput(
            f"job file and --file together have {size} bytes, {JOB_FILE_LIMIT_BYTES} at most; put data into inputs"
        )
    if spec.file_name:
        check_source(spec.job_file, spec.file_name)
