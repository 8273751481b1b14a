"""The functions of a job file, loaded in the worker that runs them. Starts quickly: no `inspect`, no `ast`."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import TypeAlias

from meseta.errors import InvalidInput
from meseta.spill import Key, Pair, Value

MODULE_NAME = "meseta_job"

MapFunction: TypeAlias = Callable[[str], Iterable[Pair]]
MapLinesFunction: TypeAlias = Callable[[Iterator[str]], Mapping[Key, Value]]
GroupFunction: TypeAlias = Callable[[Key, Iterator[Value]], Iterable[Pair]]
FoldFunction: TypeAlias = Callable[[Value, Value], Value]

_NAMES = ("map", "map_lines", "reduce", "combine")
_CO_GENERATOR = 0x20


class JobCode:
    """The functions of a job file: `map_function` or `map_lines` and `reduce`, perhaps one of two combiners."""

    def __init__(
        self,
        *,
        reduce: GroupFunction,
        map_function: MapFunction | None = None,
        map_lines: MapLinesFunction | None = None,
        combine_group: GroupFunction | None = None,
        combine_fold: FoldFunction | None = None,
    ) -> None:
        self.map_function = map_function
        self.map_lines = map_lines
        self.reduce = reduce
        self.combine_group = combine_group
        self.combine_fold = combine_fold


def load(source: bytes, name: str) -> JobCode:
    """Run a job file and return its functions.

    Raises:
        InvalidInput: something that must be a function is none.
        Exception: whatever the job file's own code raises.
    """
    module = ModuleType(MODULE_NAME)
    module.__file__ = name
    sys.modules[MODULE_NAME] = module  # Else pickle, dataclasses and typing do not find the job's own classes.
    exec(compile(source, name, "exec"), module.__dict__)
    functions = {one: getattr(module, one, None) for one in _NAMES}
    for one, value in functions.items():
        if value is not None and not callable(value):
            raise InvalidInput(f"{name}: {one} is a {type(value).__name__}, no function")
    if functions["reduce"] is None or (functions["map"] is None) == (functions["map_lines"] is None):
        raise InvalidInput(f"{name} needs reduce(key, values) and one of map(line) and map_lines(lines)")
    combine = functions["combine"]
    is_group = combine is not None and _is_generator(combine)
    return JobCode(
        map_function=functions["map"],
        map_lines=functions["map_lines"],
        reduce=functions["reduce"],
        combine_group=combine if is_group else None,
        combine_fold=None if is_group else combine,
    )


def _is_generator(function: object) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_GENERATOR)
