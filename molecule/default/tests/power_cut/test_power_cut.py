# SPDX-License-Identifier: Apache-2.0
"""One node lost its power and came back; nothing of either side is lost."""

from __future__ import annotations

from typing import Any

from testinfra.host import Host


def test_both_sides_changes_are_there(everywhere: Any) -> None:
    for name, node in everywhere("look.py").items():
        assert node["markers"]["molecule-before-the-cut"] == "before the cut\n", name
        assert node["markers"]["molecule-while-down"] == "while it was down\n", name


def test_the_node_was_restored_from_its_own_replica(nodes: dict[str, Host]) -> None:
    text = nodes["pve2"].run("journalctl -b -u pveguard-state.service --no-pager -o cat").stdout
    assert text.count("restored root version") == 1
    assert "after a clean stop" not in text


def test_no_unit_was_ordered_in_a_cycle(nodes: dict[str, Host]) -> None:
    for name, host in nodes.items():
        assert "ordering cycle" not in host.run("journalctl -b --no-pager -o cat _PID=1").stdout, name
