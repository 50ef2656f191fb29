# SPDX-License-Identifier: Apache-2.0
"""Who must not found or join a cluster, judged without changing anything."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.cluster import cluster_member
from ansible.module_utils.pveguard.cluster.cluster_member import Judgement, Request
from ansible.module_utils.pveguard.formats import corosync_edit
from ansible.module_utils.pveguard.pmxcfs import pmxcfs

from .fakes import FakeRun, make_database, snapshot

SEED = {"name": "pve1", "node_id": 1, "links": ["10.77.0.1"]}
OWN = {"name": "pve2", "node_id": 2, "links": ["10.77.0.2"]}
CONF = corosync_edit.render_new("lab", [SEED, OWN], config_version=2)
KEY = base64.b64encode(b"k" * 256).decode()
EXAMPLE = "totem {\n\tversion: 2\n\tcluster_name: debian\n}\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for directory in ("etc/corosync", "etc/pve", "usr/sbin"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "usr/sbin/corosync").touch()
    (tmp_path / "etc/pve/.members").write_text('{"nodename": "pve2", "version": 0}')
    monkeypatch.setattr(pmxcfs, "mounted", lambda root: True)
    return tmp_path


def judge(root: Path, state: str = "joined", check_mode: bool = False, **more: Any) -> Judgement:
    resolve: Sequence[str] = more.pop("resolve", ["10.77.0.2"])
    local = more.pop("local", True)
    running: Result = more.pop("running", Result(1, "", ""))
    values: dict[str, Any] = {"authkey": KEY, "conf": CONF} if state == "joined" else {}
    request = Request(
        **{
            "state": state,
            "cluster_name": "lab",
            "node_name": "pve2",
            "node_id": 2,
            "links": ["10.77.0.2"],
            **values,
            **more,
        }
    )
    before = snapshot(root)
    result = cluster_member.judge(
        request,
        run=FakeRun({"corosync-": running}),
        root=root,
        resolve=lambda name: resolve,
        is_local=lambda address: local,
        check_mode=check_mode,
    )
    assert snapshot(root) == before
    return result


STOCK = {
    "storage.cfg": "dir: local\n\tpath /var/lib/vz\n\tcontent iso,vztmpl,backup\n\nlvmthin: local-lvm\n\tvgname pve\n",
    "user.cfg": "user:root@pam:1:0:::admin@example.com::\n",
    "nodes/pve2/lrm_status": "{}",
    "datacenter.cfg": "keyboard: de\n",
}


def test_a_fresh_installation_may_join(root: Path) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", STOCK)
    result = judge(root)
    assert (result.member, result.refusals) == (False, [])
    assert result.conf == CONF
    assert result.tree_sha256 is not None


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("nodes/pve2/qemu-server/100.conf", "memory: 512\n", "holds guests 100"),
        ("nodes/pve2/lxc/205.conf", "memory: 512\n", "holds guests 205"),
        ("storage.cfg", "nfs: backup\n\tserver 10.0.0.9\n", "storage definitions backup"),
        ("user.cfg", "user:alice@pve:1:0::::::\n", "users or permissions user:alice@pve"),
        ("corosync.conf", CONF.replace("lab", "other"), "corosync.conf of its own"),
    ],
)
def test_content_that_a_join_would_throw_away(root: Path, path: str, text: str, message: str) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", {**STOCK, path: text})
    (refusal,) = judge(root).refusals
    assert message in refusal
    founding = judge(root, state="bootstrapped").refusals
    assert founding == ([refusal] if path == "corosync.conf" else [])


def test_every_refusal_is_in_one_answer(root: Path) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", {"nodes/pve2/qemu-server/100.conf": ""})
    (root / "etc/corosync/authkey").write_bytes(b"o" * 256)
    (root / "etc/corosync/corosync.conf").write_text(CONF.replace("cluster_name: lab", "cluster_name: old"))
    found = judge(root, resolve=["127.0.1.1"], local=False).refusals
    assert [re.sub(r"\s.*", "", text) for text in found] == [
        "the",
        "/etc/corosync/corosync.conf",
        "/etc/corosync/authkey",
        "the",
        "address",
    ]
    assert "write '10.77.0.2 pve2' to /etc/hosts" in found[3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"resolve": []}, "does not resolve: write '10.77.0.2 pve2' to /etc/hosts"),
        ({"resolve": ["::1"]}, "resolves to ::1, a loopback address"),
        ({"local": False}, "address 10.77.0.2 of link 0 (corosync_links) is on no interface"),
        ({"authkey": "not base64"}, "not valid base64"),
        ({"authkey": base64.b64encode(b"short").decode()}, "5 bytes long"),
        ({"authkey": None}, "no authkey of the cluster was given"),
        ({"authkey_sha256": "0" * 64}, "the member's /etc/corosync/authkey 000000000000"),
        ({"conf": None}, "no corosync.conf of the cluster was given"),
        ({"conf": CONF.replace("cluster_name: lab", "cluster_name: b")}, "is of the cluster 'b'"),
        ({"conf": CONF.replace("nodeid: 2", "nodeid: 3")}, "does not list pve2 with id 2"),
        ({"conf": "totem {"}, "never closed"),
    ],
)
def test_name_address_key_and_configuration(root: Path, more: dict[str, Any], message: str) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", STOCK)
    (refusal,) = judge(root, **more).refusals
    assert message in refusal


def test_debians_example_is_in_nobodys_way(root: Path) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", STOCK)
    (root / "etc/corosync/corosync.conf").write_text(EXAMPLE)
    cmap = Result(0, "totem.cluster_name (str) = debian\n", "")
    assert judge(root, running=cmap).refusals == []
    assert judge(root, state="bootstrapped", running=cmap).refusals == []


def test_a_running_task(root: Path) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", STOCK)
    start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    upid, reused = (
        f"UPID:pve2:{os.getpid():08X}:{n:08X}:66F00000:vzdump::root@pam:" for n in (start, start + 1)
    )
    active = root / "var/log/pve/tasks/active"
    active.parent.mkdir(parents=True)
    active.write_text(f"{upid} 0\n{reused} 0\n")
    for state in ("joined", "bootstrapped"):
        (refusal,) = judge(root, state=state).refusals
        assert f"1 Proxmox VE task(s) run on this node, the first is {upid}: wait" in refusal
    active.write_text(f"{upid} 1 66F00001 OK\n{reused} 0\nUPID:pve2\n")
    assert judge(root).refusals == []


def test_corosync_running_another_cluster(root: Path) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", STOCK)
    (refusal,) = judge(root, running=Result(0, "totem.cluster_name (str) = other\n", "")).refusals
    assert "running the cluster 'other'" in refusal


def test_what_an_interrupted_join_left_behind_is_no_obstacle(root: Path) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", STOCK)
    (root / "etc/corosync/corosync.conf").write_text(CONF)
    (root / "etc/corosync/authkey").write_bytes(b"k" * 256)
    assert judge(root).refusals == []


def test_a_founder_does_not_take_over_a_key_it_does_not_know(root: Path) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", STOCK)
    (root / "etc/corosync/authkey").write_bytes(b"o" * 256)
    (refusal,) = judge(root, state="bootstrapped").refusals
    assert "/etc/corosync/authkey exists" in refusal
    assert judge(root, state="bootstrapped", authkey=base64.b64encode(b"o" * 256).decode()).refusals == []


def test_a_member_is_what_was_asked_for(root: Path) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", {**STOCK, "corosync.conf": CONF})
    for directory in ("etc/corosync", "etc/pve"):
        (root / directory / "corosync.conf").write_text(CONF)
    assert judge(root).member is True
    # A member of that name in another cluster is none.
    (root / "etc/pve/corosync.conf").write_text(CONF.replace("cluster_name: lab", "cluster_name: b"))
    assert judge(root).member is False


def test_files_beneath_the_mount_point(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pmxcfs, "mounted", lambda root: False)
    (root / "etc/pve/.members").rename(root / "etc/pve/left.cfg")
    found = judge(root).refusals
    assert "not empty (left.cfg)" in found[0]
    assert "not mounted, so the node cannot be judged" in found[1]


def test_check_mode_on_a_host_with_nothing_installed(tmp_path: Path) -> None:
    result = judge(tmp_path, check_mode=True, authkey=None, conf=None)
    assert (result.member, result.refusals) == (False, [])
    result = judge(tmp_path, state="bootstrapped", check_mode=True)
    assert (result.member, result.refusals) == (False, [])
    assert "cluster_name: lab" in (result.conf or "")


def test_the_example_is_moved_aside_once(root: Path) -> None:
    path = root / "etc/corosync/corosync.conf"
    path.write_text(EXAMPLE)
    aside = cluster_member.move_example_aside(root)
    assert aside == f"{path}.debian-example" and not path.exists()
    path.write_text(CONF)
    assert cluster_member.move_example_aside(root) is None
    assert path.read_text() == CONF


def test_the_program_gets_its_request_and_is_installed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", STOCK)
    seen: dict[str, Any] = {}

    def run_detached(unit: str, argv: Sequence[str], deadline_s: float, **_: Any) -> dict[str, Any]:
        seen.update(unit=unit, argv=list(argv), deadline=deadline_s)
        seen["request"] = cluster_member.json.loads(Path(argv[2]).read_text())
        seen["mode"] = Path(argv[2]).stat().st_mode & 0o777
        return {"changed": True}

    monkeypatch.setattr(cluster_member, "run_detached", run_detached)
    request = Request("joined", "lab", "pve2", 2, ["10.77.0.2"], KEY, CONF, expected_ids=[1], deadline_s=100)
    judgement = Judgement(False, [], CONF, tree_sha256="abc")
    assert cluster_member.apply(request, judgement, root=root) == {"changed": True}
    launcher = "usr/local/lib/pveguard/cluster-member/cluster-member"
    assert os.access(root / launcher, os.X_OK) and seen["argv"][:2] == [f"/{launcher}", "run"]
    assert seen["request"]["expected_ids"] == [1, 2]
    assert seen["request"]["tree_sha256"] == "abc"
    assert seen["mode"] == 0o600
    # Time to put everything back remains after the deadline.
    assert seen["deadline"] >= 100 + 120


def member(root: Path, **files: str) -> None:
    (root / "etc/corosync/corosync.conf").write_text(CONF)
    (root / "etc/pve/corosync.conf").write_text(CONF)
    (root / "etc/corosync/authkey").write_bytes(b"k" * 256)
    make_database(root / "var/lib/pve-cluster/config.db", {"corosync.conf": CONF, **files})


def test_a_member_may_leave(root: Path) -> None:
    member(root, **{"nodes/pve1/qemu-server/100.conf": "memory: 512\n"})
    judged = judge(root, "left")
    assert not judged.member and judged.refusals == [] and (judged.before, judged.conf) == (CONF, "")


def test_what_forbids_a_leave(root: Path) -> None:
    member(root, **{"nodes/pve2/lxc/201.conf": "memory: 512\n"})
    (root / "run/watchdog-mux.active").mkdir(parents=True)
    guests, watchdog = judge(root, "left").refusals
    assert "guests 201" in guests and "watchdog-mux.active" in watchdog
    (other,) = [text for text in judge(root, "left", cluster_name="other").refusals if "member of" in text]
    assert "member of the cluster 'lab', not of 'other'" in other
    device = CONF.replace("provider: corosync_votequorum", "provider: corosync_votequorum\n  device {\n    model: net\n  }")
    (root / "etc/pve/corosync.conf").write_text(device)
    assert any("pvecm qdevice remove" in text for text in judge(root, "left").refusals)


@pytest.mark.parametrize("rest", ["authkey", "host", "database"])
def test_a_part_that_is_left_is_no_end_of_the_leave(root: Path, rest: str) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", {"corosync.conf": CONF} if rest == "database" else STOCK)
    if rest == "authkey":
        (root / "etc/corosync/authkey").write_bytes(b"k" * 256)
    if rest == "host":
        (root / "etc/corosync/corosync.conf").write_text(CONF)
    assert not judge(root, "left").member


def test_a_node_by_itself_has_left(root: Path) -> None:
    make_database(root / "var/lib/pve-cluster/config.db", STOCK)
    assert judge(root, "left").member
    # The example of Debian's package is no membership.
    (root / "etc/corosync/corosync.conf").write_text(EXAMPLE)
    assert judge(root, "left").member
