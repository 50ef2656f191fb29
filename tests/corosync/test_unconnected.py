# SPDX-License-Identifier: Apache-2.0
"""Members whose Corosync has not run since their daemon started: in cluster mode, read-only, and without a word of the cluster.

Nothing that judges a node may take them for ones that work alone.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.findings import PROBLEM
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.cluster import (
    assess,
    corosync_compare,
    corosync_recover,
    leave,
    plan,
    recovery_plan,
)
from ansible.module_utils.pveguard.ha import ha_info
from ansible.module_utils.pveguard.pmxcfs import pmxcfs, pve_file
from ansible.module_utils.pveguard.report import report_summary, report_table
from ansible.module_utils.pveguard.state import restore_plan
from ansible.module_utils.pveguard.writes import write_amplification
from jinja2 import Environment

from tests.served import serve, unconnected

from .cluster_facts import NAME, conf, node
from .fakes import ok

ROOT = Path(__file__).resolve().parents[2]
ALONE = ("works alone", "local mode", "aside")
HOSTS = ("pve1", "pve2", "pve3")


def facts(root: Path, number: int, version: int = 99, content: str = "same", **more: Any) -> dict[str, Any]:
    """Facts of pveN in this state, those of the cluster file system as they are read from its files."""
    unconnected(root, {"storage.cfg": content})
    database = root / "var/lib/pve-cluster/config.db"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE tree SET version=? WHERE inode=0", (version,))
    connection.close()
    made = node(number, running=False, **more)
    return {**made, "pmxcfs": pmxcfs.collect(root)}


def three(
    base: Path, versions: Sequence[int] = (99, 99, 99), contents: Sequence[str] = ("a", "b", "c")
) -> dict[str, Any]:
    return {
        name: facts(base / name, number, version, content)
        for number, (name, version, content) in enumerate(zip(HOSTS, versions, contents, strict=True), 1)
    }


def planned(nodes: Any) -> dict[str, Any]:
    (found,) = recovery_plan.plan(nodes, dict.fromkeys(nodes, NAME))
    return found


def test_the_comparison_tells_nobody_to_give_up_his_state(tmp_path: Path) -> None:
    (found,) = corosync_compare.compare(three(tmp_path), dict.fromkeys(HOSTS, NAME))
    kinds = {each["id"] for each in found["findings"]}
    assert "corosync-down" in kinds and not kinds & {"cluster-local-mode", "cluster-database-lost"}
    text = "\n".join(found["lines"])
    assert not [words for words in ALONE if words in text]
    assert "corosync does not run, nor has it since the daemon started" in text
    assert "/etc/pve is read-only there" in text
    assert {row["mode"] for row in found["nodes"]} == {"cluster"}
    # They hold different content at one version: the clock would decide.
    (leader,) = [each for each in found["findings"] if each["id"] == "cluster-leader-to-be"]
    assert leader["severity"] == "problem" and sorted(leader["nodes"]) == list(HOSTS)


def test_equal_versions_with_different_content_are_not_brought_together(tmp_path: Path) -> None:
    found = planned(three(tmp_path))
    assert found["steps"] == [] and not found["healthy"]
    (text,) = [each for each in found["open"] if each.startswith("start:")]
    assert "pve1, pve2, pve3 have the same root version 99 and different content of /etc/pve" in text
    assert not [each for each in found["open"] if "alone" in each]


def test_of_different_versions_it_is_told_what_is_lost_before_it_is_asked(tmp_path: Path) -> None:
    found = planned(three(tmp_path, (99, 120, 110)))
    assert [step["word"] for step in found["steps"][:3]] == ["start:pve2", "start:pve3", "start:pve1"]
    for step in found["steps"][:2]:
        assert (
            "the state of pve2, which has the highest root version, becomes that of all when they meet"
            in step["lost"]
        )
        assert "root versions: pve1: 99; pve2: 120; pve3: 110" in step["lost"]
    assert not [words for words in ("works alone", "local mode") if words in "\n".join(found["lines"])]


def test_what_agrees_is_started_with_nothing_to_lose(tmp_path: Path) -> None:
    found = planned(three(tmp_path, contents=("a", "a", "a")))
    assert [step["kind"] for step in found["steps"][:3]] == ["start"] * 3 and found["open"] == []
    assert [step["lost"] for step in found["steps"][:3]] == [""] * 3


def test_a_false_leader_is_stopped_before_its_corosync_starts(tmp_path: Path) -> None:
    nodes = {f"pve{n}": node(n, live=(1, 2), root_version=900) for n in (1, 2)}
    nodes["pve3"] = facts(tmp_path, 3, version=1000)
    assert planned(nodes)["steps"][0]["word"] == "isolate:pve3"
    assert planned(nodes)["steps"][0]["actions"][0]["mode"] == "cluster"
    nodes["pve3"]["pmxcfs"]["root_version"] = 800
    assert [step["word"] for step in planned(nodes)["steps"]] == ["start:pve3"]


class Served:
    """A node whose cluster file system is down and comes up without Corosync when it is started."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.now, self.asked = root, 0.0, [""]
        unconnected(root)
        shutil.copyfile(root / "etc/corosync/corosync.conf", root / "etc/pve/corosync.conf")
        (root / "etc/corosync/authkey").write_bytes(b"key")
        monkeypatch.setattr(ha_info, "collect", lambda **_kwargs: {"resources": [], "watchdog_active": False})
        self.mounts = (root / "proc/self/mountinfo").read_text()

    def run(self, argv: list[str], **more: Any) -> Result:
        self.asked.append(" ".join(argv))
        if argv == ["systemctl", "start", "pve-cluster.service"]:
            (self.root / "proc/self/mountinfo").write_text(self.mounts)
        if argv[0] == "corosync-cmapctl":
            return Result(1, "", "Failed to initialize the cmap API")
        return ok()

    def do(self, step: str, **options: Any) -> dict[str, Any]:
        node = corosync_recover.Node(self.run, self.root, self.sleep, lambda: self.now, lambda _address: False)  # type: ignore[arg-type]
        return corosync_recover.carry_out(corosync_recover.Request(step, deadline_s=5, **options), False, node)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_daemon_that_starts_without_corosync_is_a_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path, monkeypatch)
    (tmp_path / "proc/self/mountinfo").write_text("")
    assert served.do("start_daemon", seen={}, max_root_version=99) == {
        "before": "",
        "after": "",
        "changed": True,
    }
    assert "systemctl start pve-cluster.service" in served.asked and served.now == 0
    # It runs: nothing to do, and nothing about working alone.
    assert not served.do("start_daemon", seen={}, max_root_version=99)["changed"]


