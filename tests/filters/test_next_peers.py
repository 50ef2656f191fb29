"""Whose tree is compared after a switch-over: all members up to the one that may be switched next."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tests.loading import load_filters


@pytest.fixture
def filters() -> ModuleType:
    return load_filters("report")


def cluster(**states: str) -> dict[str, Any]:
    return {
        name: {
            "pveguard_node": {
                "node": {
                    "corosync": {"cluster_name": "one", "node_id": number},
                    "ram_state": {"state": state},
                }
            }
        }
        for number, (name, state) in enumerate(states.items(), 1)
    }


@pytest.mark.parametrize(
    ("states", "host", "asked"),
    [
        ({"a": "absent", "b": "absent", "c": "absent"}, "a", ["b"]),
        ({"a": "absent", "b": "absent", "c": "absent"}, "c", ["a"]),
        # The one in the middle was the first to be protected, days ago.
        ({"a": "absent", "b": "enabled", "c": "absent"}, "a", ["b", "c"]),
        ({"a": "enabled", "b": "enabled", "c": "absent"}, "c", ["a", "b"]),
        ({"a": "absent"}, "a", []),
    ],
)
def test_on_the_way_to_ram(filters: ModuleType, states: dict[str, str], host: str, asked: list[str]) -> None:
    assert filters.next_peers(cluster(**states), list(states), host, ["enabled"]) == asked


def test_on_the_way_back(filters: ModuleType) -> None:
    hostvars = cluster(a="enabled", b="absent", c="enabled", d="enabled")
    assert filters.next_peers(hostvars, list("abcd"), "a", ["absent", "disabled"]) == ["b", "c"]


def test_a_node_that_is_never_switched_is_passed(filters: ModuleType) -> None:
    hostvars = cluster(a="absent", b="absent", c="absent")
    hostvars["b"]["ram_state_enabled"] = False
    assert filters.next_peers(hostvars, list("abc"), "a", ["enabled"]) == ["b", "c"]


@pytest.mark.parametrize("value", [False, "false", "no", "off", "0", "No", " off "])
def test_a_member_that_stays_on_disk_is_passed_over_however_that_was_said(filters: ModuleType, value: Any) -> None:
    hostvars = cluster(a="absent", b="absent", c="absent")
    hostvars["b"]["ram_state_enabled"] = value
    assert filters.next_peers(hostvars, list("abc"), "a", ["enabled"]) == ["b", "c"]


@pytest.mark.parametrize("value", [True, "true", "yes", "on", "1", 1])
def test_one_that_is_to_be_moved_is_the_next(filters: ModuleType, value: Any) -> None:
    hostvars = cluster(a="absent", b="absent", c="absent")
    hostvars["b"]["ram_state_enabled"] = value
    assert filters.next_peers(hostvars, list("abc"), "a", ["enabled"]) == ["b"]
