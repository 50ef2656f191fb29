# SPDX-License-Identifier: Apache-2.0
"""The concerns that are files and a restart, on members of a cluster: kernel settings, updates and the web interface."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hardening_nodes import Nodes, differences, python

#: Longer than CI has.
pytestmark = pytest.mark.campaign
Harden = Callable[..., tuple[int, dict[str, int], str]]
LISTED = ["10.77.0.0/24", "10.0.2.2"]
SWITCHES = {
    "node_hardening_sysctl": True,
    "node_hardening_updates": True,
    "node_hardening_pveproxy": True,
    "node_hardening_pveproxy_allow_from": LISTED,
}
WRITTEN = {
    "/etc/apt/apt.conf.d/99-pveguard-updates",
    "/etc/default/pveproxy",
    "/etc/modprobe.d/pveguard-hardening.conf",
    "/etc/sysctl.d/90-pveguard-hardening.conf",
}
#: The status with which a node's web interface answers another, or why there is none.
GET = """
import ssl, urllib.request
try:
    context = ssl._create_unverified_context()
    print(urllib.request.urlopen("https://ADDRESS:8006/", context=context, timeout=30).status)
except OSError as error:
    print(error)
"""


def web(nodes: Nodes, node: str, address: str) -> str:
    return nodes.console(node, python(GET.replace("ADDRESS", address))).strip()


def test_a_list_without_a_member_is_refused(nodes: Nodes, harden: Harden) -> None:
    before = nodes.look()
    listed = ["10.77.0.1", "10.0.2.2"]
    code, changed, said = harden(
        node_hardening_sshd=False, node_hardening_pveproxy=True, node_hardening_pveproxy_allow_from=listed
    )
    assert code != 0 and "10.77.0.2" in said and not any(changed.values())
    for node, seen in nodes.look().items():
        assert differences(before[node]["files"], seen["files"]) == []


def test_one_member_after_the_other(nodes: Nodes, harden: Harden) -> None:
    before = nodes.look()
    code, changed, _ = harden(**SWITCHES)
    assert code == 0 and all(changed.values())
    for node, seen in nodes.look().items():
        new = {line.partition(":")[0] for line in differences(before[node]["files"], seen["files"])}
        assert new >= WRITTEN, node


def test_a_second_run_changes_nothing(harden: Harden) -> None:
    for arguments in (["--check", "--diff"], ["--diff"]):
        code, changed, _ = harden(*arguments, **SWITCHES)
        assert code == 0 and not any(changed.values())


def test_each_member_upgrades_at_another_time(nodes: Nodes) -> None:
    show = "systemctl show apt-daily-upgrade.timer -P TimersCalendar -P ActiveState"
    said = nodes.everywhere(lambda node: nodes.console(node, show))
    times = {node: re.search(r"OnCalendar=\*-\*-\* (\d\d:\d\d)", text) for node, text in said.items()}
    assert {node: found and found[1] for node, found in times.items()} == {
        "pve1": "01:00",
        "pve2": "01:30",
        "pve3": "02:00",
    }
    assert all("\nactive\n" in f"\n{text}\n" for text in said.values())


def test_the_web_interface_lets_in_who_is_listed(nodes: Nodes) -> None:
    for node, to in (("pve1", "10.77.0.2"), ("pve3", "10.77.0.1")):
        assert web(nodes, node, to) == "200"
    # The same node by its other ring is not in the list.
    assert web(nodes, "pve1", "10.78.0.2") != "200"


def test_both_rings_quorum_and_every_login_work(nodes: Nodes) -> None:
    assert nodes.not_in_order(links=2) == [] and nodes.locked_out() == []
