"""Directories on /etc/pve of nodes that are gone: told, and a command that removes only what nobody misses."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.pveguard.pmxcfs import left_nodes, left_nodes_findings

CONF = """totem {{
  version: 2
  cluster_name: alpha
  config_version: 4
}}
nodelist {{
{nodes}}}
quorum {{
  provider: corosync_votequorum
}}
"""


def tree(files: dict[str, bytes], nodes: list[str] | None = None) -> dict[str, tuple[int, bytes]]:
    """Files with the directories above them, and a corosync.conf that lists ``nodes`` (lines of each, or names)."""
    if nodes is not None:
        text = "".join(
            f"  node {{\n    nodeid: {number}\n    {line if ':' in line else f'name: {line}'}\n"
            f"    {'' if line.startswith('ring0') else f'ring0_addr: 192.0.2.{number}'}\n  }}\n"
            for number, line in enumerate(nodes, 1)
        )
        files = {**files, "corosync.conf": CONF.format(nodes=text).encode()}
    found: dict[str, tuple[int, bytes]] = {}
    for path, data in files.items():
        parts = path.split("/")
        found.update({"/".join(parts[:depth]): (4, b"") for depth in range(1, len(parts))})
        found[path] = (8, data)
    return found


LEFT = {
    "nodes/pve1/qemu-server/100.conf": b"x",
    "nodes/pve2/pve-ssl.key": b"x",
    "nodes/pve4/pve-ssl.key": b"secret",
    "nodes/pve4/pve-ssl.pem": b"x",
    "nodes/pve4/lrm_status": b"{}",
    "priv/authorized_keys": b"# root@pve4\nssh-rsa AAAA root@pve1\nssh-rsa BBBB root@pve4\nssh-rsa CC root@pve44\n",
}


def test_what_delnode_leaves_is_told_with_its_command() -> None:
    (left,) = left_nodes.of_tree(tree(LEFT, ["pve1", "pve2"]), "pve1")
    assert left == {"name": "pve4", "guests": [], "files": 3, "private_key": True, "authorized_key": True}
    text = left_nodes_findings.finding(left).sentence
    assert "/etc/pve/nodes/pve4 belongs to no node" in text and "'rm -r /etc/pve/nodes/pve4'" in text
    assert "TLS key" in text and "root@pve4" in text and "/etc/pve/priv/authorized_keys" in text


@pytest.mark.parametrize("guest", ["qemu-server/100.conf", "lxc/101.conf", "openvz/1.conf", "qemu-server/0100.conf", "lxc/x"])
def test_no_command_removes_a_guest(guest: str) -> None:
    (left,) = left_nodes.of_tree(tree({**LEFT, f"nodes/pve4/{guest}": b"x"}, ["pve1", "pve2"]), "pve1")
    assert left["guests"] == [f"nodes/pve4/{guest}"]
    text = left_nodes_findings.finding(left).sentence
    assert guest in text and "rm -r" not in text


def test_members_and_other_directories_are_not_left() -> None:
    files = {"nodes/pve1/x": b"", "nodes/pve2/x": b"", "mapping/pve4/x": b"", "nodes/note": b"a file"}
    assert left_nodes.of_tree(tree(files, ["pve1", "pve2"]), "pve1") == []
    # A full name in corosync.conf, or a host name in the place of the address.
    assert left_nodes.of_tree(tree(files, ["pve1.example.org", "ring0_addr: pve2"]), "pve1") == []


@pytest.mark.parametrize(
    "nodes", [["pve1", "ring0_addr: 192.0.2.2"], ["pve8", "pve9"], ["pve1", "ring0_addr: 2001:db8::1"]]
)
def test_where_the_names_are_not_known_nothing_is_said(nodes: list[str]) -> None:
    assert left_nodes.of_tree(tree(LEFT, nodes), "pve1") == []


def test_a_corosync_conf_that_cannot_be_read_says_nothing() -> None:
    broken: dict[str, Any] = tree(LEFT)
    broken["corosync.conf"] = (8, b"totem {\n")
    assert left_nodes.of_tree(broken, "pve1") == []


def test_a_node_alone_has_only_itself() -> None:
    assert [left["name"] for left in left_nodes.of_tree(tree(LEFT), "pve1")] == ["pve2", "pve4"]


def test_an_odd_name_is_quoted() -> None:
    (left,) = left_nodes.of_tree(tree({"nodes/a; reboot/x": b"", "nodes/pve1/x": b""}, ["pve1"]), "pve1")
    assert "rm -r '/etc/pve/nodes/a; reboot'" in left_nodes_findings.finding(left).sentence
