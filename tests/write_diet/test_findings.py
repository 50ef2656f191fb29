# SPDX-License-Identifier: Apache-2.0
"""What is found around the write diet, whatever is switched on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.findings import PROBLEM, WARNING
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.diet import diet_findings, measures, surroundings

from tests.findings import finding
from tests.write_diet.node import Node

Make = Callable[..., Node]


def found(node: Node) -> list[Any]:
    facts = {"write_diet": measures.collect(node.run, node.root)}
    assert diet_findings.of_report(facts) == diet_findings.of_node(facts, {})
    return diet_findings.of_node(facts, {})


def fill(monkeypatch: pytest.MonkeyPatch, percents: dict[str, int]) -> None:
    def statvfs(path: Any) -> Any:
        percent = next((value for end, value in percents.items() if str(path).endswith(end)), None)
        if percent is None:
            raise OSError("not mounted")
        return SimpleNamespace(f_blocks=1000, f_bavail=1000 - percent * 10)

    monkeypatch.setattr(surroundings.os, "statvfs", statvfs)


@pytest.mark.parametrize(("percent", "severity"), [(41, WARNING), (79, WARNING), (80, PROBLEM), (100, PROBLEM)])
def test_logs_in_ram_are_told_with_their_fill(
    make: Make, monkeypatch: pytest.MonkeyPatch, percent: int, severity: str
) -> None:
    node = make()
    assert found(node) == []
    node.mounts.append("77 29 0:50 / /var/log rw,nosuid,nodev,noexec - tmpfs log2ram rw,size=262144k")
    node.show_mounts()
    fill(monkeypatch, {"/var/log": percent})
    told = finding(found(node), "write-diet-logs-in-ram")
    assert told.severity == severity and f"/var/log (log2ram, {percent} % full)" in told.text
    assert "systemctl disable --now log2ram" in told.sentence


def test_the_fullest_of_several_counts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    node = make()
    node.mounts += [
        "77 29 0:50 / /var/log/pveproxy rw - tmpfs tmpfs rw",
        "78 29 252:1 / /var/log/pve rw - ext4 /dev/zram1 rw",
        "79 29 8:7 / /var/log/journal rw - ext4 /dev/sda7 rw",
        "80 29 0:51 / /var/logs rw - tmpfs tmpfs rw",
    ]
    node.show_mounts()
    fill(monkeypatch, {"/pveproxy": 5, "/log/pve": 95})
    told = finding(found(node), "write-diet-logs-in-ram")
    assert told.severity == PROBLEM
    assert told.text == "logs are in RAM: /var/log/pve (/dev/zram1, 95 % full), /var/log/pveproxy (a tmpfs, 5 % full)"
    fill(monkeypatch, {})
    assert "fill not known" in finding(found(node), "write-diet-logs-in-ram").text


@pytest.mark.parametrize("in_memory", [False, True])
def test_zfs_that_does_not_sync(make: Make, in_memory: bool) -> None:
    """Below the database, or below the place that it is saved to while it is in RAM."""
    node = make()
    (node.root / "var/lib/pve-cluster").mkdir()
    (node.root / "var/lib/pveguard/state").mkdir(parents=True)
    node.mounts = ["29 1 0:30 / / rw,relatime - zfs rpool/ROOT/pve-1 rw"]
    if in_memory:
        node.mounts.append("90 29 0:60 / /var/lib/pve-cluster rw - tmpfs pveguard-state rw")
    node.show_mounts()
    said = ["standard"]
    node.hook = lambda argv: Result(0, f"{said[0]}\n") if argv[0] == "zfs" else None
    assert found(node) == []
    said[0] = "disabled"
    told = finding(found(node), "write-diet-sync-disabled")
    assert ("/var/lib/pveguard/state" if in_memory else "/var/lib/pve-cluster") in told.text
    assert ["zfs", "get", "-H", "-o", "value", "sync", "rpool/ROOT/pve-1"] in node.calls

    def missing(argv: list[str]) -> Result | None:
        if argv[0] == "zfs":
            raise CommandMissing("zfs")
        return None

    node.hook = missing
    assert found(node) == []


@pytest.mark.parametrize(
    ("flags", "options", "in_memory", "told"),
    [
        (0, "rw,relatime", False, True),
        (surroundings._NOCOW | 0x10, "rw,relatime", False, False),
        (0, "rw,relatime,nodatacow", False, False),
        (0, "rw,relatime", True, False),
        (None, "rw,relatime", False, False),
    ],
)
def test_a_database_on_btrfs(
    make: Make, monkeypatch: pytest.MonkeyPatch, flags: int | None, options: str, in_memory: bool, told: bool
) -> None:
    node = make()
    (node.root / "var/lib/pve-cluster").mkdir()
    node.mounts = [f"29 1 0:31 /@ / {options} - btrfs /dev/sda3 rw,space_cache=v2"]
    if in_memory:
        node.mounts.append("90 29 0:60 / /var/lib/pve-cluster rw - tmpfs pveguard-state rw")
    node.show_mounts()
    monkeypatch.setattr(surroundings, "_flags", lambda path: flags)
    if told:
        each = finding(found(node), "write-diet-database-on-btrfs")
        assert "130 KiB a transaction" in each.sentence and "ram_state_enabled: true" in each.code
    else:
        assert found(node) == []


def test_flags_of_a_real_file(tmp_path: Path) -> None:
    """As lsattr shows them; where the file system has none, nothing is known."""
    file = tmp_path / "config.db"
    file.write_bytes(b"x")
    shown = subprocess.run(["lsattr", file], capture_output=True, text=True)
    flags = surroundings._flags(file)
    assert (flags is None) == (shown.returncode != 0)
    if flags is not None:
        assert bool(flags & surroundings._NOCOW) == ("C" in shown.stdout.split()[0])
    assert surroundings._flags(tmp_path / "nothing") is None and os.path.getsize(file) == 1
