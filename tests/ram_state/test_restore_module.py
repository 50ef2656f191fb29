# SPDX-License-Identifier: Apache-2.0
"""The module that shows and restores, on the real program: truthful in check mode, nothing done that was not shown."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from ansible.module_utils.pveguard.base import ssh_login
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.state import ram_state_restore

from tests.loading import load_module

from .conftest import Node, table, without
from .test_restore_file import Pve


class Host:
    """A node on which the module runs: the program answers in this process, its unit as well."""

    def __init__(self, node: Node, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.node = node
        self.calls: list[list[str]] = []
        self.unit: list[str] = []
        monkeypatch.setattr(ram_state_restore, "PROGRAM", replace(ram_state_restore.PROGRAM, home=f"{root}/pveguard/lib"))
        monkeypatch.setattr(ram_state_restore, "run_detached", self.detached)

    def _program(self, argv: Sequence[str]) -> Result:
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with contextlib.redirect_stdout(out):
            code = self.node.command(*argv)
        out.seek(0)
        return Result(code, out.read().splitlines()[-1], "")

    def ask(self, argv: Sequence[str], timeout: float) -> Result:
        self.calls.append(list(argv))
        return self._program([*argv, "--json"])

    def detached(self, unit: str, argv: Sequence[str], deadline: float, run: Any) -> dict[str, Any]:
        assert argv[:3] == ["/usr/bin/python3", "-IS", ram_state_restore.PROGRAM.launcher] and os.path.exists(argv[2])
        self.unit = [unit, *argv[3:]]
        at = argv.index("--result")
        result = self._program([*argv[3:at], *argv[at + 2 :]])
        value: dict[str, Any] = json.loads(result.stdout)
        if "error" in value:
            raise PveguardError(value["error"])
        return value

    def look(self, **options: Any) -> dict[str, Any]:
        return ram_state_restore.look(self.options(**options), self.ask)

    def restore(self, shown: str, check: bool = False, **options: Any) -> dict[str, Any]:
        return ram_state_restore.restore(self.options(**options), shown, check, ask=self.ask)

    @staticmethod
    def options(**options: Any) -> ram_state_restore.Options:
        return ram_state_restore.Options(connection="", **options)

    def files(self) -> dict[str, bytes]:
        root = self.node.root
        found = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        return {path: data for path, data in found.items() if not path.endswith(("-shm", "-wal"))}


@pytest.fixture
def pve(ram_node: Node) -> Pve:
    """A generation and four changes since. The program's answers are read by Host."""
    made = Pve(ram_node, cast(Any, None))
    made.put("storage.cfg", b"dir: local\n")
    made.put("nodes/pve1/lxc/101.conf", b"hostname: b\n")
    made.put("priv/token.cfg", b"OLD-SECRET\n")
    assert ram_node.command("save", "--generation", "--json") == 0
    made.put("storage.cfg", b"dir: other\n")
    made.put("datacenter.cfg", b"keyboard: de\n")
    made.gone("nodes/pve1/lxc/101.conf")
    made.put("priv/token.cfg", b"NEW-SECRET\n")
    return made


