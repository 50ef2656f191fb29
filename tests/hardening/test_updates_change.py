# SPDX-License-Identifier: Apache-2.0
"""Unattended upgrades: Debian's security origin alone by the real apt-config, and turns that no two members share."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base import node_name
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.hardening import hardening_changes, updates_change
from ansible.module_utils.pveguard.hardening.updates_change import CONF, COROSYNC, DROP_IN, ORIGIN, calendar

from tests.hardening.changing import ChangingNode, changing

pytestmark = pytest.mark.skipif(shutil.which("apt-config") is None, reason="needs apt")


def corosync(*ids: int) -> str:
    nodes = "".join(
        f"  node {{\n    name: pve{number}\n    nodeid: {each}\n    ring0_addr: 10.0.0.1{number}\n  }}\n"
        for number, each in enumerate(ids, 1)
    )
    return f"totem {{\n  version: 2\n  cluster_name: c\n  config_version: 3\n}}\nnodelist {{\n{nodes}}}\n"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChangingNode:
    monkeypatch.setattr(node_name, "own", lambda: "pve2")
    node = changing(tmp_path / "node")
    node.has_unattended()
    node.write(COROSYNC, corosync(1, 2, 3))
    return node


def origins(node: ChangingNode) -> list[str]:
    return re.findall(
        r'(?m)^Unattended-Upgrade::(?:Origins-Pattern|Allowed-Origins):: "(.*)";$', node.apt_config([]).stdout
    )


def test_check_run_second_run_and_back(node: ChangingNode) -> None:
    before = node.others()
    planned = node.apply("updates", check=True)
    assert planned.changed and node.others() == before and not node.kept()
    assert len(origins(node)) == 2
    assert node.apply("updates").todo == planned.todo
    said = node.apt_config([]).stdout
    assert origins(node) == [ORIGIN]
    assert (
        'Unattended-Upgrade::Automatic-Reboot "false";' in said
        and 'APT::Periodic::Unattended-Upgrade "1";' in said
    )
    never = re.findall(r'(?m)^Unattended-Upgrade::Package-Blacklist:: "(.*)";$', said)
    assert "mine$" in never, "what an operator has named stays"
    # unattended-upgrades matches them at the beginning of a name.
    names = (
        "pve-manager",
        "proxmox-kernel-6.14",
        "linux-image-amd64",
        "corosync",
        "libknet1t64",
        "lxc-pve",
        "openvswitch-switch",
    )
    assert all(any(re.match(each, name) for each in never) for name in names)
    assert not any(
        re.match(each, name) for each in never for name in ("openssl", "libssl3", "sudo", "libpam0g")
    )
    assert node.restarts == ["apt-daily-upgrade.timer"]
    assert not node.apply("updates").changed and node.restarts == ["apt-daily-upgrade.timer"]
    assert node.revert().changed and node.others() == before and not node.kept() and not node.revert().changed
    assert len(origins(node)) == 2


def test_no_two_members_share_a_turn_and_systemd_takes_each() -> None:
    for highest, minutes in (
        (3, 30),
        (48, 30),
        (49, 30),
        (336, 30),
        (96, 15),
        (672, 15),
        (7, 240),
        (42, 240),
    ):
        turns = [calendar(each, highest, minutes) for each in range(1, highest + 1)]
        assert len(set(turns)) == highest
        weekly = highest > 1440 // minutes
        assert all(turn.startswith("*") is not weekly for turn in turns)
    assert calendar(1, 3, 30) == "*-*-* 01:00:00 UTC" and calendar(3, 3, 30) == "*-*-* 02:00:00 UTC"
    assert calendar(48, 48, 30) == "*-*-* 00:30:00 UTC"
    assert (
        calendar(49, 49, 30) == "Tue *-*-* 01:00:00 UTC" and calendar(1, 49, 30) == "Mon *-*-* 01:00:00 UTC"
    )
    with pytest.raises(PveguardError, match="node_hardening_updates_slot_minutes"):
        calendar(1, 337, 30)
    if shutil.which("systemd-analyze"):
        turns = [calendar(1, 3, 30), calendar(48, 48, 30), calendar(336, 336, 30)]
        done = subprocess.run(["systemd-analyze", "calendar", *turns], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_drop_in_has_the_last_word_beside_that_of_the_write_diet(node: ChangingNode) -> None:
    node.write(
        "/etc/systemd/system/apt-daily-upgrade.timer.d/pveguard.conf", "[Timer]\nRandomizedDelaySec=43200\n"
    )
    node.apply("updates")
    assert sorted(["pveguard.conf", DROP_IN.rpartition("/")[2]])[-1] == DROP_IN.rpartition("/")[2]
    lines = node.text(DROP_IN).splitlines()
    assert lines.index("OnCalendar=") + 1 == lines.index("OnCalendar=*-*-* 01:30:00 UTC")
    assert "RandomizedDelaySec=0" in lines and "Persistent=false" in lines


def test_a_later_drop_in_is_refused_by_name(node: ChangingNode) -> None:
    node.write("/etc/systemd/system/apt-daily-upgrade.timer.d/zzz.conf", "[Timer]\nOnCalendar=hourly\n")
    before = node.others()
    with pytest.raises(PveguardError, match="zzz.conf is read after"):
        node.apply("updates")
    assert node.others() == before and not node.kept()


def test_a_later_file_of_apt_that_adds_an_origin_brings_everything_back(node: ChangingNode) -> None:
    node.write(
        "/etc/apt/apt.conf.d/99zz-mine", 'Unattended-Upgrade::Origins-Pattern { "origin=Proxmox"; };\n'
    )
    before = node.others()
    with pytest.raises(PveguardError, match="have apt follow .*as it was before this run"):
        node.apply("updates")
    assert node.others() == before and not node.kept()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("totem {\n", "corosync.conf"),
        (corosync(1, 0, 3), "does not tell the node id of pve2"),
        (corosync(1, 3, 3), "or has one twice"),
        (corosync(1), "does not tell the node id of pve2"),
        (corosync(1, 2, 999), "highest node id of the cluster is 999"),
    ],
)
def test_a_node_id_that_is_not_known_is_refused(node: ChangingNode, text: str, said: str) -> None:
    node.write(COROSYNC, text)
    before = node.others()
    with pytest.raises(PveguardError, match=f"nothing was changed: .*{said}"):
        node.apply("updates")
    assert node.others() == before and not node.kept()


@pytest.mark.parametrize("text", [None, corosync(1).replace("  config_version: 3\n", "")])
def test_a_node_by_itself_has_the_first_turn(node: ChangingNode, text: str | None) -> None:
    node.remove(COROSYNC)
    if text is not None:
        # As Debian's package ships it.
        node.write(COROSYNC, text)
    node.apply("updates")
    assert "OnCalendar=*-*-* 01:00:00 UTC" in node.text(DROP_IN)


def test_a_cluster_that_grows_beyond_a_day_moves_everybody(node: ChangingNode) -> None:
    node.apply("updates")
    node.write(COROSYNC, corosync(1, 2, 50))
    assert node.apply("updates").changed and "OnCalendar=Mon *-*-* 01:30:00 UTC" in node.text(DROP_IN)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("deb http://ftp.debian.org/debian buster main", "the node is"),
        ("deb [trusted=yes] http://x.example/debian x main", "without a valid signature"),
        ("deb http://", "not understood"),
    ],
)
def test_sources_that_mix_releases_or_are_not_understood_are_refused(
    node: ChangingNode, line: str, said: str
) -> None:
    node.write("/etc/apt/sources.list.d/x.list", f"{line}\n")
    before = node.others()
    with pytest.raises(PveguardError, match=f"nothing was changed: .*{said}"):
        node.apply("updates")
    assert node.others() == before and not node.kept()


def test_a_node_without_the_package_is_passed_over_or_gets_it(node: ChangingNode) -> None:
    node.remove("/usr/bin/unattended-upgrade")
    node.remove("/etc/apt/apt.conf.d/50unattended-upgrades")
    before = node.others()
    passed = node.apply("updates")
    assert (
        not passed.changed
        and "node_hardening_updates_install" in passed.advice[0]
        and node.others() == before
    )
    assert node.apply("updates", check=True, install=True).todo == [
        "install unattended-upgrades, and limit it"
    ]
    assert node.others() == before
    assert node.apply("updates", install=True).changed and origins(node) == [ORIGIN]
    assert not node.apply("updates", install=True).changed


def bare(node: ChangingNode) -> dict[str, object]:
    node.remove("/usr/bin/unattended-upgrade")
    node.remove("/etc/apt/apt.conf.d/50unattended-upgrades")
    return node.others()


def test_an_installation_that_fails_says_why(node: ChangingNode) -> None:
    before = bare(node)
    node.hook = lambda argv: Result(100, "", "E: Unable to fetch") if argv[0] == "env" else None
    with pytest.raises(PveguardError, match="Unable to fetch.*the node is as it was before this run$"):
        node.apply("updates", install=True)
    assert node.others() == before and not node.kept()


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        (COROSYNC, "totem {\n", "turn of this node is not known"),
        ("/etc/systemd/system/apt-daily-upgrade.timer.d/zzz.conf", "[Timer]\n", "zzz.conf is read after"),
    ],
)
def test_what_is_refused_installs_nothing(node: ChangingNode, path: str, text: str, said: str) -> None:
    node.write(path, text)
    before = bare(node)
    with pytest.raises(PveguardError, match=f"nothing was changed: .*{said}"):
        node.apply("updates", install=True)
    assert node.others() == before and not node.kept()


def test_the_package_finds_its_limits_and_stays_where_these_do_not_count(node: ChangingNode) -> None:
    bare(node)
    there: list[str] = []

    def hook(argv: list[str]) -> Result | None:
        if argv[0] == "env":
            there.append(node.text(CONF))
            node.write("/etc/apt/apt.conf.d/99zz", 'Unattended-Upgrade::Origins-Pattern { "origin=Proxmox"; };\n')
        return None

    node.hook = hook
    with pytest.raises(PveguardError, match="have apt follow .*but for what was installed, which goes by its own settings"):
        node.apply("updates", install=True)
    assert ORIGIN in there[0] and not node.text(CONF) and not node.kept()


def test_assess_tells_what_a_run_would_do(node: ChangingNode) -> None:
    wanted = {"node_hardening": {"node_hardening_updates": True, "node_hardening_updates_slot_minutes": 30}}
    (said,) = hardening_changes.changes(node.facts(), {}, wanted)
    assert "at the turn of node id 2" in said
    node.apply("updates", slot_minutes=30)
    assert hardening_changes.changes(node.facts(), {}, wanted) == []


def test_systemd_that_fails_brings_the_files_back(node: ChangingNode) -> None:
    before = node.others()
    calls: list[list[str]] = []

    def hook(argv: list[str]) -> Result | None:
        calls.append(argv)
        first = argv == ["systemctl", "daemon-reload"] and calls.count(argv) == 1
        return Result(1, "", "planted") if first else None

    node.hook = hook
    with pytest.raises(PveguardError, match="daemon-reload failed: planted. It was taken back"):
        node.apply("updates")
    assert node.others() == before and not node.kept() and updates_change.NAME == "updates"
