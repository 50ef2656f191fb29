# SPDX-License-Identifier: Apache-2.0
"""What a former release left on a node's disk restores, is carried on, and goes back: store, units, settings, placeholder.

``former/release.tar.xz`` is made by that release's own program, see ``former/make.py``.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import node_program
from ansible.module_utils.pveguard.state.program import PVE_STATE

from .conftest import Node

ARCHIVE = Path(__file__).parent / "former/release.tar.xz"


def table(path: Path) -> list[tuple[Any, ...]]:
    """Rows of a database file and its log, read the plain way, from a copy in memory."""
    source, copy = sqlite3.connect(path), sqlite3.connect(":memory:")
    source.backup(copy)
    source.close()
    rows = copy.execute(
        "SELECT inode,parent,version,writer,mtime,type,hex(CAST(name AS BLOB)),"
        "CASE WHEN data IS NULL THEN NULL ELSE hex(data) END FROM tree ORDER BY inode"
    ).fetchall()
    copy.close()
    return rows


def served(node: Node) -> list[tuple[Any, ...]]:
    """What the daemon of that release served last, noise left out."""
    found = []
    for *fields, name, data in json.loads((node.root / "expected.json").read_text()):
        found.append((*fields, name.upper(), data and data.upper()))
    assert b"notes-\xff.txt".hex().upper() in {row[6] for row in found}
    return found


@pytest.fixture
def former(node: Node, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node that ran the former release when its power was cut, with this version of the program."""
    node.live.rmdir()
    with tarfile.open(ARCHIVE) as archive:
        # Debian 12's Python 3.11.2 is older than the filter.
        archive.extractall(node.root, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    node.beneath.rename(node.live)
    assert node.drop_in and not node.ram
    monkeypatch.setattr(node.ps, "node_name", lambda: "pve1")
    return node


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def booted(node: Node, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert node.boot_restore() == 0
    result = answer(capsys)
    assert node.start_daemon()
    return result


def test_its_store_passes_verification(ps: ModuleType, former: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert former.command("verify", "--json") == 0
    checks = answer(capsys)["checks"]
    assert len(checks) == 6 and "replica" in checks and not any(checks.values())
    assert former.command("list", "--json") == 0
    listed = answer(capsys)["generations"]
    assert [g["root_version"] for g in listed] == sorted((g["root_version"] for g in listed), reverse=True)
    assert {g["reason"] for g in listed} >= {"first save", "adopt", "change 0", "change 1", "change 2"}
    assert all(g["lineage"] == 1 and g["restorable"] is not False for g in listed)


def test_its_settings_are_read(ps: ModuleType, former: Node) -> None:
    config = ps.Config.load(former.paths)
    assert (config.rpo, config.keep, config.deadline) == (3.0, 9, 5.0)


def test_its_placeholder_is_known(ps: ModuleType, former: Node) -> None:
    assert ps.is_placeholder(former.paths.live_db)
    # What it tells an operator to do is still understood.
    told = (former.live / "config.db").read_text()
    assert "pve-state retire" in told and ps.parser().parse_args(["retire"]).function is ps.cmd_disable


def test_its_replica_is_restored_with_its_log(ps: ModuleType, former: Node, capsys: pytest.CaptureFixture[str]) -> None:
    result = booted(former, capsys)
    assert result["restored"] and result["source"] == "replica" and not result["clean"]
    assert result["advance_to"] > result["root_version"]
    assert table(former.live / "config.db") == served(former)


def test_its_history_is_carried_on(ps: ModuleType, former: Node, capsys: pytest.CaptureFixture[str]) -> None:
    booted(former, capsys)
    former.w.write("datacenter.cfg", b"keyboard: de\n")
    assert former.command("save", "--json", "--generation", "--reason", "upgraded") == 0
    result = answer(capsys)
    assert result["lineage"] == 1 and result["rows_changed"] >= 1 and result["rescued"] is None
    assert former.command("list", "--json") == 0
    listed = answer(capsys)["generations"]
    assert listed[0]["reason"] == "upgraded" and {g["lineage"] for g in listed} == {1} and len(listed) == 6
    former.power_cut()
    result = booted(former, capsys)
    assert result["restored"] and former.w.find("datacenter.cfg") is not None


def test_one_of_its_generations_is_restored(ps: ModuleType, former: Node, capsys: pytest.CaptureFixture[str]) -> None:
    booted(former, capsys)
    former.stop_daemon()
    name = next(g.name for g in ps.generations(former.paths) if g.manifest["reason"] == "change 0")
    assert former.command("restore", "--json", "--generation", name, "--no-start") == 0
    assert answer(capsys)["root_version"] == 16
    assert former.start_daemon() and former.w.find("firewall/0.fw") is not None
    assert former.w.find("firewall/2.fw") is None


def test_it_goes_back_to_disk(ps: ModuleType, former: Node, capsys: pytest.CaptureFixture[str]) -> None:
    booted(former, capsys)
    former.w.write("datacenter.cfg", b"keyboard: de\n")
    rows = table(former.live / "config.db")
    assert former.command("disable", "--json", "--connection", "") == 0
    assert answer(capsys)["source"] == "ram"
    assert not former.drop_in and not former.ram and not ps.is_placeholder(former.paths.live_db)
    assert table(former.live / "config.db") == rows


def test_it_goes_back_to_disk_with_its_ram_lost(ps: ModuleType, former: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert former.command("disable", "--json", "--connection", "", "--force") == 0
    assert answer(capsys)["source"] == "replica"
    assert table(former.live / "config.db") == served(former)


def commands(unit: Path) -> list[tuple[str, str]]:
    """``[(Exec..., command line)]`` of a unit."""
    lines = unit.read_text().replace("\\\n", "").splitlines()
    return [(key, text) for key, _, text in (line.partition("=") for line in lines) if key.startswith("Exec")]


def test_its_units_start_this_version(ps: ModuleType, former: Node, tmp_path: Path) -> None:
    """Power may be cut between the program and the units that the role writes: the former ones must do."""
    node_program.install(PVE_STATE, tmp_path)
    (tmp_path / "run/pveguard").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "run/pveguard")}
    folder = former.root / "etc/systemd/system"
    called = []
    for unit in (ps.STATE_UNIT, ps.WATCH_UNIT):
        for key, command in commands(folder / unit):
            for path in ("/usr/local/sbin/pve-state", "/run/pveguard"):
                command = command.replace(path, f"{tmp_path}{path}")
            argv = shlex.split(command.replace("/usr/bin/python3", sys.executable))
            # Only whether the program starts and knows the command.
            argv += ["--help"] if key != "ExecStartPre" else []
            done = subprocess.run(argv, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, (key, argv, done.stderr)
            called += [argv[-2]] if key != "ExecStartPre" else []
    assert called == ["restore", "final-save", "watch"]


def test_its_drop_in_is_the_one_that_is_in_use(former: Node) -> None:
    assert Path(former.paths.drop_in_source).read_text() == Path(former.paths.drop_in).read_text()