@pytest.fixture
def host(pve: Pve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(pve.node, tmp_path, monkeypatch)


def rows(node: Node) -> dict[int, tuple[Any, ...]]:
    return without(table(node.live / "config.db"), node.config.noise.matches)


CHANGED = {
    "datacenter.cfg": "added",
    "nodes/pve1/lxc/101.conf": "removed",
    "priv/token.cfg": "changed",
    "storage.cfg": "changed",
}


def test_looking_and_a_dry_run_change_nothing(host: Host) -> None:
    before = host.files()
    for path in ("", "/", "storage.cfg"):
        found = host.look(generation="latest", path=path)
        assert found["refusals"] == [] and found["now"]["source"] == "live"
        dry = host.restore(found["shown"], True, generation="latest", path=path)
        assert dry["changed"] and dry["found"] == found and dry["former"] is None
    assert host.files() == before and host.unit == []


def test_the_whole_state_there_and_back(host: Host) -> None:
    new = rows(host.node)
    found = host.look(generation="latest")
    assert (found["way"], {e["path"]: e["change"] for e in found["files"]}) == ("whole", CHANGED)
    assert found["judged"]["member"] is False and "diff" not in found["files"][0]
    done = host.restore(found["shown"], generation="latest")
    assert done["changed"] and done["downtime_seconds"] >= 0
    assert done["tree_sha256"] == done["generation_tree_sha256"]
    assert rows(host.node) != new
    name = found["generation"]["name"]
    assert host.unit[:2] == ["pveguard-restore", "restore"]
    assert host.unit[host.unit.index("--generation") + 1] == name
    assert host.unit[host.unit.index("--result") + 1] == "/run/pveguard/pveguard-restore.json"
    assert "--login-fallback" in host.unit and "--peers-down" not in host.unit

    # The second time there is nothing to do.
    again = host.look(generation=name)
    assert again["files"] == [] and not host.restore(again["shown"], generation=name)["changed"]

    back = host.look(generation=done["former"])
    assert host.restore(back["shown"], generation=done["former"])["changed"]
    assert rows(host.node) == new


def test_files_through_the_file_system(host: Host, pve: Pve) -> None:
    before = pve.files()
    found = host.look(generation="latest", path="/")
    assert (found["way"], found["judged"]) == ("path", None)
    done = host.restore(found["shown"], generation="latest", path="/")
    assert done["changed"] and host.unit == []
    assert pve.files() == {
        **before,
        "storage.cfg": b"dir: local\n",
        "nodes/pve1/lxc/101.conf": b"hostname: b\n",
        "priv/token.cfg": b"OLD-SECRET\n",
    }
    assert done["former"] in [g.name for g in host.node.ps.generations(host.node.paths)]


def test_what_came_since_alone_is_no_change(host: Host) -> None:
    found = host.look(generation="latest", path="datacenter.cfg")
    assert "is not in" in found["refusals"][0]
    assert [e["change"] for e in found["files"]] == ["added"]
    with pytest.raises(PveguardError, match=r"refused, nothing was changed: .*is not in"):
        host.restore(found["shown"], generation="latest", path="datacenter.cfg")


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("path", ["", "storage.cfg"])
def test_nothing_is_done_that_was_not_shown(host: Host, pve: Pve, path: str, check: bool) -> None:
    found = host.look(generation="latest", path=path)
    pve.put("storage.cfg", b"a third text\n")
    before = host.files()
    with pytest.raises(PveguardError, match="not what was shown any more"):
        host.restore(found["shown"], check, generation="latest", path=path)
    assert host.files() == before


def test_noise_meanwhile_does_not_count(host: Host) -> None:
    found = host.look(generation="latest")
    host.node.w.write("nodes/pve1/lrm_status", b"another beat")
    assert host.restore(found["shown"], True, generation="latest")["changed"]


@pytest.mark.parametrize("check", [False, True])
def test_a_refusal_changes_nothing_in_both_modes(host: Host, check: bool) -> None:
    host.node.w.write(f"nodes/{host.node.ps.os.uname().nodename.partition('.')[0]}/qemu-server/7.conf", b"lock: backup\n")
    found = host.look(generation="latest")
    assert "is locked (backup)" in found["refusals"][0]
    before = host.files()
    with pytest.raises(PveguardError, match="refused, nothing was changed: .*is locked"):
        host.restore(found["shown"], check, generation="latest")
    assert host.files() == before


def test_what_is_there_is_unreadable(host: Host) -> None:
    """After a start that failed closed: the proposal says so, and the restore goes on."""
    host.node.power_cut()
    Path(host.node.paths.replica).write_bytes(b"garbage" * 100)
    found = host.look(generation="latest")
    assert found["files"] is None and "damaged" in found["files_error"] and found["refusals"] == []
    done = host.restore(found["shown"], generation="latest")
    assert done["changed"] and done["former"] is None and host.node.writer is not None


def test_a_resync_hands_its_switches_on(host: Host) -> None:
    found = host.look(resync=True, allow_offline_members=True, login_fallback=False)
    assert found["way"] == "resync" and "nobody to fetch" in found["refusals"][0]
    check = next(call for call in host.calls if "--resync" in call)
    assert "--allow-offline-members" in check and "--login-fallback" not in check


def test_generations_are_listed_without_a_name(host: Host) -> None:
    found = host.look()
    names = [g.name for g in host.node.ps.generations(host.node.paths)]
    assert found["way"] == "list" and [g["name"] for g in found["generations"]] == names


@pytest.mark.parametrize("path", ["", "storage.cfg"])
def test_an_unknown_generation(host: Host, path: str) -> None:
    with pytest.raises(PveguardError, match="no generation is named '1999'"):
        host.look(generation="1999", path=path)


def test_the_work_of_a_lost_connection_is_not_taken_for_ours(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = host.look(generation="latest")
    monkeypatch.setattr(ram_state_restore, "run_detached", lambda *a: {"generation": "other", "former": "x"})
    with pytest.raises(PveguardError, match=r"another restore \(other\) was still under way"):
        host.restore(found["shown"], generation="latest")


def test_the_diff_hides_secrets(host: Host) -> None:
    found = host.look(generation="latest", diffs=True)
    text = "".join(part["prepared"] for part in ram_state_restore.diff(found))
    assert "-dir: other\n+dir: local\n" in text and "-keyboard: de\n" in text
    assert "SECRET" not in text and "/etc/pve/priv/token.cfg\n-11 bytes, sha256 " in text
    found = host.look(generation="latest", path="/", diffs=True)
    assert "keyboard" not in "".join(part["prepared"] for part in ram_state_restore.diff(found)), "it stays"


def test_the_module_reports(run_module: Any, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_module("ram_state_restore")
    look, done = ram_state_restore.look, ram_state_restore.restore
    monkeypatch.setattr(ssh_login, "connection", lambda: "")
    monkeypatch.setattr(ram_state_restore, "look", lambda o, ask=None: look(o, host.ask))
    monkeypatch.setattr(ram_state_restore, "restore", lambda o, shown, check: done(o, shown, check, ask=host.ask))
    common = {"generation": "latest", "path": "storage.cfg"}
    looked = run_module(module, **common)
    assert looked["changed"] is False and looked["restore"]["files"][0]["path"] == "storage.cfg"
    assert "shown" in run_module(module, **common, state="restored")["msg"]
    common["shown"] = looked["restore"]["shown"]
    dry = run_module(module, **common, state="restored", _ansible_check_mode=True, _ansible_diff=True)
    assert dry["changed"] and "-dir: other\n+dir: local\n" in dry["diff"][0]["prepared"]
    real = run_module(module, **common, state="restored", _ansible_diff=True)
    assert real["changed"] and real["former"] and real["diff"] == dry["diff"]
    assert "excludes" in run_module(module, resync=True, path="x")["msg"]
