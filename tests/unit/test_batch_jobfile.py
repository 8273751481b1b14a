"""Job files that cannot work are refused in one sentence; those that can are loaded."""

# ruff: noqa: E501 - one case a line

import pytest

from frameworks.batch.jobcode import load
from frameworks.batch.jobfile import check_source
from frameworks.batch.model import JobSpec
from frameworks.batch.service import check_spec
from meseta.errors import InvalidInput

MAP = "def map(line):\n    yield line, 1\n"
REDUCE = "def reduce(key, values):\n    yield key, sum(values)\n"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("def map(line) yield", "job.py line 1 is no Python: expected ':'"),
        (REDUCE, "job.py has no map(line); add it"),
        (REDUCE + "def mapp(line):\n    yield 1, 2\n", "job.py has no map(line); if mapp is meant to be it, rename it"),
        (MAP, "job.py has no reduce(key, values); add it"),
        (MAP + "def reducer(k, v):\n    yield 1, 2\n", "job.py has no reduce(key, values); if reducer is meant to be it, rename it"),
        (MAP + REDUCE + "def combiner(a, b):\n    return a\n", "job.py has combiner but no combine; call it combine, or something less alike"),
        (MAP + REDUCE + "def map_lines(lines):\n    return {}\n", "job.py has both map and map_lines; keep one of them"),
        (REDUCE + "def map(a, b):\n    yield a, b\n", "job.py line 3: map takes 2 arguments; write it as map(line)"),
        (MAP + "def reduce(key):\n    yield key, 1\n", "job.py line 3: reduce takes 1 arguments; write it as reduce(key, values)"),
        (REDUCE + "def map(line):\n    print(line)\n", "job.py line 3: map yields nothing; let it yield (key, value) pairs"),
        (REDUCE + "async def map(line):\n    yield 1, 2\n", "job.py line 3: map is async; write it as def map(line)"),
        (REDUCE + "def map_lines(lines):\n    yield 1, 2\n", "job.py line 3: map_lines yields; let it return a dict or a Counter, or write map(line) instead"),
        (MAP + REDUCE + "def combine(key, values):\n    return [(key, 1)]\n", "job.py line 5: combine(key, values) does not yield; let it yield (key, value) pairs"),
        (MAP + REDUCE + "def combine(a, b):\n    a + b\n", "job.py line 5: combine returns nothing; let combine(a, b) return one value for two"),
    ],
)  # fmt: skip
def test_bad_job_file_is_refused_in_one_sentence(source: str, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_source(source.encode(), "job.py")
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "source",
    [
        MAP + REDUCE,
        MAP + REDUCE + "from operator import add as combine\n",
        MAP + REDUCE + "combine = reduce\n",
        MAP + REDUCE + "combine = lambda a, b: a + b\n",
        "from elsewhere import *\n",
        "from elsewhere import map, reduce\n",
        REDUCE + "def map_lines(lines):\n    return dict.fromkeys(lines, 1)\n",
        REDUCE + "def map(line, suffix='x'):\n    return [(line + suffix, 1)]\n",
        "try:\n    from fast import map\nexcept ImportError:\n    from slow import map\n" + REDUCE,
    ],
)
def test_job_file_that_may_work_is_taken(source: str) -> None:
    check_source(source.encode(), "job.py")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"job.py.* is no Python"):
        check_source(b"\xff\x00map", "job.py")


def test_a_generator_combine_takes_groups_and_any_other_folds() -> None:
    folding = load((MAP + REDUCE + "from operator import add as combine\n").encode(), "job.py")
    assert folding.combine_fold is not None
    assert folding.combine_group is None
    grouping = load((MAP + REDUCE + "combine = reduce\n").encode(), "job.py")
    assert grouping.combine_group is grouping.reduce
    assert grouping.combine_fold is None


def test_loading_refuses_what_only_running_shows() -> None:
    with pytest.raises(InvalidInput, match="reduce is a int, no function"):
        load((MAP + "reduce = 3\n").encode(), "job.py")
    with pytest.raises(InvalidInput, match="needs reduce"):
        load(b"from os import *\n", "job.py")


def spec(**changes: object) -> JobSpec:
    fields: dict[str, object] = {"name": "n", "user": "u", "inputs": ("/i",), "output": "/o"}
    return JobSpec(**{**fields, "file_name": "j.py", "job_file": (MAP + REDUCE).encode(), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"inputs": ("in",)}, "input 'in' is not absolute; begin it with /"),
        ({"output": "/o/"}, "output '/o/' is not written plainly; leave out empty parts"),
        ({"mapper": "cat"}, "name either a job file, or a --mapper and a --reducer"),
        ({"file_name": "", "mapper": "cat"}, "--reducer is missing; commands come in pairs"),
        ({"file_name": "", "mapper": "cat", "reducer": "cat", "files": {"stderr": b""}}, "a job cannot bring a file named 'stderr'; rename it"),
        ({"files": {"../x": b""}}, "a job cannot bring a file named '../x'; rename it"),
        ({"files": {"j.py": b""}}, "--file j.py has the job file's own name; rename it"),
        ({"files": {"big": bytes(600_000)}}, "job file and --file together have 600085 bytes, 524288 at most; put data into inputs"),
    ],
)  # fmt: skip
def test_bad_job_is_refused_in_one_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_spec(spec(**changes))
    assert str(caught.value) == sentence


def test_good_jobs_are_taken() -> None:
    check_spec(spec())
    check_spec(spec(file_name="", job_file=b"", mapper="./m", reducer="cat", files={"m": b"#!/bin/sh\n"}))
