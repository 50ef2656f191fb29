# SPDX-License-Identifier: Apache-2.0
"""A daemon that is not known: what is not understood is told as unknown, never as nothing, and never taken for healthy."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.findings import UNKNOWN, Finding
from ansible.module_utils.pveguard.cluster import assess, plan
from ansible.module_utils.pveguard.pmxcfs import members as members_file
from ansible.module_utils.pveguard.pmxcfs import pmxcfs
from ansible.module_utils.pveguard.report import report_page, report_summary, report_table
from ansible.module_utils.pveguard.writes import pmxcfs_writes

from tests.assess.test_assess import node as assessed
from tests.plan.test_plan import node as planned
from tests.served import UNNAMED, serve
from tests.write_report import sample

NEWER = (
    "ALTER TABLE tree ADD COLUMN xattr BLOB",
    "CREATE TABLE locks (id INTEGER)",
    "CREATE INDEX by_parent ON tree(parent, name)",
    "PRAGMA user_version = 2",
    "ALTER TABLE tree RENAME TO files",
    "CREATE VIEW v AS SELECT 1",
)


def served(root: Path, sql: str = "", members: Any = UNNAMED) -> dict[str, Any]:
    serve(root, members=members, database={"nodes/pve1/lxc/101.conf": "arch: amd64\n"})
    if sql:
        database = sqlite3.connect(root / "var/lib/pve-cluster/config.db")
        database.execute(sql)
        database.close()
    return pmxcfs.collect(root)


def report(facts: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    known = sample.facts("pve1")
    node = {**known, "pmxcfs": {**known["pmxcfs"], **facts}}
    entry = sample.entry("pve1", node=node)
    return report_table.build({"pve1": entry}, sample.NOW), report_summary.findings(entry, sample.NOW)


@pytest.mark.parametrize("sql", NEWER)
def test_a_schema_that_is_not_known(tmp_path: Path, sql: str) -> None:
    facts = served(tmp_path, sql)
    assert "its schema is not known to this version of pveguard" in facts["error"] and "config.db" in facts["error"]
    keys = ("root_version", "tree_sha256", "guests", "storage", "users", "has_corosync_conf", "storages", "extra_users")
    assert {key: facts[key] for key in keys} == dict.fromkeys(keys), "not nothing: unknown"
    assert facts["database_bytes"] > 0

    found = assess.findings(assessed(pmxcfs=facts), {"action": "adopt", "reason": "x"})
    texts = {each.text: each.severity for each in found}
    assert texts[facts["error"]] == UNKNOWN
    (held,) = (text for text in texts if text.startswith("/etc/pve is mounted"))
    assert "what it holds is not known" in held and texts[held] == UNKNOWN and "guest" not in held

    hosts = {"a": planned("c"), "b": planned(**facts)}
    plans = plan.cluster_plan({name: {"cluster": "c", "node": value} for name, value in hosts.items()}, list(hosts), None)
    assert plans["b"]["action"] == "refuse" and "a database that is not understood" in plans["b"]["reason"]

    made, findings = report(facts)
    assert report_summary.verdict(findings) == UNKNOWN
    assert "schema is not known" in report_table.render(made) and "schema is not known" in report_page.page(made)


@pytest.mark.parametrize(
    "members", [{"name": "pve1"}, {**UNNAMED, "peers": ["pve2"]}, {**UNNAMED, "cluster": {"quorum": "yes"}}, "[]"]
)
def test_members_that_are_not_understood(tmp_path: Path, members: Any) -> None:
    facts = served(tmp_path, members=members)
    assert ".members is not as it is known" in facts["error"] and not facts["writable"] and facts["quorate"] is None
    _, findings = report(facts)
    assert report_summary.verdict(findings) == UNKNOWN
    done = type("Done", (), {"ok": True, "stdout": members if isinstance(members, str) else json.dumps(members)})
    with pytest.raises(PveguardError, match="not as it is known"):
        members_file.read("/etc/pve", lambda *_, **__: done)  # type: ignore[arg-type,return-value]
    names = pmxcfs_writes.node_names(str(tmp_path / "var/lib/pve-cluster/config.db"), "/etc/pve", lambda *_, **__: done)  # type: ignore[arg-type,return-value]
    assert names.of(1) is None


def test_a_cluster_of_which_the_daemon_does_not_say_whether_it_has_quorum() -> None:
    facts = {**assessed()["pmxcfs"], "quorate": None, "error": "/etc/pve/.members is not as it is known (x)"}
    texts = [each.text for each in assess.findings(assessed(pmxcfs=facts), {"action": "adopt", "reason": "x"})]
    assert any("whether it has quorum is not known" in text for text in texts)
    assert not any("no quorum" in text for text in texts)


@pytest.mark.parametrize("sql", NEWER)
def test_what_it_wrote_is_not_counted(tmp_path: Path, sql: str) -> None:
    database = sqlite3.connect(tmp_path / "config.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL").fetchone()
    database.execute(
        "CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, parent INTEGER NOT NULL, version INTEGER NOT NULL, "
        "writer INTEGER NOT NULL, mtime INTEGER NOT NULL, type INTEGER NOT NULL, name TEXT NOT NULL, data BLOB)"
    )
    database.execute("INSERT INTO tree VALUES (0, 0, 5, 1, 0, 8, '__version__', NULL)")
    database.execute(sql)
    path = str(tmp_path / "config.db")
    assert pmxcfs_writes.root_version(path) is None
    _, writes = pmxcfs_writes.observe(0.1, store=str(tmp_path), database=path, run=lambda *_, **__: None)  # type: ignore[arg-type,return-value]
    assert writes["transactions"] is None is writes["lrm_status_transactions_per_minute"]
    assert any("schema is not known" in note for note in writes["notes"])
    database.close()

