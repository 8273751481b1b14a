"""The output folder, as tasks on the slaves handle it.

A reduce attempt writes in `_temporary/<attempt>`; a single task at the job's end moves the parts of
the winning attempts into place and writes `_SUCCESS`. Every step may be done again: a task whose
end nobody heard of is run once more. An attempt never makes `_temporary`, so that a late one, whose
slave was given up, finds no place to write.
"""

import os
import shutil
from pathlib import Path

from frameworks.batch.work import MARKER, SUCCESS, TEMPORARY
from meseta.errors import InvalidInput


class OutputExists(InvalidInput):
    """There is a folder or file of that name already."""


class OutputInvisible(InvalidInput):
    """This slave does not see the job's output folder."""


def part_name(partition: int) -> str:
    """Return the name of a partition's file."""
    return f"part-{partition:05d}"


def set_up(output: Path, job_id: str) -> None:
    """Make the output folder, with a mark that it is the job's.

    Raises:
        OutputExists: somebody else's is there.
        InvalidInput: it cannot be made.
    """
    try:
        output.mkdir()
        (output / TEMPORARY).mkdir()
        (output / TEMPORARY / MARKER).write_text(job_id)
    except FileExistsError:
        if owner(output) != job_id:
            raise OutputExists(f"output folder {output} exists; name a new one with -o, or remove it") from None
    except OSError as error:
        raise InvalidInput(f"output folder {output} cannot be made: {error.strerror}") from error


def owner(output: Path) -> str | None:
    """Return the id of the job that is writing there, None if there is none."""
    try:
        return (output / TEMPORARY / MARKER).read_text()
    except OSError:
        return None


def attempt_file(output: Path, job_id: str, attempt_id: str, partition: int) -> Path:
    """Make an attempt's own folder and return where it writes its part.

    Raises:
        OutputInvisible: the job's output folder is not to be seen from here.
    """
    if owner(output) != job_id:
        raise OutputInvisible(f"output folder {output} of {job_id} is not to be seen from here")
    folder = output / TEMPORARY / attempt_id
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder / part_name(partition)


def commit(output: Path, job_id: str, attempt_ids: tuple[str, ...]) -> None:
    """Move the parts into place, partition by partition, and mark the success.

    Raises:
        OutputInvisible: the job's output folder is not to be seen from here.
        InvalidInput: a part is missing.
    """
    success = output / SUCCESS
    if success.is_file() and success.read_text() == f"{job_id}\n":
        shutil.rmtree(output / TEMPORARY, ignore_errors=True)
        return
    if owner(output) != job_id:
        raise OutputInvisible(f"output folder {output} of {job_id} is not to be seen from here")
    for partition, attempt_id in enumerate(attempt_ids):
        final = output / part_name(partition)
        draft = output / TEMPORARY / attempt_id / part_name(partition)
        try:
            draft.rename(final)
        except FileNotFoundError:
            if not final.exists():
                raise InvalidInput(f"{draft} is gone; somebody removed it") from None
    draft_success = output / TEMPORARY / SUCCESS
    draft_success.write_text(f"{job_id}\n")
    draft_success.rename(success)
    shutil.rmtree(output / TEMPORARY, ignore_errors=True)


def clean_up(output: Path, job_id: str) -> None:
    """Remove the job's traces; the folder too if nothing else is in it.

    Raises:
        OutputInvisible: the job's output folder is not to be seen from here.
    """
    if owner(output) != job_id:
        if output.exists() or not output.parent.is_dir():
            raise OutputInvisible(f"output folder {output} of {job_id} is not to be seen from here")
        return
    # The mark goes last: a clean-up that is cut off can be done again.
    for entry in sorted((output / TEMPORARY).iterdir()):
        if entry.name != MARKER:
            shutil.rmtree(entry, ignore_errors=True)
    for part in sorted(output.glob("part-*")):  # Of a commit that did not end.
        part.unlink()
    shutil.rmtree(output / TEMPORARY, ignore_errors=True)
    if not os.listdir(output):
        output.rmdir()
