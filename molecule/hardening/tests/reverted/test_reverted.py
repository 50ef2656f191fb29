# SPDX-License-Identifier: Apache-2.0
"""Taken back: every file of /etc is what it was, byte for byte."""

from __future__ import annotations

from collections.abc import Callable

from hardening_nodes import Nodes, Seen, differences

Harden = Callable[..., tuple[int, dict[str, int], str]]


def test_every_file_is_as_it_was(nodes: Nodes, before: Seen, harden: Harden) -> None:
    code, changed, _ = harden(tasks="revert.yml")
    assert code == 0 and all(changed.values())
    for node, seen in nodes.look().items():
        assert differences(before[node]["files"], seen["files"]) == [] and not seen["units"], node
    assert nodes.locked_out() == []
