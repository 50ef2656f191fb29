# SPDX-License-Identifier: Apache-2.0
"""Audit rules of /etc/pve: loaded after its mount by a unit that systemd takes, and what is in their way. auditctl is a
double.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.hardening import auditd, auditd_change, hardening_changes
from ansible.module_utils.pveguard.hardening.auditd_change import RULES, UNIT, UNIT_FILE, WANTS

from tests.hardening.changing import ChangingNode, changing


@pytest.fixture
def node(tmp_path: Path) -> ChangingNode:
    node = changing(tmp_path / "node")
    node.has_auditd()
    node.audit = ["-w /etc/passwd -p wa -k mine"]
    return node


def test_check_run_second_run_and_back(node: ChangingNode) -> None:
    before, rules = node.others(), list(node.audit)
    planned = node.apply("auditd", check=True)
    assert planned.changed and node.others() == before and node.audit == rules and not node.kept()
    assert node.apply("auditd").todo == planned.todo
    assert node.audit[0] == rules[0] and "-w /etc/pve/user.cfg -p wa -k pveguard" in node.audit
    assert (
        "-w /etc/pve/firewall -p wa -k pveguard" in node.audit
        and "-w /etc/pve/priv -p wa -k pveguard" in node.audit
    )
    assert (node.root / WANTS.lstrip("/")).readlink() == Path(UNIT_FILE) and node.restarts == [UNIT]
    assert not node.apply("auditd").changed and node.restarts == [UNIT]
    assert node.revert().changed and node.others() == before and node.audit == rules and not node.kept()
    assert not node.revert().changed


def test_the_beat_of_the_lrm_and_the_locks_are_left_out_before_anything_is_watched(
    node: ChangingNode,
) -> None:
    node.apply("auditd")
    lines = [line for line in node.text(RULES).splitlines() if line.startswith("-")]
    assert lines[:2] == ["-i", "-a never,exit -F dir=/etc/pve/priv/lock -F perm=wa -F key=pveguard"]
    assert not any(auditd.kind(line) for line in lines), "by the verdict's own rule none watches too much"
    assert not any("lrm_status" in line or "/etc/pve/nodes" in line for line in lines)


def test_rules_that_somebody_flushed_are_loaded_again(node: ChangingNode) -> None:
    node.apply("auditd")
    node.audit = []
    again = node.apply("auditd")
    assert (
        again.todo == ["load the audit rules, which the kernel does not have"]
        and not again.files
        and len(node.audit) > 5
    )
    # While the file system is not mounted there is nothing to load, and no reason to fail.
    node.audit = []
    node.mounts.pop(2)
    node.has_auditd()
    assert not node.apply("auditd").changed


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        (
            "/etc/audit/rules.d/99-finalize.rules",
            "-e 2\n",
            "immutable: '-e 2' in /etc/audit/rules.d/99-finalize.rules.*reboot",
        ),
        ("/etc/audit/rules.d/99-finalize.rules", "-f 2\n", "panic"),
        (
            "/etc/audit/rules.d/50-pve.rules",
            "-w /etc/pve -p wa -k pve\n",
            "50,000 records a day.*augenrules --load",
        ),
        (
            "/etc/audit/rules.d/50-pve.rules",
            "-a always,exit -F dir=/etc/pve/nodes -F perm=wa\n",
            "50,000 records a day",
        ),
        ("/etc/audit/auditd.conf", "disk_full_action = HALT\n", "DISK_FULL_ACTION = HALT.*drop-ins.*SYSLOG"),
        ("/etc/audit/auditd.conf", "admin_space_left_action = single\n", "stops the node"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_what_is_in_the_way_is_named_and_nothing_changes(
    node: ChangingNode, path: str, text: str, said: str, check: bool
) -> None:
    node.write(path, text)
    before, rules = node.others(), list(node.audit)
    with pytest.raises(PveguardError, match=f"(?i)nothing was changed: .*{said}"):
        node.apply("auditd", check)
    assert node.others() == before and node.audit == rules and not node.kept()


def test_a_running_kernel_that_is_immutable_is_refused(node: ChangingNode) -> None:
    node.audit_enabled = 2
    with pytest.raises(PveguardError, match="immutable: the running kernel .*reboot the node"):
        node.apply("auditd")
    assert not node.kept() and not node.text(RULES)


def test_a_file_system_that_is_not_mounted_is_refused(node: ChangingNode) -> None:
    node.mounts.pop(2)
    node.has_auditd()
    with pytest.raises(PveguardError, match="/etc/pve is not mounted.*systemctl start pve-cluster"):
        node.apply("auditd")
    assert not node.kept() and not node.text(RULES)


@pytest.mark.parametrize("which", [["auditctl", "-R"], ["auditctl", "-s"], ["auditctl", "-l"]])
def test_an_auditctl_that_fails_leaves_the_node_as_it_was(node: ChangingNode, which: list[str]) -> None:
    before, rules = node.others(), list(node.audit)
    node.hook = lambda argv: Result(1, "", "planted") if argv[:2] == which else None
    with pytest.raises(PveguardError, match="planted|nothing was changed"):
        node.apply("auditd")
    assert node.others() == before and node.audit == rules and not node.kept()


def test_rules_that_the_kernel_did_not_take_are_taken_back(node: ChangingNode) -> None:
    before, rules = node.others(), list(node.audit)
    node.hook = lambda argv: Result(0) if argv[:2] == ["auditctl", "-R"] else None
    with pytest.raises(PveguardError, match="still to be done: load the audit rules"):
        node.apply("auditd")
    assert node.others() == before and node.audit == rules and not node.kept()


def test_a_node_without_the_package_is_passed_over_or_gets_it(tmp_path: Path) -> None:
    node = changing(tmp_path / "node")
    before = node.others()
    passed = node.apply("auditd")
    assert (
        not passed.changed and "node_hardening_auditd_install" in passed.advice[0] and node.others() == before
    )
    assert node.apply("auditd", check=True, install=True).changed and node.others() == before
    assert node.apply("auditd", install=True).changed and node.text(RULES)


def test_a_host_without_a_cluster_file_system_has_nothing_to_watch(node: ChangingNode) -> None:
    node.remove("/usr/bin/pmxcfs")
    said = node.apply("auditd")
    assert not said.changed and "nothing to watch" in said.advice[0] and not node.text(RULES)


def test_a_revert_goes_on_where_auditd_has_been_removed(node: ChangingNode) -> None:
    node.apply("auditd")
    node.remove("/usr/sbin/auditctl")
    del node.answers["auditctl"]
    node.hook = lambda argv: Result(5, "", "not loaded") if argv[:2] == ["systemctl", "stop"] else None
    assert node.revert().changed and not node.text(RULES) and not node.kept()


def test_assess_tells_what_a_run_would_do(node: ChangingNode) -> None:
    wanted = {"node_hardening": {"node_hardening_auditd": True}}
    (said,) = hardening_changes.changes(node.facts(), {}, wanted)
    assert "watch the configuration of the cluster" in said
    node.apply("auditd")
    assert hardening_changes.changes(node.facts(), {}, wanted) == []
    assert "hardening-auditd-watches-pve" not in node.ids()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_takes_the_unit(node: ChangingNode, tmp_path: Path) -> None:
    node.apply("auditd")
    unit = tmp_path / UNIT
    # The program is not here; a unit that it would start instead is.
    unit.write_text(node.text(UNIT_FILE).replace(auditd_change._AUDITCTL, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    told = [line for line in done.stderr.splitlines() if UNIT in line]
    assert not told, done.stderr
