# SPDX-License-Identifier: Apache-2.0
"""A step looks again before it is done, refuses what has moved on, and says what did not come."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.cluster import corosync_recover
from ansible.module_utils.pveguard.cluster import node_info as node_facts
from ansible.module_utils.pveguard.cluster.corosync_recover import Node, Request, carry_out
from ansible.module_utils.pveguard.ha import ha_info
from ansible.module_utils.pveguard.pmxcfs import pmxcfs, pve_lock

from .cluster import Cluster, text_of
from .fakes import make_database, snapshot


class Ground:
    """A node of a made-up cluster: ``mode`` and ``root_version`` of its daemon, ``ha`` of its cluster, who ``answers``."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster = Cluster(root, monkeypatch)
        self.root, self.mode, self.root_version = root, "cluster", 1000
        self.ha: dict[str, Any] = {"resources": [], "watchdog_active": False}
        self.answering: set[str] = set()
        self.running, self.independent = True, True
        self.asked: list[str] = []
        (root / "run/pveguard").mkdir()
        facts = {"tree_sha256": "t", "has_corosync_conf": True, "error": None, "database_bytes": 4096}
        monkeypatch.setattr(
            pmxcfs, "collect", lambda _root: {**facts, "mode": self.mode, "root_version": self.root_version}
        )
        monkeypatch.setattr(pmxcfs, "mounted", lambda _root: self.mode != "down")
        monkeypatch.setattr(ha_info, "collect", lambda **_kwargs: self.ha)

    def run(self, argv: list[str], **more: Any) -> Result:
        self.asked.append(" ".join(argv))
        if argv[0] == "systemctl" and argv[1] in ("start", "restart", "stop", "reset-failed"):
            if argv[1:] == ["stop", "pve-cluster.service"]:
                self.mode = "down"
            elif argv[1:] == ["start", "pve-cluster.service"]:
                self.mode = "cluster"
            elif argv[1] != "reset-failed":
                self.running = True
                return self.cluster._restart()
            return Result(0, "", "")
        if argv == ["corosync-cmapctl"] and not self.running:
            return Result(1, "", "Failed to initialize the cmap API")
        return self.cluster.run(argv)

    def ask(self, argv: Sequence[str], timeout: float) -> Result:
        assert argv[0] == "check-login"
        return Result(0, json.dumps({"independent": self.independent, "how": "a link into /etc/pve"}), "")

    def seen(self, **more: Any) -> dict[str, Any]:
        def sha256(path: Path) -> str:
            return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""

        quorate = self.running and self.cluster.quorate
        found = {"cluster_sha256": sha256(self.cluster.pve), "host_sha256": sha256(self.cluster.host)}
        return {**found, "running": self.running, "quorate": quorate, **more}

    def do(self, step: str, check: bool = False, **options: Any) -> dict[str, Any]:
        options.setdefault("seen", self.seen())
        node = Node(self.run, self.root, self.cluster.sleep, lambda: self.cluster.now, self.answering.__contains__, self.ask)  # type: ignore[arg-type]
        return carry_out(Request(step, deadline_s=20, **options), check, node)

    def refused(self, step: str, **options: Any) -> str:
        """The message; a real run and check mode say the same and change nothing."""
        before, asked = snapshot(self.root), len(self.asked)
        messages = []
        for check in (True, False):
            with pytest.raises(PveguardError) as caught:
                self.do(step, check, **options)
            messages.append(str(caught.value))
        assert messages[0] == messages[1] and snapshot(self.root) == before
        assert not [call for call in self.asked[asked:] if call.startswith(("systemctl start", "systemctl stop", "systemctl re"))]
        return messages[0]


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    return Ground(tmp_path, monkeypatch)


def test_a_text_over_both_copies_with_a_version_above_all(ground: Ground) -> None:
    ground.cluster.host.write_text(text_of(3, version=9))
    wanted = {"text": text_of(3, version=10) + "# kept\n", "live_member_ids": [1, 2, 3]}
    assert "config_version 8 of the text is not above 9" in ground.refused("publish", **{**wanted, "text": text_of(3, version=8)})
    assert "another cluster" not in ground.refused("publish", **{**wanted, "live_member_ids": [1, 2]})
    assert ground.do("publish", True, **wanted)["changed"] and ground.cluster.text == text_of(3)
    done = ground.do("publish", **wanted)
    assert done["changed"] and (done["before"], done["after"]) == (text_of(3), wanted["text"])
    assert ground.cluster.running == ground.cluster.text == ground.cluster.host.read_text() == wanted["text"]
    assert (ground.root / "etc/pve/corosync.conf.bak").read_text() == text_of(3)
    assert not ground.do("publish", **wanted)["changed"]


