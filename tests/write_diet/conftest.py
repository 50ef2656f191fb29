# SPDX-License-Identifier: Apache-2.0
"""Nodes of these tests, in a folder with a short name: a socket's path has at most 107 bytes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.diet import journald

from tests.write_diet.node import Node


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []
    # Of the node's disk, not of this machine's.
    monkeypatch.setattr(journald, "tenth_mib", lambda place: 4096)

    def node(kind: str = "sysv") -> Node:
        made.append(Node(Path(tempfile.mkdtemp(prefix="diet-")), kind))
        return made[-1]

    yield node
    for each in made:
        if each.rrd is not None:
            each.kill_rrdcached()
        shutil.rmtree(each.root)
