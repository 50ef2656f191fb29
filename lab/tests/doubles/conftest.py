# SPDX-License-Identifier: Apache-2.0
"""Fixtures: nodes in namespaces, a tree in memory, a cluster with real corosync."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from lab.tests.doubles import harness

sys.path.insert(0, str(harness.PACKAGE / "root/usr/lib/pve-cluster-lab"))


@cache
def why_not() -> str | None:
    return harness.why_not()


@pytest.fixture
def new_node() -> Iterator[Callable[..., harness.Node]]:
    """Makes nodes that end with the test."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    nodes: list[harness.Node] = []

    def make(*args: object, **kwargs: object) -> harness.Node:
        nodes.append(harness.Node(*args, **kwargs))  # type: ignore[arg-type]
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def empty_node(new_node: Callable[..., harness.Node]) -> harness.Node:
    """A node on which no daemon was started yet."""
    return new_node()


@pytest.fixture
def node(empty_node: harness.Node) -> harness.Node:
    """A stand-alone node with a running daemon and an empty file system."""
    empty_node.start()
    return empty_node