def test_what_moved_on_since_it_was_shown_is_not_touched(ground: Ground) -> None:
    wanted = {"text": text_of(3, version=10), "live_member_ids": [1, 2, 3]}
    for moved in ({"host_sha256": "0" * 64}, {"cluster_sha256": ""}, {"running": False}, {"quorate": False}):
        assert "has changed since it was looked at" in ground.refused("publish", seen=ground.seen(**moved), **wanted)
    ground.mode = "local"
    assert "not connected to its cluster" in ground.refused("publish", **wanted)


def test_a_host_copy_is_written_once_corosync_accepts_it(ground: Ground) -> None:
    ground.running = False
    ground.cluster.host.write_text("totem {\n")
    text = text_of(3, version=10)
    ground.cluster.valid = lambda _text: "parse error in config"
    assert "parse error in config" in ground.refused("host_copy", text=text)
    ground.cluster.valid = lambda _text: ""
    assert "line 1" in ground.refused("host_copy", text="totem {\n")
    assert ground.do("host_copy", True, text=text)["changed"] and ground.cluster.host.read_text() == "totem {\n"
    assert ground.do("host_copy", text=text)["before"] == "totem {\n"
    assert ground.cluster.host.read_text() == text and not ground.do("host_copy", text=text)["changed"]
    assert "has config_version 10, above 5" in ground.refused("host_copy", text=text_of(3, version=5))


def test_corosync_is_started_only_where_nobody_is_rolled_back(ground: Ground) -> None:
    ground.running = False
    wanted = {"max_root_version": 900, "live_member_ids": [2, 3]}
    assert "holds root version 1000, the members that run have 900" in ground.refused("start_corosync", **wanted)
    ground.root_version = None  # type: ignore[assignment]
    assert "is not known" in ground.refused("start_corosync", **wanted)
    ground.root_version = 900
    ground.ha = {"resources": ["vm:100"], "watchdog_active": False}
    assert "vm:100" in ground.refused("start_corosync", **wanted)
    ground.ha = {"resources": [], "watchdog_active": True}
    assert "watchdog" in ground.refused("start_corosync", **wanted)
    ground.ha["watchdog_active"] = False
    assert ground.do("start_corosync", True, **wanted)["changed"] and not ground.running
    assert ground.do("start_corosync", **wanted)["changed"]
    assert ground.asked.index("systemctl reset-failed corosync.service") < ground.asked.index("systemctl start corosync.service")
    # A membership that does not come is a failure with what is missing.
    ground.running = False
    with pytest.raises(PveguardError, match="not in the membership: node id 7"):
        ground.do("start_corosync", max_root_version=900, live_member_ids=[7])


def test_quorum_is_not_forced_while_one_of_the_others_answers(ground: Ground) -> None:
    ground.cluster.live = {1}
    wanted = {"votes": 1, "live_member_ids": [1], "others": ["10.0.0.2", "10.0.0.3"]}
    ground.answering = {"10.0.0.3"}
    assert "10.0.0.3 answers, so that node is not off" in ground.refused("quorum", **wanted)
    ground.answering = set()
    assert "the membership is [1]" in ground.refused("quorum", **{**wanted, "live_member_ids": [1, 2]})
    ground.mode = "local"
    assert "works alone" in ground.refused("quorum", **wanted)
    ground.mode = "cluster"
    assert ground.do("quorum", True, **wanted)["changed"] and ground.cluster.expected is None
    assert ground.do("quorum", **wanted)["changed"] and ground.cluster.expected == 1
    assert "there is quorum by now" in ground.refused("quorum", **wanted)


def test_a_reload_says_whether_it_helped(ground: Ground) -> None:
    assert ground.do("reload") == {"before": "", "after": "", "changed": False, "arrived": True}
    newer = text_of(3, version=5)
    for path in (ground.cluster.pve, ground.cluster.host):
        path.write_text(newer)
    ground.cluster.accept = lambda _text: False
    assert ground.do("reload")["arrived"] is False
    ground.cluster.accept = lambda _text: True
    assert ground.do("reload")["arrived"] is True and "corosync-cfgtool -R" in ground.asked


