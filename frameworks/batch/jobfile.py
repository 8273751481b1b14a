"""The check of a job file before it is taken. Its loading: `jobcode.py`.

The check reads the source and runs none of it: a client and the daemon must not run a stranger's
code. So it judges what it can see and leaves the rest (a `reduce` that was imported) to the worker.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TypeAlias

from meseta.errors import InvalidInput

JOB_FILE_LIMIT_BYTES = 512 << 10  # It travels in ExecutorInfo.data, which holds a megabyte.
# What each function is called with, for the messages.
_FORMS = {
    "map": ("map(line)", 1),
    "map_lines": ("map_lines(lines)", 1),
    "reduce": ("reduce(key, values)", 2),
    "combine": ("combine(a, b) or combine(key, values)", 2),
}
_GENERATORS = ("map", "reduce")


def check_source(source: bytes, name: str) -> None:
    """Refuse a job file that cannot work, as far as its text tells.

    Raises:
        InvalidInput: one sentence that names file, line and remedy.
    """
    if len(source) > JOB_FILE_LIMIT_BYTES:
        raise InvalidInput(f"{name} has {len(source)} bytes, a job file {JOB_FILE_LIMIT_BYTES} at most")
    try:
        tree = ast.parse(source, filename=name)
    except SyntaxError as error:
        raise InvalidInput(f"{name} line {error.lineno} is no Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidInput(f"{name} is no Python: {error}") from error
    names, is_open = _top_level(tree)
    if "map" in names and "map_lines" in names:
        raise InvalidInput(f"{name} has both map and map_lines; keep one of them")
    if not is_open:
        if "map" not in names and "map_lines" not in names:
            raise InvalidInput(f"{name} has no map(line){_meant('map', names)}")
        if "reduce" not in names:
            raise InvalidInput(f"{name} has no reduce(key, values){_meant('reduce', names)}")
        if "combine" not in names:
            _refuse_misspelt_combine(names, name)
    for function_name, node in names.items():
        if function_name in _FORMS and node is not None:
            _check_function(function_name, node, name)


_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def _top_level(tree: ast.Module) -> tuple[dict[str, _Function | None], bool]:
    """Return the names that the module binds, with the function where the text shows it; True if there may be more."""
    names: dict[str, _Function | None] = {}
    is_open = False
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A decorated function is what its decorator returns.
            names[node.name] = None if node.decorator_list else node
        elif isinstance(node, ast.ClassDef):
            names[node.name] = None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                is_open = is_open or alias.name == "*"
                names[alias.asname or alias.name.partition(".")[0]] = None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            value = node.value if isinstance(node.value, ast.Lambda) else None
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update({target.id: value for target in targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            is_open = is_open or any(
                isinstance(one, ast.FunctionDef | ast.Import | ast.ImportFrom | ast.Assign) for one in ast.walk(node)
            )
    return names, is_open


def _meant(wanted: str, names: Iterable[str]) -> str:
    close = get_close_matches(wanted, [one for one in names if one not in _FORMS], n=1, cutoff=0.6)
    return f"; if {close[0]} is meant to be it, rename it" if close else "; add it"


def _refuse_misspelt_combine(names: Mapping[str, _Function | None], name: str) -> None:
    close = get_close_matches("combine", [one for one, node in names.items() if node is not None], n=1, cutoff=0.75)
    if close:
        raise InvalidInput(f"{name} has {close[0]} but no combine; call it combine, or something less alike")


def _check_function(function_name: str, node: _Function, name: str) -> None:
    form, wanted = _FORMS[function_name]
    where = f"{name} line {node.lineno}"
    if isinstance(node, ast.AsyncFunctionDef):
        raise InvalidInput(f"{where}: {function_name} is async; write it as def {form}")
    arguments = node.args
    positional = len(arguments.posonlyargs) + len(arguments.args)
    required = positional - len(arguments.defaults)
    has_required_keyword = any(one is None for one in arguments.kw_defaults)
    if has_required_keyword or required > wanted or (positional < wanted and arguments.vararg is None):
        raise InvalidInput(f"{where}: {function_name} takes {positional} arguments; write it as {form}")
    if isinstance(node, ast.Lambda):
        return
    own = list(_own_nodes(node))
    is_generator = any(isinstance(one, ast.Yield | ast.YieldFrom) for one in own)
    returns_value = any(isinstance(one, ast.Return) and one.value is not None for one in own)
    if function_name in _GENERATORS and not is_generator and not returns_value and not _only_raises(node):
        raise InvalidInput(f"{where}: {function_name} yields nothing; let it yield (key, value) pairs")
    if function_name == "map_lines" and is_generator:
        raise InvalidInput(f"{where}: map_lines yields; let it return a dict or a Counter, or write map(line) instead")
    if function_name == "map_lines" and not returns_value:
        raise InvalidInput(f"{where}: map_lines returns nothing; let it return a dict or a Counter")
    if function_name == "combine" and not is_generator:
        last = (arguments.posonlyargs + arguments.args)[-1].arg if positional else ""
        if last == "values":
            raise InvalidInput(f"{where}: combine(key, values) does not yield; let it yield (key, value) pairs")
        if not returns_value:
            raise InvalidInput(f"{where}: combine returns nothing; let combine(a, b) return one value for two")


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of functions inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


def _only_raises(function: ast.FunctionDef) -> bool:
    return isinstance(function.body[-1], ast.Raise)
