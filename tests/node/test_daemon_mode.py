# SPDX-License-Identifier: Apache-2.0
"""In which mode a daemon runs: by its own rules, and never "local" because something is not known."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result, run
from ansible.module_utils.pveguard.pmxcfs import daemon_mode, members, pmxcfs, pve_file, run_lock
from ansible.module_utils.pveguard.writes import write_amplification

from tests.corosync.cluster_facts import conf
from tests.served import UNNAMED, link, serve, unconnected

CONF = {"corosync.conf": conf()}
EXAMPLE = "totem {\n\tversion: 2\n\tcluster_name: debian\n}\n"


def cluster(quorate: int) -> dict[str, Any]:
    nodes = {"pve1": {"id": 1, "online": 1, "ip": "192.0.2.1"}}
    return {**UNNAMED, "cluster": {"name": "production", "nodes": 1, "quorate": quorate}, "nodelist": nodes}


def facts(root: Path) -> tuple[str, bool | None, bool, bool | None]:
    found = pmxcfs.collect(root)
    return found["mode"], found["quorate"], found["writable"], found["met_corosync"]


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ({"members": cluster(1), "database": CONF}, ("cluster", True, True, True)),
        ({"members": cluster(0), "database": CONF, "writable": False}, ("cluster", False, False, True)),
        # What the file system's own mode says is what a write would say.
        ({"members": cluster(1), "database": CONF, "writable": False}, ("cluster", True, False, True)),
        ({"database": CONF, "writable": False}, ("cluster", False, False, False)),
        ({"database": CONF, "writable": False, "options": ""}, ("cluster", False, False, False)),
        ({"database": CONF, "writable": False, "options": "-f -d"}, ("cluster", False, False, False)),
        ({"database": {"x": "1"}}, ("local", None, True, None)),
        # The file came after the start, and counts from the next one on; the same for one that is gone since.
        ({"database": CONF}, ("local", None, True, None)),
        ({"database": {"x": "1"}, "writable": False}, ("cluster", False, False, False)),
        ({"database": CONF, "options": "-l"}, ("local", None, True, None)),
        ({"database": CONF, "options": "-fl"}, ("local", None, True, None)),
        ({"database": CONF, "options": "-d --local"}, ("local", None, True, None)),
        ({"database": CONF, "options": "-l", "writable": False}, ("local", None, False, None)),
    ],
)
def test_the_mode_is_that_of_the_daemons_rules(tmp_path: Path, state: Any, wanted: Any) -> None:
    assert facts(serve(tmp_path, **state)) == wanted
    assert pmxcfs.collect(tmp_path)["error"] is None


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ({"members": None, "database": CONF}, ("cluster", None, False, None)),
        ({"members": "no JSON", "database": CONF}, ("cluster", None, False, None)),
        ({"members": "[]", "database": CONF}, ("cluster", None, False, None)),
        # As another daemon might write it.
        ({"members": "{}", "database": CONF}, ("cluster", None, False, None)),
        ({"members": {"node": "pve1", "members": [{"name": "pve1"}]}, "database": CONF}, ("cluster", None, False, None)),
        ({"members": {**UNNAMED, "members": ["pve1"]}, "database": CONF}, ("cluster", None, False, None)),
        ({"members": {**UNNAMED, "members": ["pve1"]}, "database": {"x": "1"}}, ("local", None, False, None)),
        ({"members": {**UNNAMED, "cluster": "production"}, "database": CONF}, ("cluster", None, False, None)),
        ({"members": {**cluster(1), "cluster": {"quorum": True}}, "database": CONF}, ("cluster", None, False, None)),
        ({"members": {**cluster(1), "nodelist": ["pve1"]}, "database": CONF}, ("cluster", None, False, None)),
        ({"members": {**cluster(1), "nodelist": {"pve1": 1}}, "database": CONF}, ("cluster", None, False, None)),
        ({"members": None, "database": CONF, "options": "-l"}, ("local", None, False, None)),
        ({"members": None, "database": {"x": "1"}}, ("local", None, False, None)),
        ({"members": None, "host": conf()}, ("cluster", None, False, None)),
        ({"members": None}, ("cluster", None, False, None)),
    ],
)
def test_a_daemon_that_does_not_answer_is_an_error_and_not_writable(
    tmp_path: Path, state: Any, wanted: Any
) -> None:
    assert facts(serve(tmp_path, **state)) == wanted
    assert "/etc/pve/.members" in pmxcfs.collect(tmp_path)["error"]


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ({"host": conf(), "writable": False}, ("cluster", False, False, False)),
        ({"writable": False}, ("cluster", False, False, False)),
        ({"host": conf()}, ("cluster", False, False, False)),
        ({"host": "totem {"}, ("cluster", False, False, False)),
        ({"host": EXAMPLE}, ("local", None, False, None)),
        ({}, ("local", None, False, None)),
    ],
)
def test_a_database_that_cannot_be_read_is_an_error_and_not_writable(
    tmp_path: Path, state: Any, wanted: Any
) -> None:
    serve(tmp_path, **state)
    (tmp_path / "var/lib/pve-cluster/config.db").write_bytes(b"garbage" * 1000)
    assert facts(tmp_path) == wanted
    assert "config.db" in pmxcfs.collect(tmp_path)["error"]
    # What the daemon says of its cluster needs no database.
    (tmp_path / "etc/pve/.members").write_text(json.dumps(cluster(1)))
    link(tmp_path / "etc/pve", True)
    assert facts(tmp_path) == ("cluster", True, True, True)


def test_both_errors_are_told(tmp_path: Path) -> None:
    serve(tmp_path, members="no JSON")
    (tmp_path / "var/lib/pve-cluster/config.db").write_bytes(b"garbage" * 1000)
    error = pmxcfs.collect(tmp_path)["error"]
    assert ".members" in error and "config.db" in error


def test_a_corosync_that_comes_between_the_looks(tmp_path: Path) -> None:
    """.members is read, then Corosync gives quorum, then the link is looked at: no moment of local mode."""
    unconnected(tmp_path)
    calls = []

    def racing(argv: Sequence[str], **more: Any) -> Result:
        done = run(argv, **more)
        calls.append(argv)
        link(tmp_path / "etc/pve", True)
        (tmp_path / "etc/pve/.members").write_text(json.dumps(cluster(1)))
        return done

    seen = daemon_mode.look(tmp_path, True, racing)
    assert (seen.mode, seen.quorate, len(calls)) == ("cluster", True, 2)


@pytest.mark.parametrize("options", ["", "-l"])
def test_a_second_look_that_fails_is_an_error_and_not_writable(tmp_path: Path, options: str) -> None:
    serve(tmp_path, database={"x": "1"}, options=options)
    answers = [Result(0, json.dumps(UNNAMED)), Result(1, "", "cat: Input/output error\n")]
    seen = daemon_mode.look(tmp_path, False, lambda *_, **__: answers.pop(0))
    assert (seen.mode, seen.quorate, seen.writable, seen.met_corosync) == ("local", None, False, None)
    assert seen.error == "/etc/pve/.members cannot be read: cat: Input/output error" and not answers


def test_a_daemon_that_hangs_is_asked_by_a_child_with_a_deadline(tmp_path: Path) -> None:
    unconnected(tmp_path)

    def hangs(argv: Sequence[str], **more: Any) -> Result:
        assert list(argv) == ["cat", str(tmp_path / "etc/pve/.members")] and more == {
            "timeout": members.ANSWER_S
        }
        return Result(124, "", "cat: no answer within 10 s")

    seen = daemon_mode.look(tmp_path, True, hangs)
    assert (seen.mode, seen.quorate, seen.writable) == ("cluster", None, False)
    assert seen.error == "/etc/pve/.members cannot be read: cat: no answer within 10 s"
    assert not daemon_mode.takes_writes(tmp_path, hangs)


def test_the_mount_itself_where_there_is_no_link(tmp_path: Path) -> None:
    unconnected(tmp_path)
    (tmp_path / "etc/pve/local").rmdir()
    os.chmod(tmp_path / "etc/pve", 0o555)
    assert not pve_file.has_quorum(tmp_path)
    assert facts(tmp_path) == ("cluster", False, False, False)
    os.chmod(tmp_path / "etc/pve", 0o755)
    assert pve_file.has_quorum(tmp_path)
    assert pve_file.has_quorum(tmp_path / "nothing here")


def test_another_process_under_the_daemons_old_pid_is_not_asked_for_options(tmp_path: Path) -> None:
    serve(tmp_path, options="")
    (tmp_path / "proc/4711/cmdline").write_text("ls\0-l\0")
    assert not daemon_mode.started_local(tmp_path)
    (tmp_path / "run/pve-cluster.pid").write_text("gone\n")
    assert not daemon_mode.started_local(tmp_path)


def test_the_lock_of_a_run_is_the_nodes_alone_while_the_cluster_is_not_there(tmp_path: Path) -> None:
    unconnected(tmp_path)
    before = sorted(tmp_path.joinpath("etc/pve").rglob("*"))
    taken = run_lock.acquire({"run_id": "one", "who": "ann@desk"}, root=tmp_path)
    assert taken.acquired and (tmp_path / "run/pveguard/run.lock").exists()
    assert sorted(tmp_path.joinpath("etc/pve").rglob("*")) == before
    assert run_lock.release("one", root=tmp_path)
    # With quorum it is the cluster's.
    (tmp_path / "etc/pve/.members").write_text(json.dumps(cluster(1)))
    link(tmp_path / "etc/pve", True)
    assert run_lock.acquire({"run_id": "one", "who": "ann@desk"}, root=tmp_path).acquired
    assert (tmp_path / "etc/pve/priv/lock/pveguard/holder").exists()


def test_what_a_probe_of_writes_costs_is_not_judged_by_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PveguardError, match="its Corosync has not run since the daemon started"):
        write_amplification.members(unconnected(tmp_path))
