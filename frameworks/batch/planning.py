"""From what the slaves see to splits: which files there are, who can read them, and what is wrong with them. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from frameworks.batch.model import JobSpec, Listing
from frameworks.batch.splits import InputFile, Split, default_split_bytes, plan_splits
from meseta.ids import SlaveId
from meseta.resources import Resources

DEFAULT_CPUS_MILLI = 1000
DEFAULT_MEM_MILLI = 512_000
SPLIT_LIMIT = 100_000  # Maps of one job: each is a task, a record and a line in every reduce's order.


class Plan(NamedTuple):
    """A job's splits, with the slaves that see each; or `error`, why there are none."""

    splits: tuple[Split, ...] = ()
    viewers: tuple[tuple[SlaveId, ...], ...] = ()
    error: str = ""


def unseen_inputs(spec: JobSpec, listings: Mapping[SlaveId, Listing]) -> list[str]:
    """Return the inputs that no slave sees."""
    return [
        name
        for index, name in enumerate(spec.inputs)
        if all(listing.inputs[index] is None for listing in listings.values())
    ]


def output_error(spec: JobSpec, hostnames: Mapping[SlaveId, str], listings: Mapping[SlaveId, Listing]) -> str:
    """Return why the output folder cannot be made, empty if it can."""
    for slave_id, listing in listings.items():
        if listing.has_output:
            return f"output folder {spec.output} exists on {hostnames[slave_id]}; name a new one with -o, or remove it"
    if not any(listing.has_output_parent for listing in listings.values()):
        parent = spec.output.rpartition("/")[0] or "/"
        return (
            f"output folder {spec.output} cannot be made: no slave sees a folder {parent} that {spec.user} may write"
            f" (asked: {', '.join(sorted(set(hostnames.values())))})"
        )
    return ""


def plan(spec: JobSpec, listings: Mapping[SlaveId, Listing]) -> Plan:
    """Return the splits of everything that any slave sees.

    A path means the same file everywhere; slaves that see another size there make an error.
    """
    size_by_path: dict[str, int] = {}
    viewers_by_path: dict[str, list[SlaveId]] = {}
    for input_index in range(len(spec.inputs)):
        for slave_id, listing in listings.items():
            for path, size in listing.inputs[input_index] or ():
                known = size_by_path.setdefault(path, size)
                if known != size:
                    return Plan(
                        error=f"input {path} has {known} bytes on one slave and {size} on another;"
                        " let a path mean one file"
                    )
                viewers = viewers_by_path.setdefault(path, [])
                if not viewers or viewers[-1] != slave_id:
                    viewers.append(slave_id)
    groups: dict[tuple[SlaveId, ...], list[InputFile]] = {}
    for path, size in size_by_path.items():
        # The same path through two inputs is read once.
        viewers_of = tuple(dict.fromkeys(viewers_by_path[path]))
        groups.setdefault(viewers_of, []).append(InputFile(path, size))
    total = sum(size_by_path.values())
    split_bytes = spec.split_bytes or default_split_bytes(total, len(listings))
    splits: list[Split] = []
    viewers_of_splits: list[tuple[SlaveId, ...]] = []
    for viewers_of, files in groups.items():
        planned = plan_splits([files], split_bytes)
        splits += planned
        viewers_of_splits += [viewers_of] * len(planned)
        if len(splits) > SPLIT_LIMIT:
            return Plan(error=f"{len(splits)} splits are over the limit of {SPLIT_LIMIT}; name a larger --split-size")
    return Plan(tuple(splits), tuple(viewers_of_splits))


def seen_splits(splits: Sequence[Split], listing: Listing) -> list[int]:
    """Return the indices of the splits that a slave with this listing can read."""
    sizes = {path: size for files in listing.inputs for path, size in files or ()}
    return [
        index
        for index, split in enumerate(splits)
        if all(sizes.get(piece.path) == piece.size_bytes for piece in split.pieces)
    ]


def task_resources(spec: JobSpec, offered: Resources) -> Resources:
    """Return what each map and reduce takes: as asked for, else the default, or what a slave has if that is less."""
    cpus = spec.cpus_milli or min(DEFAULT_CPUS_MILLI, offered.get("cpus") or DEFAULT_CPUS_MILLI)
    mem = spec.mem_milli or min(DEFAULT_MEM_MILLI, offered.get("mem") or DEFAULT_MEM_MILLI)
    return Resources({"cpus": cpus, "mem": mem})
