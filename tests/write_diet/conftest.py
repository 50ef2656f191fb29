# SPDX-License-Identifier: Apache-2.0
"""Nodes of these tests, in a folder with a short name: a socket's path has at most 107 bytes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.write_diet.node import Node


@pytest.fixture
def make() -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def node(kind: str = "sysv") -> Node:
        made.append(Node(Path(tempfile.mkdtemp(prefix="diet-")), kind))
        return made[-1]

    yield node
    for each in made:
        if each.rrd is not None:
            each.kill_rrdcached()
        shutil.rmtree(each.root)
