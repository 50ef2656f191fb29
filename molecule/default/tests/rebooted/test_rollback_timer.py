# SPDX-License-Identifier: Apache-2.0
"""A change that was armed before all nodes went off, by reboot.yml: systemd itself has undone it at boot."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def found(everywhere: Any) -> dict[str, Any]:
    seen = everywhere("rollback.py", "look")
    assert isinstance(seen, dict)
    return seen


def test_what_nobody_confirmed_was_undone_once_and_before_ssh_was_there(found: dict[str, Any]) -> None:
    for name, node in found.items():
        boot = node["boot"]
        assert boot["state"] == "rolled_back" and len(boot["undone_at"]) == 1, f"{name}: {boot}"
        assert boot["undone_at"][0] <= boot["ssh_at"], f"{name}: {boot}"


def test_the_timer_undoes_and_a_confirmation_keeps(found: dict[str, Any]) -> None:
    for name, node in found.items():
        assert node["states"] == {"molecule-time": "rolled_back", "molecule-kept": "confirmed"}, name
        assert node["done"] == ["molecule-undone-molecule-time"], name


def test_no_unit_of_it_is_left(found: dict[str, Any]) -> None:
    assert {name: node["left"] for name, node in found.items()} == dict.fromkeys(found, [])
