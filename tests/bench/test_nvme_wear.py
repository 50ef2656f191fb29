# SPDX-License-Identifier: Apache-2.0
"""The bench of the emulated NVMe, without a virtual machine: what it asks, how it judges, what it leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.loading import load_file

MIB = 1 << 20


@pytest.fixture
def bench() -> ModuleType:
    return load_file("bench/nvme_wear.py")


class Node:
    """A lab of one node: the counter of its drive rises by what dd is told to write, and by ``noise`` at each sync."""

    def __init__(self, nvme: bool = True, noise: int = 0, share: float = 1.0) -> None:
        self.name, self.nvme, self.noise, self.share = "wear", nvme, noise, share
        self.written = 10 * MIB
        self.scripts: list[str] = []
        self.console = self

    def select(self, nodes: list[str], *, running: bool) -> list[Node]:
        return [self]

    def machine(self, node: str) -> Node:
        return self

    def run(self, script: str, seconds: float) -> tuple[int, str]:
        self.scripts.append(script)
        if "dd " in script:
            self.written += int(int(script.partition("count=")[2].split()[0]) * MIB * self.share)
        self.written += self.noise
        return 0, f"1 2 3 4 5 6 {self.written // 512} 8\n"

    def wear(self, *_: Any) -> dict[str, Any]:
        # As QEMU: rounded up to whole units.
        units = -(-(self.written) // 512_000)
        return {
            "disk": "nvme0n1", "model": "QEMU NVMe Ctrl", "tool": "smartctl", "notes": [],
            "written_from": "NVMe data_units_written", "written_bytes": units * 512_000,
        }  # fmt: skip


def test_a_drive_that_counts_what_was_written(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(noise=70_000)
    monkeypatch.setattr(bench, "wear", node.wear)
    found = bench.measure(node, "pve1", 200 * MIB)
    assert found["good"], found
    assert found["file_bytes"] <= found["module_bytes"] + bench.UNIT_BYTES
    assert node.scripts[-1] == "rm -f /var/lib/pveguard-nvme-wear"


def test_a_figure_that_does_not_move_is_found(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    still = node.wear()
    monkeypatch.setattr(bench, "wear", lambda *_: still)
    found = bench.measure(node, "pve1", 200 * MIB)
    assert not found["good"] and "are missing" in found["reason"]


@pytest.mark.parametrize(
    ("module", "good"),
    [(200 * MIB, True), (200 * MIB - 512_000, True), (200 * MIB - 512_001, False), (201 * MIB + 512_001, False)],
)
def test_bounds(bench: ModuleType, module: int, good: bool) -> None:
    assert bench.judge(200 * MIB, module, 201 * MIB)[0] is good


def test_a_node_without_nvme_is_refused_and_untouched(bench: ModuleType) -> None:
    node = Node(nvme=False)
    with pytest.raises(bench.CannotTest, match="--nvme pve1"):
        bench.measure(node, "pve1", MIB)
    assert node.scripts == []


def test_the_file_goes_also_when_the_module_fails(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    node, calls = Node(), [0]

    def wear(*_: Any) -> dict[str, Any]:
        calls[0] += 1
        if calls[0] == 3:
            raise bench.CannotTest("gone")
        return node.wear()

    monkeypatch.setattr(bench, "wear", wear)
    with pytest.raises(bench.CannotTest, match="gone"):
        bench.measure(node, "pve1", MIB)
    assert node.scripts[-1].startswith("rm -f")


@pytest.mark.parametrize("result", [{}, {"disks": [], "notes": ["why"]}])
def test_no_disk_is_no_figure(bench: ModuleType, result: dict[str, Any]) -> None:
    with pytest.raises(bench.CannotTest, match="; ".join(result.get("notes", ["no disk behind"]))):
        bench.disk_of(result)


def test_the_first_disk_counts(bench: ModuleType) -> None:
    assert bench.disk_of({"disks": [{"disk": "nvme0n1"}, {"disk": "sda"}]}) == {"disk": "nvme0n1"}


@pytest.mark.slow
def test_the_module_by_ansible(bench: ModuleType, tmp_path: Path) -> None:
    """The command as it is run against the lab, on this machine; which disk there is does not matter."""
    inventory = tmp_path / "hosts.yml"
    variables = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_user": ""}
    inventory.write_text(json.dumps({"all": {"hosts": {"here": variables}}}))
    try:
        found = bench.wear("here", inventory, {})
    except bench.CannotTest as error:
        assert "no disk behind /var/lib" in str(error)
    else:
        assert found["disk"] and "/var/lib" in found["paths"]
