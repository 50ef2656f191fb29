# SPDX-License-Identifier: Apache-2.0
"""What corosync_info makes of the tools' output, as recorded from corosync 3.1.7 with two nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from ansible.module_utils.pveguard import corosync_conf, corosync_info
from ansible.module_utils.pveguard.run import CommandMissing, Result

RECORDED = Path(__file__).parent / "recorded"
CONF = corosync_conf.render_new(
    "pvelab",
    [
        {"name": "pve1", "node_id": 1, "links": ["10.99.0.1"]},
        {"name": "pve2", "node_id": 2, "links": ["10.99.0.2"]},
    ],
    config_version=3,
)


class Tools:
    """The three commands, answering from recordings; every call is kept."""

    def __init__(self, which: str | None) -> None:
        self.which = which
        self.calls: list[list[str]] = []

    def __call__(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        self.calls.append(list(argv))
        if self.which is None:
            return Result(1, "Cannot initialize CMAP service\n", "")
        names = {
            "corosync-cmapctl": "cmapctl",
            "corosync-quorumtool": "quorumtool",
            "corosync-cfgtool": "cfgtool-s",
        }
        code = 2 if argv[0] == "corosync-quorumtool" and self.which == "alone" else 0
        return Result(code, (RECORDED / f"{names[argv[0]]}-{self.which}.txt").read_text(), "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for directory in ("etc/corosync", "etc/pve", "usr/sbin"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "usr/sbin/corosync").touch()
    return tmp_path


def test_a_quorate_member(root: Path) -> None:
    for path in ("etc/corosync", "etc/pve"):
        (root / path / "corosync.conf").write_text(CONF)
    (root / "etc/corosync/authkey").write_bytes(b"k" * 256)
    tools = Tools("two")
    info = corosync_info.collect(run=tools, root=root)
    assert tools.calls == [["corosync-cmapctl"], ["corosync-quorumtool", "-s"], ["corosync-cfgtool", "-s"]]
    assert info["installed"] and info["running"] and info["quorate"]
    assert info["cluster_name"] == "pvelab"
    assert info["node_id"] == 1
    assert info["live_member_ids"] == [1, 2]
    assert (info["expected_votes"], info["total_votes"]) == (2, 2)
    assert info["token_ms"] == 3000
    assert info["configured_token_ms"] == 3000
    assert info["running_config_version"] == 2
    assert info["member_config_versions"] == {"1": 2, "2": 2}
    assert info["host"] == info["cluster"]
    assert info["host"]["config_version"] == 3
    assert info["host"]["sha256"] == hashlib.sha256(CONF.encode()).hexdigest()
    assert info["copies_equal"] is True
    assert info["authkey_sha256"] == hashlib.sha256(b"k" * 256).hexdigest()
    assert info["members"][1] == {"id": 2, "name": "pve2", "addresses": ["10.99.0.2"]}
    assert info["links"] == [
        {"link": 0, "address": "10.99.0.1", "peers": {"1": "localhost", "2": "connected"}}
    ]
    assert info["errors"] == []


def test_a_member_alone_has_no_quorum(root: Path) -> None:
    info = corosync_info.collect(run=Tools("alone"), root=root)
    assert info["running"] and info["quorate"] is False
    assert info["live_member_ids"] == [1]
    assert info["member_config_versions"] == {"1": 3}
    assert info["links"][0]["peers"]["2"] == "disconnected"


def test_copies_that_differ(root: Path) -> None:
    (root / "etc/corosync/corosync.conf").write_text(CONF)
    (root / "etc/pve/corosync.conf").write_text(CONF + "# later\n")
    assert corosync_info.collect(run=Tools("two"), root=root)["copies_equal"] is False


def test_stopped_costs_one_command(root: Path) -> None:
    tools = Tools(None)
    info = corosync_info.collect(run=tools, root=root)
    assert len(tools.calls) == 1
    assert info["installed"] and not info["running"]
    assert info["quorate"] is None and info["copies_equal"] is None


def test_not_installed_costs_none(tmp_path: Path) -> None:
    tools = Tools(None)
    info = corosync_info.collect(run=tools, root=tmp_path)
    assert tools.calls == [] and not info["installed"] and info["host"] is None


def test_missing_tool_and_damaged_file_never_raise(root: Path) -> None:
    (root / "etc/corosync/corosync.conf").write_bytes(b"totem {\n\xff\n")

    def missing(argv: Sequence[str], **_: object) -> Result:
        raise CommandMissing(f"the program {argv[0]!r} is not installed on this host")

    info = corosync_info.collect(run=missing, root=root)
    assert info["host"]["config_version"] is None
    assert any("line 2" in text for text in info["errors"])
    assert any("corosync-cmapctl" in text for text in info["errors"])


def test_debians_example_is_no_membership(root: Path) -> None:
    (root / "etc/corosync/corosync.conf").write_text(
        "totem {\n\tversion: 2\n\n\tcluster_name: debian\n}\nnodelist "
        "{\n\tnode {\n\t\tname: node1\n\t\tnodeid: 1\n"
        "\t\tring0_addr: 127.0.0.1\n\t}\n}\n"
    )
    assert corosync_info.collect(run=Tools(None), root=root)["example_conf"] is True


def test_a_qdevice_is_no_member() -> None:
    text = (RECORDED / "quorumtool-two.txt").read_text() + "         0          1 Qdevice\n"
    assert corosync_info.parse_quorum(text)["live_member_ids"] == [1, 2]


def test_a_qdevice_column_shifts_nothing() -> None:
    text = """\
Quorum information
------------------
Node ID:          1
Quorate:          Yes

Votequorum information
----------------------
Expected votes:   3
Total votes:      3

Membership information
----------------------
    Nodeid      Votes    Qdevice Name
         1          1    A,V,NMW pve1 (local)
         2          1    A,V,NMW pve2
         0          1            Qdevice
"""
    found = corosync_info.parse_quorum(text)
    assert found["live_member_ids"] == [1, 2] and found["quorate"] and found["expected_votes"] == 3
