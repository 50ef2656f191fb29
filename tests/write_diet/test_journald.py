# SPDX-License-Identifier: Apache-2.0
"""The journal is bounded where it is on disk, and never moved."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.diet import journald, measures, write_diet

from tests.write_diet.node import Node, options

Make = Callable[..., Node]
RESTART = ["systemctl", "restart", "systemd-journald.service"]


def enable(node: Node, check: bool = False, **more: Any) -> write_diet.Result:
    return write_diet.apply({"journald": options(**more)}, check, node.run, node.root)


def facts(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = measures.collect(node.run, node.root)["journald"]
    return found


def test_a_journal_on_disk_is_bounded_and_stays_there(make: Make) -> None:
    node = make()
    before = node.picture()
    assert enable(node, True).changed and node.picture() == before and node.changing() == []
    assert enable(node, max_use_mib=200).done == ["systemd-journald restarted"]
    assert node.changing() == [["journalctl", "--sync"], RESTART]
    assert node.read(journald.DROP_IN).splitlines()[2:] == [
        "[Journal]",
        "Storage=persistent",
        "SystemMaxUse=200M",
        "SyncIntervalSec=900s",
        "RateLimitIntervalSec=30s",
        "RateLimitBurst=5000",
    ]
    assert not enable(node, max_use_mib=200).changed
    node.calls.clear()
    assert write_diet.revert(run=node.run, root=node.root).changed
    assert node.picture() == before and RESTART in node.calls and not node.exists("/etc/systemd/journald.conf.d")
    assert not write_diet.revert(run=node.run, root=node.root).changed


@pytest.mark.parametrize(
    ("conf", "there"), [("Storage=volatile", True), ("Storage=none", True), ("Storage=auto", False), ("", False)]
)
def test_a_journal_that_is_not_on_disk_is_left_alone(make: Make, conf: str, there: bool) -> None:
    node = make()
    node.write("/etc/systemd/journald.conf", f"[Journal]\n#Storage=persistent\n{conf}\n")
    if not there:
        (node.root / "var/log/journal").rmdir()
    assert not facts(node)["persistent"] and not enable(node).changed and node.changing() == []


@pytest.mark.parametrize("mount", ["tmpfs log2ram rw,size=131072k", "ext4 /dev/zram1 rw"])
def test_a_journal_in_logs_that_are_in_ram_is_left_alone(make: Make, mount: str) -> None:
    """A bound of 512 MiB would let it fill them; journald's own is a tenth."""
    node = make()
    node.mounts.append(f"77 29 0:50 / /var/log rw - {mount}")
    node.show_mounts()
    assert not facts(node)["persistent"] and not enable(node).changed and node.changing() == []


def test_on_a_small_file_system_the_bound_is_not_raised(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """journald's own bound is a tenth of it."""
    node = make()
    monkeypatch.setattr(journald, "tenth_mib", lambda place: 200)
    enable(node)
    assert "SystemMaxUse=200M\n" in node.read(journald.DROP_IN) and not enable(node).changed
    monkeypatch.undo()
    for blocks, wanted in ((1000000, 256), (1040000, 256), (2000, None)):
        monkeypatch.setattr(journald.os, "statvfs", lambda place, blocks=blocks: SimpleNamespace(f_blocks=blocks, f_frsize=4096))
        assert journald.tenth_mib(node.root) == wanted
    monkeypatch.undo()
    assert journald.tenth_mib(node.root / "nothing") is None


def test_what_somebody_has_set_stays_as_it_is(make: Make) -> None:
    node = make()
    node.write("/etc/systemd/journald.conf", "[Journal]\nSystemMaxUse=100M\nRateLimitBurst=\n#SyncIntervalSec=1m\n")
    node.write("/etc/systemd/journald.conf.d/10-mine.conf", "[Journal]\nRateLimitIntervalSec = 0\n")
    node.write("/usr/lib/systemd/journald.conf.d/syslog.conf", "[Journal]\nForwardToSyslog=yes\nSystemMaxUse=1G\n")
    assert facts(node)["theirs"] == {"SystemMaxUse": "100M", "RateLimitIntervalSec": "0"}
    enable(node)
    written = node.read(journald.DROP_IN)
    assert "SystemMaxUse" not in written and "RateLimitInterval" not in written and "SyncIntervalSec=900s" in written
    assert not enable(node).changed
    # Taken away again it is pveguard's to set.
    node.write("/etc/systemd/journald.conf", "")
    assert enable(node).changed and "SystemMaxUse=512M" in node.read(journald.DROP_IN)


def test_a_journald_that_does_not_come_back_is_told_and_put_back(make: Make) -> None:
    node = make()
    before = node.picture()
    failed: list[str] = []

    def fail_once(argv: list[str]) -> Result | None:
        if argv == RESTART and not failed:
            failed.append("once")
            return Result(1, "", "start request repeated too quickly")
        return None

    node.hook = fail_once
    with pytest.raises(PveguardError, match="journald: systemctl restart.*repeated too quickly.*taken back"):
        enable(node)
    assert node.picture() == before and node.calls.count(RESTART) == 2


def test_a_host_without_journald(make: Make) -> None:
    node = make()
    del node.units["systemd-journald.service"]
    assert not enable(node).changed


class Killed(BaseException):
    """The run was ended in the middle."""


@pytest.mark.parametrize("by_switch", [True, False])
def test_a_run_that_was_ended_before_the_restart_is_finished_by_the_next(make: Make, by_switch: bool) -> None:
    """On the way there, and on the way back."""
    node = make()
    before = node.picture()

    def end(argv: list[str]) -> Result | None:
        if argv == RESTART:
            raise Killed
        return None

    node.hook = end
    with pytest.raises(Killed):
        enable(node)
    node.hook = lambda argv: None
    assert enable(node, True).todo == ["finish the measure journald, which was interrupted"]
    assert enable(node).done == ["systemd-journald restarted"] and not enable(node).changed
    node.hook = end
    with pytest.raises(Killed):
        write_diet.revert(run=node.run, root=node.root)
    node.hook = lambda argv: None
    assert node.picture() == before
    # By the switch as well as by a revert.
    off = {"journald": {"enabled": False}}
    assert measures.todo("journald", off["journald"], facts(node)) == ["take the measure journald back"]
    if by_switch:
        assert write_diet.apply(off, False, node.run, node.root).done == ["systemd-journald restarted"]
    else:
        assert write_diet.revert(run=node.run, root=node.root).done == ["systemd-journald restarted"]
    assert not write_diet.apply(off, False, node.run, node.root).changed
    assert not write_diet.revert(run=node.run, root=node.root).changed