def test_the_daemon_is_stopped_only_with_a_login_that_stays(ground: Ground) -> None:
    wanted = {"mode": "cluster"}
    ground.independent = False
    assert "authorized_keys2" in ground.refused("stop_daemon", **wanted)
    ground.independent = True
    ground.ha["watchdog_active"] = True
    assert "watchdog" in ground.refused("stop_daemon", **wanted)
    ground.ha["watchdog_active"] = False
    assert "it was 'local'" in ground.refused("stop_daemon", **{**wanted, "mode": "local"})
    assert ground.do("stop_daemon", True, **wanted)["changed"] and ground.mode == "cluster"
    assert ground.do("stop_daemon", **wanted)["changed"] and ground.mode == "down"
    assert not ground.do("stop_daemon", **wanted)["changed"]
    # And started only on a state that rolls nobody back.
    assert "rolled back" in ground.refused("start_daemon", max_root_version=999)
    assert ground.do("start_daemon", max_root_version=1000)["changed"] and ground.mode == "cluster"
    ground.mode = "local"
    assert "local mode" in ground.refused("start_daemon", max_root_version=1000)


def test_what_is_saved_is_whole_and_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, monkeypatch)
    node = Node(cluster.run, tmp_path, cluster.sleep, lambda: cluster.now)
    database = tmp_path / "var/lib/pve-cluster/config.db"
    make_database(database, {"corosync.conf": "x", "storage.cfg": "s"})
    assert carry_out(Request("save"), True, node)["changed"] and not (tmp_path / "var/lib/pveguard").exists()
    done = carry_out(Request("save"), node=node)
    kept = tmp_path / done["directory"].lstrip("/")
    assert done["changed"] and {path.name for path in kept.iterdir()} == {
        "manifest.json", "config.db", "corosync.conf.cluster", "corosync.conf.host",
    }  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in kept.iterdir()} == {0o600} and kept.stat().st_mode & 0o777 == 0o700
    assert json.loads((kept / "manifest.json").read_text())["database"] == "whole"
    assert carry_out(Request("save"), node=node) == {**done, "changed": False}

    # A database that is open, one that is damaged, one that is gone.
    live = sqlite3.connect(database)
    live.execute("PRAGMA journal_mode=WAL")
    live.execute("UPDATE tree SET data = X'6368' WHERE name = 'storage.cfg'")
    live.commit()
    second = tmp_path / carry_out(Request("save"), node=node)["directory"].lstrip("/")
    assert second != kept and not (second / "config.db-wal").exists(), "what only its log held is in the copy"
    (value,) = sqlite3.connect(second / "config.db").execute("SELECT data FROM tree WHERE name = 'storage.cfg'").fetchone()
    assert value == b"ch"
    live.close()
    database.write_bytes(b"garbage" * 1000)
    third = tmp_path / carry_out(Request("save"), node=node)["directory"].lstrip("/")
    assert "damaged" in (third / "manifest.json").read_text() and (third / "config.db").read_bytes() == database.read_bytes()
    database.unlink()
    fourth = tmp_path / carry_out(Request("save"), node=node)["directory"].lstrip("/")
    assert "there is none" in (fourth / "manifest.json").read_text()


def test_nothing_is_saved_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, monkeypatch)
    monkeypatch.setattr(corosync_recover, "RESERVE_BYTES", 2**62)
    with pytest.raises(PveguardError, match="make room; nothing is changed"):
        carry_out(Request("save"), node=Node(cluster.run, tmp_path))


def test_a_key_is_masked_wherever_it_stands() -> None:
    text = "totem {\n  key: geheim\n  keyfile: /etc/corosync/authkey\n  Secret:x\n}\nkey:   \n"
    assert corosync_recover.masked(text) == (
        "totem {\n  key: (not shown)\n  keyfile: /etc/corosync/authkey\n  Secret:(not shown)\n}\nkey:   \n"
    )


def test_a_lock_that_was_left_is_returned_also_by_a_failure(
    run_module: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = pve_lock.Kept("/etc/pve/priv/lock/file-corosync_conf", "Permission denied", 1, 2)
    pve_lock._note(kept, tmp_path)
    noted = pve_lock.noted
    monkeypatch.setattr(pve_lock, "noted", lambda root=tmp_path: noted(root))
    monkeypatch.setattr(corosync_recover, "carry_out", lambda *_: {"changed": True, "before": "", "after": ""})
    arguments: dict[str, Any] = {"step": "publish", "text": "totem {\n}\n"}
    result = run_module("corosync_recover", **arguments)
    assert result["lock_kept"] == [kept.shown()] and kept.path in str(result["warnings"]), result

    def fails(*_: Any) -> dict[str, Any]:
        raise PveguardError("it has not arrived")

    monkeypatch.setattr(corosync_recover, "carry_out", fails)
    result = run_module("corosync_recover", **arguments)
    assert result["failed"] and result["lock_kept"] == [kept.shown()], result
    # The next run of any playbook knows of it by the facts of the node.
    assert node_facts._locks_kept(tmp_path) == [kept.shown()] and node_facts._locks_kept(tmp_path / "none") == []
