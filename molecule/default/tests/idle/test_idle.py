# SPDX-License-Identifier: Apache-2.0
"""A minute in which nobody asks for anything; `make campaign` waits for ten on each profile."""

from __future__ import annotations

from typing import Any

import pytest

IDLE_SECONDS = 60
#: What remains is pvescheduler: two locks a minute on each node, a mkdir and a rmdir each, seen by all nodes.
TRANSACTIONS_PER_NODE_AND_MINUTE = 4


@pytest.fixture(scope="module")
def look(everywhere: Any) -> dict[str, Any]:
    found = everywhere("look.py", str(IDLE_SECONDS))
    assert isinstance(found, dict)
    return found


def test_nothing_is_written_to_the_disk(look: dict[str, Any]) -> None:
    assert {name: node["idle"]["sectors"] for name, node in look.items()} == dict.fromkeys(look, 0)


def test_there_are_few_transactions(look: dict[str, Any]) -> None:
    # A window of one minute may hold the locks of two.
    for name, node in look.items():
        most = (node["idle"]["seconds"] // 60 + 1) * TRANSACTIONS_PER_NODE_AND_MINUTE * len(look)
        assert node["idle"]["transactions"] <= most, f"{name}: {node['idle']}"
