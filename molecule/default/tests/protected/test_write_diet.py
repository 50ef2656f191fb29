# SPDX-License-Identifier: Apache-2.0
"""The other writers are on a diet, and the statistics of all guests are stored nevertheless."""

from __future__ import annotations

from typing import Any

import pytest

GUESTS, STORAGES = 20, 2


@pytest.fixture(scope="module")
def look(everywhere: Any) -> dict[str, Any]:
    found = everywhere("statistics.py")
    assert isinstance(found, dict)
    return found


def test_rrd_files_are_written_hourly_and_everything_at_a_stop(look: dict[str, Any]) -> None:
    for name, node in look.items():
        words = node["arguments"]
        found = {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("-")}
        assert (found.get("-w"), found.get("-z"), found.get("-f")) == ("3600", "600", "7200"), f"{name}: {words}"
        assert "-F" in words, f"{name}: {words}"


def test_its_journal_is_in_ram_and_bounded(look: dict[str, Any]) -> None:
    for name, node in look.items():
        assert node["journal"] is not None and node["journal"]["type"] == "tmpfs", name
        assert {"size=131072k", "nosuid", "nodev", "noexec"} <= set(node["journal"]["options"].split(",")), name


def test_every_node_stores_all(look: dict[str, Any]) -> None:
    for name, node in look.items():
        assert node["answers"], name
        kinds = [path.partition("/")[0] for path in node["files"]]
        counted = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        assert counted == {
            "pve-node-9.0": len(look), "pve-storage-9.0": STORAGES * len(look), "pve-vm-9.0": GUESTS,
        }, f"{name}: {counted}"  # fmt: skip


def test_no_service_failed(look: dict[str, Any]) -> None:
    assert {name: node["failed"] for name, node in look.items()} == {name: [] for name in look}
