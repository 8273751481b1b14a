"""Every pair of states of every lifecycle of the master: allowed or `InvalidTransition`."""

from collections.abc import Mapping
from enum import Enum

import pytest

from master.registry import AdmittedSlave
from master.state import (
    FRAMEWORK_CHANGES,
    SLAVE_CHANGES,
    TASK_CHANGES,
    FrameworkEntry,
    FrameworkState,
    SlaveEntry,
    SlaveState,
    TaskEntry,
)
from meseta.errors import InvalidTransition
from meseta.ids import FrameworkId, Principal, SlaveId, TaskId
from meseta.model import TaskState
from tests.unit.master_builders import SMALL, framework_info, slave_info


def _slave(state: SlaveState) -> SlaveEntry:
    return SlaveEntry(SlaveId("s"), AdmittedSlave(slave_info=slave_info(), registered_unix_s=0), state)


def _framework(state: FrameworkState) -> FrameworkEntry:
    return FrameworkEntry(FrameworkId("f"), framework_info(), Principal("p"), state)


def _task(state: TaskState) -> TaskEntry:
    task = TaskEntry(
        TaskId("t"),
        _framework(FrameworkState.ACTIVE),
        _slave(SlaveState.ACTIVE),
        SMALL,
        role="*",
        name="",
        user="u",
        executor_id=None,
    )
    task.state = state
    return task


def _check_all_pairs(table: Mapping[Enum, frozenset[Enum]], states: type[Enum], make: object) -> None:
    assert set(table) == set(states)
    for current in states:
        for wanted in states:
            entry = make(current)  # type: ignore[operator]
            if wanted in table[current]:
                entry.change(wanted)
                assert entry.state is wanted
            else:
                with pytest.raises(InvalidTransition):
                    entry.change(wanted)
                assert entry.state is current


def test_slave_changes_state_by_its_table_only() -> None:
    _check_all_pairs(SLAVE_CHANGES, SlaveState, _slave)  # type: ignore[arg-type]


def test_framework_changes_state_by_its_table_only() -> None:
    _check_all_pairs(FRAMEWORK_CHANGES, FrameworkState, _framework)  # type: ignore[arg-type]


def test_task_changes_state_by_its_table_only() -> None:
    _check_all_pairs(TASK_CHANGES, TaskState, _task)  # type: ignore[arg-type]


def test_no_end_is_followed_by_anything() -> None:
    for state in TaskState:
        assert not (state.is_terminal and TASK_CHANGES[state])
    assert not FRAMEWORK_CHANGES[FrameworkState.REMOVED]


def test_forbidden_change_names_the_past() -> None:
    task = _task(TaskState.STAGING)
    task.change(TaskState.RUNNING)
    task.change(TaskState.FINISHED)
    with pytest.raises(InvalidTransition, match="TASK_FINISHED to TASK_RUNNING after TASK_STAGING, TASK_RUNNING"):
        task.change(TaskState.RUNNING)
