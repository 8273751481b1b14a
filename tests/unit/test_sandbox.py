"""Sandboxes on a real disk."""

from pathlib import Path

import pytest

from meseta.errors import IsolationError
from meseta.ids import ContainerId, FrameworkId
from slave.sandbox import Sandboxes


@pytest.mark.parametrize("user", ["nobody-of-that-name", "root\0", "", "\n"])
def test_user_that_cannot_be_is_refused_in_words(tmp_path: Path, user: str) -> None:
    with pytest.raises(IsolationError, match="this machine has no user"):
        Sandboxes(tmp_path).make(FrameworkId("f"), ContainerId("c"), str(tmp_path / "t.c"), user)