def test_corosync_is_not_started_beside_members_that_would_be_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path, monkeypatch)
    with pytest.raises(PveguardError, match="holds root version 99, the members that run have 90"):
        served.do("start_corosync", seen={}, max_root_version=90)
    assert not [call for call in served.asked if call.startswith("systemctl")]


def test_the_mode_that_a_save_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(tmp_path, monkeypatch)
    done = served.do("save")
    manifest = yaml.safe_load((tmp_path / done["directory"].lstrip("/") / "manifest.json").read_text())
    assert manifest["mode"] == "cluster"


def test_what_the_first_run_says_of_it(tmp_path: Path) -> None:
    found = [
        each.text
        for each in assess.findings({**_whole(), **facts(tmp_path, 1)})
        if each.severity == PROBLEM
    ]
    assert any(
        "its Corosync has not run since the daemon started: /etc/pve is read-only" in text for text in found
    )
    assert any("corosync does not run on a cluster member" in text for text in found)


def _whole() -> dict[str, Any]:
    login = {"authorized_keys_depends_on_pve": False}
    return {"resolved_address": "10.0.0.1", "units": {}, "login": login}


def test_the_report_counts_it_as_without_quorum(tmp_path: Path) -> None:
    entry = report_table._cluster(facts(tmp_path, 1), None)
    assert entry["mode"] == "cluster" and entry["quorate"] is False
    (found, *_) = report_summary._cluster({"cluster": entry, "corosync": {"copies": "equal"}})
    assert found.severity == PROBLEM
    assert found.text == "no quorum: its Corosync has not run since the daemon started: /etc/pve is read-only"
    # One that has met its Corosync, which is down since.
    met = node(1, running=False)
    met["pmxcfs"]["quorate"] = False
    entry = report_table._cluster(met, None)
    (found, *_) = report_summary._cluster({"cluster": entry, "corosync": {"copies": "equal"}})
    assert found.text == "no quorum: 0 of 3 members are up and /etc/pve is read-only"
    alone = node(1, running=False, mode="local")
    assert report_table._cluster(alone, None)["quorate"] is None


