# SPDX-License-Identifier: Apache-2.0
"""What corosync_info makes of the tools' output, as recorded from corosync 3.1.7 with two nodes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.corosync import corosync_info
from ansible.module_utils.pveguard.formats import corosync_edit, corosync_tools
from hypothesis import given
from hypothesis import strategies as st

RECORDED = Path(__file__).parent / "recorded"
CONF = corosync_edit.render_new(
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
            "corosync-cmapctl": "cmapctl-stats" if "-m" in argv else "cmapctl",
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
    assert info["members"][1] == {
        "id": 2, "name": "pve2", "addresses": ["10.99.0.2"], "votes": 1, "probe": False, "is_node": False
    }  # fmt: skip
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
    assert corosync_tools.parse_quorum(text)["live_member_ids"] == [1, 2]


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
    found = corosync_tools.parse_quorum(text)
    assert found["live_member_ids"] == [1, 2] and found["quorate"] and found["expected_votes"] == 3


def test_statistics_are_asked_for_only_on_demand(root: Path) -> None:
    tools = Tools("two")
    assert corosync_info.collect(run=tools, root=root)["link_statistics"] is None
    assert len(tools.calls) == 3
    info = corosync_info.collect(run=tools, root=root, statistics=True)
    assert tools.calls[-1] == ["corosync-cmapctl", "-m", "stats", "stats.knet."]
    assert len(tools.calls) == 7
    # Recorded on two links between two nodes; node 1 itself, over a loop in memory, is left out.
    assert info["link_statistics"] == [
        {"link": 0, "node_id": 2, "connected": True, "enabled": True, "latency_average_us": 185, "latency_min_us": 184,
         "latency_max_us": 225, "latency_samples": 31, "mtu_bytes": 1446, "up_count": 1, "down_count": 1},
        {"link": 1, "node_id": 2, "connected": True, "enabled": True, "latency_average_us": 119, "latency_min_us": 104,
         "latency_max_us": 168, "latency_samples": 31, "mtu_bytes": 1446, "up_count": 1, "down_count": 1},
    ]  # fmt: skip


def test_a_link_that_is_down_says_so_and_keeps_its_figures() -> None:
    found = corosync_info.parse_statistics((RECORDED / "cmapctl-stats-alone.txt").read_text())
    peer = next(each for each in found if each["node_id"] == 2)
    assert peer["connected"] is False and peer["enabled"] is True and peer["latency_average_us"] == 188


def test_a_link_without_a_sample_has_no_latency() -> None:
    # As recorded, the minimum of a link without a sample is 4294967295.
    itself = corosync_info.parse_statistics((RECORDED / "cmapctl-stats-two.txt").read_text())[0]
    assert itself["node_id"] == 1 and itself["latency_samples"] == 0
    assert [itself[f"latency_{which}_us"] for which in ("average", "min", "max")] == [None, None, None]


def test_what_knet_does_not_say_stays_unknown() -> None:
    (only,) = corosync_info.parse_statistics(
        "stats.knet.node3.link1.connected (u8) = 1\n"
        "stats.knet.node3.link1.latency_samples (u32) = 4\n"
        "stats.knet.node3.link1.latency_ave (u32) = strange\n"
        "stats.knet.node3.linkX.latency_ave (u32) = 5\n"
        "Can't get key stats.knet.node4.link0.connected\n"
    )
    assert (only["link"], only["node_id"], only["connected"], only["latency_samples"]) == (1, 3, True, 4)
    unknown = ("enabled", "latency_average_us", "latency_min_us", "latency_max_us", "mtu_bytes", "up_count", "down_count")
    assert all(only[key] is None for key in unknown)


@given(st.text(alphabet="stak.neod0123link_(u8) =\n\t", max_size=200))
def test_strange_output_never_raises(output: str) -> None:
    corosync_info.parse_statistics(output)
    corosync_info.parse_links(output)
    corosync_tools.parse_quorum(output)


class Clock:
    """A clock that only sleeping moves on, and what happens meanwhile."""

    def __init__(self, events: Mapping[float, Callable[[], Any]] | None = None) -> None:
        self.now = 0.0
        self.events = dict(events or {})

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in [moment for moment in self.events if moment <= self.now]:
            self.events.pop(moment)()


def both_copies(root: Path, text: str) -> None:
    for path in ("etc/corosync", "etc/pve"):
        (root / path / "corosync.conf").write_text(text)


def test_wait_ends_when_the_change_is_here(root: Path) -> None:
    # The recorded Corosync runs version 2.
    text = CONF.replace("config_version: 3", "config_version: 2")
    clock = Clock({3.0: lambda: both_copies(root, text)})
    wanted = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "live_member_ids": [1, 2], "quorate": True}
    tools = Tools("two")
    info, missing = corosync_info.wait(wanted, 60, True, tools, root, clock.sleep, clock)
    assert missing == [] and clock.now == 3.0
    assert info["cluster"]["config_version"] == 2 and len(info["link_statistics"]) == 2
    # Statistics cost their command once, not at each look.
    assert sum("-m" in call for call in tools.calls) == 1


def test_wait_names_what_never_came(root: Path) -> None:
    both_copies(root, CONF)
    (root / "etc/corosync/corosync.conf").write_text(CONF + "# other\n")
    clock = Clock()
    wanted = {"sha256": hashlib.sha256(CONF.encode()).hexdigest(), "config_version": 3, "live_member_ids": [1, 2, 7]}
    _, missing = corosync_info.wait(wanted, 10, False, Tools("two"), root, clock.sleep, clock)
    assert 10 <= clock.now < 11
    (copy, runs, absent) = missing
    assert copy.startswith("/etc/corosync/corosync.conf: another text (config_version 3") and "wanted sha256" in copy
    assert runs == "corosync runs config_version 2, wanted 3"
    assert absent == "not in the membership: node id 7 (there are 1, 2)"


def test_a_text_that_is_here_is_not_yet_one_that_runs(root: Path) -> None:
    both_copies(root, CONF)
    info = corosync_info.collect(run=Tools("two"), root=root)
    sha256 = hashlib.sha256(CONF.encode()).hexdigest()
    assert corosync_info.missing(info, {"sha256": sha256}) == ["corosync runs config_version 2, wanted 3"]
    assert corosync_info.missing(info, {"quorate": True, "live_member_ids": [2]}) == []


def test_no_deadline_is_one_look(root: Path) -> None:
    clock = Clock()
    tools = Tools("alone")
    info, missing = corosync_info.wait({"quorate": True}, 0, False, tools, root, clock.sleep, clock)
    assert clock.now == 0 and len(tools.calls) == 3
    assert missing == ["no quorum ('corosync-quorumtool -s')"] and not info["quorate"]


def test_missing_files_and_a_stopped_corosync_are_named(root: Path) -> None:
    (root / "etc/pve/corosync.conf").write_text("totem {\n")
    info = corosync_info.collect(run=Tools(None), root=root)
    missing = corosync_info.missing(info, {"config_version": 3})
    assert missing == [
        "/etc/pve/corosync.conf: config_version None, wanted 3",
        "/etc/corosync/corosync.conf: does not exist",
        "corosync does not run ('systemctl status corosync')",
    ]


@pytest.mark.parametrize("width", [1, 5, 10])
def test_an_id_as_wide_as_its_column_is_a_member(width: int) -> None:
    text = (RECORDED / "quorumtool-two.txt").read_text()
    node_id = "4" * width
    # As corosync prints it: ten places, and no blank before an id that fills them.
    text = text.replace("         2          1 pve2", f"{node_id:>10}          1 pve2-of-a-long-name.example.org")
    assert corosync_tools.parse_quorum(text)["live_member_ids"] == sorted([1, int(node_id)])
    votes = text.replace(" 1 pve2-", "1234567890 pve2-")
    assert corosync_tools.parse_quorum(votes)["live_member_ids"] == sorted([1, int(node_id)])


@pytest.mark.parametrize(
    ("mode", "exposed"), [(0o400, False), (0o600, False), (0o644, True), (0o440, True), (0o402, True), (0o604, True)]
)
def test_a_key_that_others_can_read_is_told(root: Path, mode: int, exposed: bool) -> None:
    key = root / "etc/corosync/authkey"
    key.write_bytes(b"k" * 256)
    key.chmod(mode)
    info = corosync_info.collect(run=Tools(None), root=root)
    assert (info["authkey_mode"], info["authkey_exposed"]) == (f"{mode:04o}", exposed or key.stat().st_uid != 0)


def test_without_a_key_nothing_is_exposed(root: Path) -> None:
    info = corosync_info.collect(run=Tools(None), root=root)
    assert (info["authkey_mode"], info["authkey_exposed"]) == (None, False)


def test_a_daemon_that_never_answers_is_said_and_holds_nobody(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "etc/pve/corosync.conf")  # an open that does not come back
    (root / "etc/corosync/corosync.conf").write_text(CONF)
    monkeypatch.setattr(corosync_info, "ANSWER_S", 0.2)
    monkeypatch.setattr(corosync_info.pmxcfs, "mounted", lambda _root: True)
    info = corosync_info.collect(run=Tools(None), root=root)
    assert info["cluster"] is None and info["errors"] == ["/etc/pve/corosync.conf: no answer from the daemon within 0.2 s"]
    assert info["host"] is not None and [each["name"] for each in info["members"]] == ["pve1", "pve2"]
    # One that answers is read as the plain files are.
    (root / "etc/pve/corosync.conf").unlink()
    (root / "etc/pve/corosync.conf").write_bytes(CONF.encode() + b"# caf\xe9\n")
    through = corosync_info.collect(run=Tools(None), root=root)
    monkeypatch.setattr(corosync_info.pmxcfs, "mounted", lambda _root: False)
    assert through == corosync_info.collect(run=Tools(None), root=root) and through["cluster"] is not None
