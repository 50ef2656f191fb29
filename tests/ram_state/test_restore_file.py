# SPDX-License-Identifier: Apache-2.0
"""One file brought back: only where it is safe, never without the former content kept, never beneath the mount."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Node, table, unconnected


class Pve:
    """A node whose /etc/pve shows what is in the database, as far as a test puts it there by this."""

    def __init__(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        self.node, self.capsys = node, capsys
        self.folder = Path(node.paths.pve)

    def put(self, path: str, data: bytes) -> None:
        self.node.w.write(path, data)
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(data)

    def gone(self, path: str) -> None:
        self.node.w.delete(path)
        target = self.folder / path
        if target.is_dir():
            target.rmdir()
        else:
            target.unlink()

    def files(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()
        }

    def __call__(self, *argv: str, rc: int = 0) -> dict[str, Any]:
        self.capsys.readouterr()
        assert self.node.command("restore-file", "--json", *argv) == rc
        return dict(json.loads(self.capsys.readouterr().out))


@pytest.fixture
def pve(ps: ModuleType, ram_node: Node, capsys: pytest.CaptureFixture[str]) -> Pve:
    """A generation with two guests and a firewall directory, and changes since."""
    made = Pve(ram_node, capsys)
    for path, data in (
        ("storage.cfg", b"dir: local\n"),
        ("nodes/pve1/qemu-server/100.conf", b"name: a\n"),
        ("nodes/pve1/lxc/101.conf", b"hostname: b\n"),
        ("firewall/cluster.fw", b"[OPTIONS]\n"),
        ("firewall/100.fw", b"[RULES]\n"),
        ("corosync.conf", b"totem {\n  config_version: 3\n}\n"),
        ("priv/token.cfg", b"OLD-SECRET\n"),
    ):
        made.put(path, data)
    assert ram_node.command("save", "--generation", "--json") == 0
    made.put("storage.cfg", b"dir: local\n\tcontent iso\n")
    made.gone("nodes/pve1/lxc/101.conf")
    made.gone("firewall/100.fw")
    made.put("firewall/new.fw", b"later\n")
    made.put("priv/token.cfg", b"NEW-SECRET\n")
    return made


def test_a_file_comes_back_and_what_was_there_is_kept(ps: ModuleType, pve: Pve) -> None:
    before = pve.files()
    result = pve("latest", "storage.cfg", "--yes")
    assert result["changed"] and [e["path"] for e in result["files"]] == ["storage.cfg"]
    assert pve.files() == {**before, "storage.cfg": b"dir: local\n"}
    kept = ps.find_generation(pve.node.paths, result["kept"])
    assert kept.problems() == [] and "restore-file" in kept.manifest["reason"]
    contents = {row[6]: row[7] for row in table(Path(kept.db)).values()}
    assert contents["storage.cfg"] == b"dir: local\n\tcontent iso\n"
    assert "lrm_status" not in contents and "-\tcontent iso\n" in result["files"][0]["diff"]


def test_a_deleted_file_comes_back(pve: Pve) -> None:
    before = pve.files()
    assert pve("latest", "/etc/pve/nodes/pve1/lxc/101.conf", "--yes")["changed"]
    assert pve.files() == {**before, "nodes/pve1/lxc/101.conf": b"hostname: b\n"}


def test_a_directory_comes_back_and_later_files_stay(pve: Pve) -> None:
    before = pve.files()
    pve.gone("firewall/cluster.fw")
    result = pve("latest", "firewall", "--yes")
    assert {e["path"] for e in result["files"]} == {"firewall/100.fw", "firewall/cluster.fw"}
    assert pve.files() == {**before, "firewall/100.fw": b"[RULES]\n"}


def test_the_same_file_is_left_alone(ps: ModuleType, pve: Pve) -> None:
    generations = len(ps.generations(pve.node.paths))
    inode = (pve.folder / "firewall/cluster.fw").stat().st_ino
    result = pve("latest", "firewall/cluster.fw")
    assert result["changed"] is False and result["files"] == []
    assert (pve.folder / "firewall/cluster.fw").stat().st_ino == inode
    assert len(ps.generations(pve.node.paths)) == generations


def refused(pve: Pve, *argv: str, rc: int = 3) -> str:
    before = pve.files()
    error = str(pve(*argv, rc=rc)["error"])
    assert pve.files() == before
    assert not list(pve.folder.rglob("*.tmp.*"))
    return error


def test_no_confirmation_no_change(ps: ModuleType, pve: Pve, monkeypatch: pytest.MonkeyPatch) -> None:
    generations = len(ps.generations(pve.node.paths))
    assert "--yes" in refused(pve, "latest", "storage.cfg")
    monkeypatch.setattr(ps.sys.stdin, "isatty", lambda: True, raising=False)
    for answer, rc in (("no", 3), ("", 3), ("y", 3), ("yes", 0)):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        before = pve.files()
        pve.capsys.readouterr()
        assert pve.node.command("restore-file", "latest", "storage.cfg") == rc
        out = pve.capsys.readouterr().out
        assert "-\tcontent iso" in out and "change      storage.cfg" in out
        assert (pve.files() != before) is (rc == 0)
        assert len(ps.generations(pve.node.paths)) == generations + (rc == 0)


def test_secrets_are_not_shown_when_asking(
    ps: ModuleType, pve: Pve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ps.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "yes")
    assert pve.node.command("restore-file", "latest", "priv/token.cfg") == 0
    assert "SECRET" not in capsys.readouterr().out
    assert pve.files()["priv/token.cfg"] == b"OLD-SECRET\n"


def test_corosync_conf_is_refused_with_the_way(pve: Pve) -> None:
    pve.put("corosync.conf", b"totem {\n  config_version: 4\n}\n")
    error = refused(pve, "latest", "corosync.conf", "--yes")
    assert "config_version" in error and "corosync.conf.new" in error


def test_a_guest_that_is_elsewhere_is_refused(pve: Pve) -> None:
    pve.put("nodes/pve2/qemu-server/101.conf", b"name: moved\n")
    assert "/etc/pve/nodes/pve2/qemu-server/101.conf" in refused(
        pve, "latest", "nodes/pve1/lxc/101.conf", "--yes"
    )
    # A directory with one such guest brings nothing back.
    pve.put("nodes/pve1/qemu-server/100.conf", b"name: changed\n")
    assert "guest 101" in refused(pve, "latest", "nodes/pve1", "--yes")


def test_a_locked_guest_is_refused_and_a_lock_that_comes_back_is_named(ps: ModuleType, pve: Pve) -> None:
    conf = "nodes/pve1/qemu-server/100.conf"
    pve.put(conf, b"name: x\nlock: backup\n\n[snap]\nlock: other\n")
    assert "locked (backup)" in refused(pve, "latest", conf, "--yes")
    assert pve.node.command("save", "--generation", "--json") == 0
    pve.put(conf, b"name: y\n\n[snap]\nlock: other\n")
    result = pve("latest", conf, "--yes")
    assert result["changed"] and "comes back locked (backup)" in result["warnings"][0]
    assert "qm unlock 100" in result["message"]


def test_a_missing_directory_needs_a_word(pve: Pve) -> None:
    pve.gone("nodes/pve1/lxc")
    assert "--parents" in refused(pve, "latest", "nodes/pve1/lxc/101.conf", "--yes")
    result = pve("latest", "nodes/pve1/lxc/101.conf", "--yes", "--parents")
    assert result["directories"] == ["nodes/pve1/lxc"]
    assert pve.files()["nodes/pve1/lxc/101.conf"] == b"hostname: b\n"


def test_a_file_and_a_directory_are_not_exchanged(pve: Pve) -> None:
    pve.gone("storage.cfg")
    pve.node.w.mkdir("storage.cfg")
    assert "is a directory now" in refused(pve, "latest", "storage.cfg", "--yes")
    for path in ("firewall/cluster.fw", "firewall/new.fw", "firewall"):
        pve.gone(path)
    pve.put("firewall", b"a file")
    assert "is a file now" in refused(pve, "latest", "firewall", "--yes")
    assert "is a file now" in refused(pve, "latest", "firewall/100.fw", "--yes")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.cfg", "is not in"),
        ("nodes/pve1/lrm_status", "noise"),
        ("../x", "below /etc/pve"),
        ("/etc", "below /etc/pve"),
        ("", "below /etc/pve"),
        (".", "below /etc/pve"),
    ],
)
def test_what_cannot_be_brought_back(ps: ModuleType, pve: Pve, path: str, message: str) -> None:
    rc = ps.EXIT_USAGE if message.startswith("below") else ps.EXIT_REFUSED
    assert message in refused(pve, "latest", path, "--yes", rc=rc)


@pytest.mark.parametrize("path", ["/", "/etc/pve"])
def test_everything_but_what_must_not_be_written_comes_back(ps: ModuleType, pve: Pve, path: str) -> None:
    name = ps.find_generation(pve.node.paths, "latest").name
    pve.put("corosync.conf", b"totem {\n  config_version: 4\n}\n")
    pve.put("nodes/pve2/qemu-server/101.conf", b"name: moved\n")
    pve.put("nodes/pve1/qemu-server/100.conf", b"name: a\nlock: backup\n")
    before = pve.files()
    planned = pve(name, path, "--check")
    assert planned["changed"] is False and pve.files() == before
    done = pve(name, path, "--yes")
    assert done["files"] == planned["files"] and done["left"] == planned["left"]
    assert {entry["path"] for entry in done["left"]} == {
        "corosync.conf",
        "nodes/pve1/lxc/101.conf",
        "nodes/pve1/qemu-server/100.conf",
    }
    assert pve.files() == {
        **before,
        "storage.cfg": b"dir: local\n",
        "firewall/100.fw": b"[RULES]\n",
        "priv/token.cfg": b"OLD-SECRET\n",
    }


def test_everything_from_before_the_join_is_refused_on_a_member(ps: ModuleType, pve: Pve) -> None:
    oldest = ps.generations(pve.node.paths)[-1].name
    conf = Path(pve.node.paths.corosync_conf)
    conf.parent.mkdir(parents=True)
    conf.write_text("totem {\n  config_version: 3\n}\n")
    pve.node.members.update(cluster={"name": "c", "quorate": 1}, nodelist={"pve1": {"id": 1, "online": 1}})
    assert "before this node was a member" in refused(pve, oldest, "/", "--yes")
    assert pve(oldest, "storage.cfg", "--check")["files"]


def test_everything_is_written_elsewhere(pve: Pve, tmp_path: Path) -> None:
    target = tmp_path / "all"
    pve("latest", "/", "--output", str(target))
    assert (target / "storage.cfg").read_bytes() == b"dir: local\n"
    assert (target / "nodes/pve1/lxc/101.conf").read_bytes() == b"hostname: b\n"


def test_only_on_the_mounted_file_system_with_quorum(
    ps: ModuleType, pve: Pve, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = pve.node
    node.members = {"nodename": "pve1", "version": 3, "cluster": {"quorate": 0}, "nodelist": {}}
    assert "no quorum" in refused(pve, "latest", "storage.cfg", "--yes")
    node.members = {}
    assert "does not answer" in refused(pve, "latest", "storage.cfg", "--yes")
    node.members = {"nodename": "pve1", "version": 0}
    conf = Path(node.paths.corosync_conf)
    conf.parent.mkdir(parents=True)
    conf.write_text("totem {\n  config_version: 3\n}\n")
    assert "works alone (local mode)" in refused(pve, "latest", "storage.cfg", "--yes")
    unconnected(node)
    assert "its Corosync has not run since the daemon started" in refused(
        pve, "latest", "storage.cfg", "--yes"
    )
    conf.unlink()
    monkeypatch.setattr(ps, "mounts", list)
    assert "not mounted" in refused(pve, "latest", "storage.cfg", "--yes")


def test_a_store_that_cannot_keep_the_former_content_stops_it(
    ps: ModuleType, pve: Pve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ps, "plain_copy", full)
    assert "No space" in refused(pve, "latest", "storage.cfg", "--yes", rc=ps.EXIT_STORE)


def test_a_change_while_asking_is_not_overwritten(ps: ModuleType, pve: Pve) -> None:
    # The file system shows more than what was compared: somebody wrote in between.
    (pve.folder / "storage.cfg").write_bytes(b"written meanwhile")
    assert "changed meanwhile" in refused(pve, "latest", "storage.cfg", "--yes")


def test_a_failure_half_way_says_what_was_written(
    ps: ModuleType, pve: Pve, monkeypatch: pytest.MonkeyPatch
) -> None:
    pve.put("firewall/cluster.fw", b"[OTHER]\n")
    real = os.rename

    def rename(source: str, target: str) -> None:
        if target.endswith("cluster.fw"):
            raise PermissionError(13, "Permission denied", source)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(ps.os, "rename", rename)
        patch.setattr(ps, "PASSING_SECONDS", 0)
        error = pve("latest", "firewall", "--yes", rc=ps.EXIT_ERROR)["error"]
    assert "Permission denied" in error and "written before that: firewall/100.fw." in error
    assert pve.files()["firewall/cluster.fw"] == b"[OTHER]\n" and not list(pve.folder.rglob("*.tmp.*"))


def test_a_passing_loss_of_quorum_is_outlasted(ps: ModuleType, pve: Pve, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = os.rename, [2]

    def rename(source: str, target: str) -> None:
        if target.endswith("storage.cfg") and refusals[0]:
            refusals[0] -= 1
            raise PermissionError(13, "Permission denied", source)
        real(source, target)

    monkeypatch.setattr(ps.os, "rename", rename)
    pve("latest", "storage.cfg", "--yes")
    assert refusals == [0] and pve.files()["storage.cfg"] == b"dir: local\n" and not list(pve.folder.rglob("*.tmp.*"))


def test_an_error_although_it_was_written_is_none(ps: ModuleType, pve: Pve, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(source: str, target: str) -> None:
        real(source, target)
        if target.endswith("storage.cfg"):
            raise OSError(5, "Input/output error", source)

    monkeypatch.setattr(ps.os, "rename", rename)
    monkeypatch.setattr(ps, "PASSING_SECONDS", 0)
    pve("latest", "storage.cfg", "--yes")
    assert pve.files()["storage.cfg"] == b"dir: local\n"


def test_a_file_that_was_left_half_written_is_named(ps: ModuleType, pve: Pve, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused_by_pve(real: Any) -> Any:
        def call(path: str, *rest: Any) -> Any:
            if ".tmp." in str(path) and os.path.exists(path):
                raise PermissionError(13, "Permission denied", path)
            return real(path, *rest)

        return call

    monkeypatch.setattr(ps.os, "unlink", refused_by_pve(os.unlink))
    monkeypatch.setattr(ps.os, "rename", refused_by_pve(os.rename))
    monkeypatch.setattr(ps, "PASSING_SECONDS", 0)
    error = pve("latest", "storage.cfg", "--yes", rc=ps.EXIT_REFUSED)["error"]
    assert f"storage.cfg.tmp.{os.getpid()} was left (Permission denied)" in error, error


def test_a_hanging_daemon_does_not_hang_us(ps: ModuleType) -> None:
    held = threading.Event()
    with pytest.raises(ps.NoAnswer, match="no answer"):
        ps.within(0.05, held.wait)
    held.set()
    assert ps.within(60, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        ps.within(60, lambda: 1 / 0)


def test_output_goes_elsewhere_and_only_root_can_read_it(ps: ModuleType, pve: Pve, tmp_path: Path) -> None:
    before = pve.files()
    pve.node.stop_daemon()
    old = os.umask(0)
    try:
        target = tmp_path / "corosync.old"
        assert pve("latest", "corosync.conf", "--output", str(target))["files"] == 1
        assert target.read_bytes() == b"totem {\n  config_version: 3\n}\n"
        assert target.stat().st_mode & 0o777 == 0o600
        folder = tmp_path / "all"
        assert pve("latest", "firewall", "--output", str(folder))["files"] == 2
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
            "100.fw": b"[RULES]\n",
            "cluster.fw": b"[OPTIONS]\n",
        }
        assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "100.fw").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)
    assert "exists" in pve("latest", "firewall", "--output", str(target), rc=ps.EXIT_REFUSED)["error"]
    inside = str(pve.folder / "copy")
    assert "lies on" in pve("latest", "storage.cfg", "--output", inside, rc=ps.EXIT_USAGE)["error"]
    assert pve.files() == before


def test_stdout_is_the_file_and_nothing_else(ps: ModuleType, pve: Pve) -> None:
    pve.capsys.readouterr()
    assert pve.node.command("restore-file", "latest", "priv/token.cfg", "--stdout") == 0
    assert pve.capsys.readouterr().out == "OLD-SECRET\n"
    assert pve.node.command("restore-file", "latest", "firewall", "--stdout") == ps.EXIT_USAGE
    assert pve.node.command("restore-file", "latest", "storage.cfg", "--stdout", "--json") == ps.EXIT_USAGE


def test_without_ram_state_the_former_content_is_kept_too(ps: ModuleType, pve: Pve) -> None:
    assert pve.node.command("disable", "--json", "--connection", "") == 0
    name = next(g.name for g in ps.generations(pve.node.paths) if g.manifest["reason"] != "disable")
    result = pve(name, "storage.cfg", "--yes")
    assert result["changed"] and ps.find_generation(pve.node.paths, result["kept"]).problems() == []
    # Nothing that looks like a current replica is made.
    assert not os.path.exists(pve.node.paths.replica)


def test_the_generation_in_use_is_not_pruned_by_what_is_kept(ps: ModuleType, pve: Pve) -> None:
    conf = Path(pve.node.paths.config)
    conf.write_text(json.dumps({**json.loads(conf.read_text()), "generations_keep": 5}))
    for turn in range(5):
        pve.put("user.cfg", b"%d" % turn)
        assert pve.node.command("save", "--generation", "--json") == 0
    oldest = ps.generations(pve.node.paths)[-1].name
    assert len(ps.generations(pve.node.paths)) == 5
    pve.put("user.cfg", b"not kept yet")
    assert pve(oldest, "user.cfg", "--yes")["changed"]
    assert ps.find_generation(pve.node.paths, oldest).problems() == []