def test_others_do_not_lean_on_it(tmp_path: Path) -> None:
    """Nobody joins through it, leaves by it, measures writes on it, restores beside it or fetches its state."""
    nodes = {"pve1": facts(tmp_path / "1", 1), "pve2": None}
    assert write_amplification.measuring_hosts(nodes) == []
    (peer,) = restore_plan.peers({**node(2), "hostname": "pve2"}, nodes)[:1]
    assert (peer.runs, peer.quorate) == (True, False)
    assert restore_plan._state(peer) == "daemon runs, no quorum"
    new = {**node(2, None, None, running=False, mode="local", pmxcfs={"guests": []}), "hostname": "new"}
    hosts = {"pve1": {"cluster": NAME, "node": nodes["pve1"]}, "new": {"cluster": NAME, "node": new}}
    plans = plan.cluster_plan(hosts, ["pve1", "new"])
    assert (
        plans["pve1"]["action"] == "adopt"
        and "no member of 'production' is quorate" in plans["new"]["reason"]
    )
    decision = leave.decide("pve2", {"pve1": nodes["pve1"]}, ["pve1"], dead=True)
    assert any("corosync runs on none of pve1" in text for text in decision["refusals"])


def test_ha_is_not_judged_by_what_it_shows(tmp_path: Path) -> None:
    found = ha_info.collect(run=lambda argv, **more: ok(), root=unconnected(tmp_path, {"ha/x": ""}))
    assert found["quorate"] is False


def test_its_package_is_upgraded_as_that_of_one_without_quorum(tmp_path: Path) -> None:
    """Where there was none before, nothing waits for it afterwards (pmxcfs_package.Before.quorate)."""
    assert not pve_file.has_quorum(unconnected(tmp_path))


def test_a_revert_is_refused(tmp_path: Path) -> None:
    """The condition of playbooks/revert.yml, on the facts of this state and of a node by itself."""
    plays = yaml.safe_load((ROOT / "playbooks/revert.yml").read_text())
    (task,) = [
        task for play in plays for task in play.get("tasks", []) if task["name"] == "Refuse a cluster without quorum"
    ]

    def refused(pmxcfs_facts: dict[str, Any]) -> bool:
        context = {"pveguard_node": {"node": {"pmxcfs": pmxcfs_facts}}}
        return all(Environment().compile_expression(text)(**context) for text in task["when"])

    assert refused(pmxcfs.collect(unconnected(tmp_path / "a")))
    assert not refused(pmxcfs.collect(serve(tmp_path / "b", database={"x": "1"})))


def test_the_text_of_a_member_is_not_written_without_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path, monkeypatch)
    with pytest.raises(PveguardError, match="not connected to its cluster"):
        served.do("publish", seen={}, text=conf(9), live_member_ids=[])
    assert (tmp_path / "etc/pve/corosync.conf").read_text() == conf()
