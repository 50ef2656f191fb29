"""Whose lock may be taken over without asking: only that of a run on this very controller that has certainly ended."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import pytest

from tests.loading import load_filters


@pytest.fixture
def filters() -> ModuleType:
    return load_filters("playbooks")


@pytest.fixture
def mine(filters: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(
        filters, "_machine", lambda: {"name": "desk", "id": "m1", "boot": "b1", "pid_namespace": "pid:[1]"}
    )
    holder = filters.run_holder("/x")
    assert isinstance(holder, dict)
    return holder


def test_a_running_process_is_not_gone(filters: ModuleType, mine: dict[str, Any]) -> None:
    assert mine["pid"] == os.getpid()
    assert not filters.holder_is_gone(mine)


def test_an_ended_process_is_gone(filters: ModuleType, mine: dict[str, Any]) -> None:
    assert filters.holder_is_gone({**mine, "pid": 2**22 + 1})
    assert filters.holder_is_gone({**mine, "started": "1"})  # the number was given to another process


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"id": "m2"}, False),  # another machine of the same name
        ({"pid_namespace": "pid:[2]"}, False),  # another container on this machine
        ({"boot": "b0"}, True),  # this machine, before its last boot
        ({"boot": "b0", "name": "lap"}, False),  # a copy of this machine's image
        ({"id": ""}, False),
    ],
)
def test_only_this_very_controller_counts(
    filters: ModuleType, mine: dict[str, Any], change: dict[str, str], gone: bool
) -> None:
    holder = {**mine, "pid": 2**22 + 1, "controller": {**mine["controller"], **change}}
    assert filters.holder_is_gone(holder) is gone


def test_a_holder_of_an_unknown_form_is_taken_for_alive(filters: ModuleType) -> None:
    assert not filters.holder_is_gone({"run_id": "unknown", "who": "a run that left no name"})
