# SPDX-License-Identifier: Apache-2.0
"""What differs between a kept state and now: the direction, what is hidden, and that nothing is changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Node, table


@pytest.fixture
def changed_node(ram_node: Node) -> Node:
    """Since the generation: one file changed, one removed, one added, and noise."""
    w = ram_node.w
    w.write("corosync.conf", b"totem {\n  config_version: 3\n  token: 3000\n}\n")
    w.write("firewall/cluster.fw", b"[OPTIONS]\nenable: 1\n")
    assert ram_node.command("save", "--generation", "--reason", "before", "--json") == 0
    w.write("storage.cfg", b"dir: local\n\tcontent iso\n")
    w.delete("nodes/pve1/lxc/101.conf")
    w.write("datacenter.cfg", b"keyboard: de\n")
    w.write("nodes/pve1/lrm_status", b"another beat")
    w.write("priv/lock/x", b"")
    w.write("user.cfg.tmp.12", b"half")
    return ram_node


def show(node: Node, capsys: pytest.CaptureFixture[str], *argv: str, rc: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert node.command("show", "--json", *argv) == rc
    return dict(json.loads(capsys.readouterr().out))


def text(node: Node, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert node.command("show", *argv) == 0
    return capsys.readouterr().out


def by_path(result: dict[str, Any]) -> dict[str, Any]:
    return {entry["path"]: entry for entry in result["files"]}


def test_the_direction_is_that_of_a_restore(
    ps: ModuleType, changed_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    result = show(changed_node, capsys, "latest")
    assert result["now"] == {"source": "live", "version": changed_node.w.version}
    assert result["generation"]["reason"] == "join" and result["generation"]["name"]
    files = by_path(result)
    assert {path: (e["change"], e["restoring"]) for path, e in files.items()} == {
        "datacenter.cfg": ("added", "remove"),
        "nodes/pve1/lxc/101.conf": ("removed", "bring back"),
        "storage.cfg": ("changed", "change"),
    }
    storage = files["storage.cfg"]
    assert (storage["bytes_then"], storage["bytes_now"]) == (11, 24)
    assert storage["version_now"] > storage["version_then"] and storage["writer_now"] == 1
    assert storage["mtime_then"] < storage["mtime_now"]
    # What - shows is there now and goes.
    assert storage["diff"].splitlines()[3:] == [" dir: local", "-\tcontent iso"]
    assert "\n-keyboard: de\n" in files["datacenter.cfg"]["diff"]
    assert files["datacenter.cfg"]["diff"].splitlines()[1] == "+++ /dev/null\tthen"
    assert "\n+hostname: b\n" in files["nodes/pve1/lxc/101.conf"]["diff"]
    assert files["nodes/pve1/lxc/101.conf"]["writer_now"] is None

    out = text(changed_node, capsys, "latest")
    order = [
        out.index(line)
        for line in (
            "  remove      datacenter.cfg",
            "  change      storage.cfg",
            "  bring back  nodes/pve1/lxc",
        )
    ]
    assert order == sorted(order)
    assert "lrm_status" not in out and "tmp.12" not in out and "priv/lock" not in out


def test_a_restore_does_what_show_said(
    ps: ModuleType, changed_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node = changed_node
    files = by_path(show(node, capsys, "latest"))
    name = ps.find_generation(node.paths, "latest").name
    host = Path(node.paths.corosync_conf)
    host.parent.mkdir(parents=True, exist_ok=True)
    host.write_bytes(b"totem {\n  cluster_name: x\n  config_version: 3\n}\n")
    node.stop_daemon()
    assert node.command("restore", "--generation", name, "--peers-down", "--json") == 0
    assert show(node, capsys, name)["files"] == []
    contents = {row[6]: row[7] for row in table(node.live / "config.db").values()}
    assert (
        "datacenter.cfg" not in contents
        and len(contents["storage.cfg"]) == files["storage.cfg"]["bytes_then"]
    )
    assert contents["101.conf"] == b"hostname: b\n"


def test_nothing_differs(changed_node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert changed_node.command("save", "--json") == 0
    assert show(changed_node, capsys, "replica")["files"] == []
    assert "would change nothing" in text(changed_node, capsys, "replica")
    assert "nothing of /etc/pve/user.cfg" in text(changed_node, capsys, "latest", "user.cfg")


def test_the_replica_as_then_and_as_now(
    ps: ModuleType, changed_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    # The last save was at the generation: it lacks the same changes.
    assert set(by_path(show(changed_node, capsys, "replica"))) == {
        "datacenter.cfg",
        "nodes/pve1/lxc/101.conf",
        "storage.cfg",
    }
    before = Path(changed_node.paths.replica).read_bytes()
    changed_node.stop_daemon()
    result = show(changed_node, capsys, "latest")
    assert result["now"]["source"] == "replica" and result["files"] == []
    assert "the daemon does not run" in text(changed_node, capsys, "latest")
    assert Path(changed_node.paths.replica).read_bytes() == before
    os.unlink(changed_node.paths.replica)
    assert "no replica" in show(changed_node, capsys, "latest", rc=ps.EXIT_REFUSED)["error"]


@pytest.mark.parametrize("given", ["storage.cfg", "/etc/pve/storage.cfg", "./storage.cfg"])
def test_one_file(changed_node: Node, capsys: pytest.CaptureFixture[str], given: str) -> None:
    assert list(by_path(show(changed_node, capsys, "latest", given))) == ["storage.cfg"]


def test_a_directory_and_the_links_of_this_node(
    ps: ModuleType, changed_node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Name:
        nodename = "pve1"

    monkeypatch.setattr(ps.os, "uname", lambda: Name)
    for given in ("nodes", "nodes/pve1/lxc/", "lxc", "local", "lxc/101.conf", "/etc/pve/local/lxc/101.conf"):
        assert list(by_path(show(changed_node, capsys, "latest", given))) == ["nodes/pve1/lxc/101.conf"]
    assert show(changed_node, capsys, "latest", "firewall")["files"] == []


@pytest.mark.parametrize("given", ["../shadow", "/etc/passwd", "a/../../b"])
def test_a_path_outside_is_refused(
    ps: ModuleType, changed_node: Node, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    assert "below /etc/pve" in show(changed_node, capsys, "latest", given, rc=ps.EXIT_USAGE)["error"]


def test_unknown_names_are_refused(
    ps: ModuleType, changed_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "neither in" in show(changed_node, capsys, "latest", "no.cfg", rc=ps.EXIT_REFUSED)["error"]
    assert "pve-state list" in show(changed_node, capsys, "1999", rc=ps.EXIT_REFUSED)["error"]
    assert "more than one" in show(changed_node, capsys, "2", rc=ps.EXIT_REFUSED)["error"]
    name = ps.find_generation(changed_node.paths, "latest").name
    assert show(changed_node, capsys, name[:-3])["generation"]["name"] == name


@pytest.mark.parametrize(
    "path",
    [
        "priv/authorized_keys",
        "priv/token.cfg",
        "nodes/pve1/priv/ssh_known_hosts",
        "nodes/pve1/pve-ssl.key",
        "authkey.pub",
        "shadow.cfg",
        "tfa.cfg",
        "x/api-token.txt",
        "priv/storage/nas.pw",
    ],
)
def test_secrets_are_shown_by_size_and_hash_only(
    changed_node: Node, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    changed_node.w.write(path, b"TOP-SECRET-1\n")
    assert changed_node.command("save", "--generation", "--reason", "with it", "--json") == 0
    changed_node.w.write(path, b"TOP-SECRET-22\n")
    result = show(changed_node, capsys, "latest")
    entry = by_path(result)[path]
    assert entry["secret"] and entry["diff"] is None and (entry["bytes_then"], entry["bytes_now"]) == (13, 14)
    assert entry["sha256_then"] != entry["sha256_now"]
    out = text(changed_node, capsys, "latest")
    assert "TOP-SECRET" not in out + json.dumps(result) and entry["sha256_now"] in out
    shown = by_path(show(changed_node, capsys, "latest", path, "--secrets"))[path]["diff"]
    assert "-TOP-SECRET-22\n+TOP-SECRET-1\n" in shown


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("nodes/pve1/qemu-server/100.conf", "cipassword: {}"),
        ("domains.cfg", "\tclient-key {}"),
        ("sdn/dns.cfg", "\tkey {}"),
        ("status.cfg", "\ttoken {}"),
        ("datacenter.cfg", "http_proxy: http://me:{}@proxy:3128"),
    ],
)
def test_passwords_in_ordinary_files_are_masked_but_their_change_is_seen(
    changed_node: Node, capsys: pytest.CaptureFixture[str], path: str, line: str
) -> None:
    changed_node.w.write(path, f"name: a\n{line.format('OLD-PASS')}\n".encode())
    assert changed_node.command("save", "--generation", "--reason", "with it", "--json") == 0
    changed_node.w.write(path, f"name: a\n{line.format('NEW-PASS')}\n".encode())
    diff = by_path(show(changed_node, capsys, "latest"))[path]["diff"]
    assert "PASS" not in diff
    assert f"-{line.format('(hidden 1)')}\n+{line.format('(hidden 2)')}\n" in diff
    assert "NEW-PASS" in by_path(show(changed_node, capsys, "latest", "--secrets"))[path]["diff"]


def test_a_token_timeout_and_a_user_s_token_are_no_secrets(
    changed_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    changed_node.w.write("corosync.conf", b"totem {\n  config_version: 4\n  token: 5000\n}\n")
    changed_node.w.write("user.cfg", b"token:root@pam!a:0:1::\n")
    files = by_path(show(changed_node, capsys, "latest"))
    assert "-  token: 5000\n" in files["corosync.conf"]["diff"]
    assert "-token:root@pam!a:0:1::\n" in files["user.cfg"]["diff"]


def test_binary_files_strange_names_and_terminal_commands(
    changed_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    w = changed_node.w
    w.write("blob", b"\x00\xff")
    w.write("odd", b"latin \xe9\n")
    w.write("evil.cfg", b"\x1b]0;owned\x07 \xc2\x9b31m no end")
    w.write("two\nlines", b"x\n")
    v = w.version + 1
    w._commit(("INSERT INTO tree VALUES(?,0,?,1,1,8,CAST(? AS TEXT),'')", (v, v, b"caf\xe9")))
    files = by_path(show(changed_node, capsys, "latest"))
    assert files["blob"]["binary"] and files["odd"]["binary"] and files["blob"]["diff"] is None
    assert files["evil.cfg"]["diff"].endswith("no end\n\\ No newline at end of file\n")
    assert "caf\udce9" in files
    out = text(changed_node, capsys, "latest")
    assert "\x1b" not in out and "\x07" not in out and "\x9b" not in out and r"\x1b]0;owned" in out
    assert "blob: binary" in out and r"remove      two\nlines" in out and r"caf\udce9" in out


def test_empty_directories_and_a_file_that_became_one(
    changed_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    w = changed_node.w
    w.mkdir("sdn/empty")
    w.write("sdn/full/zones.cfg", b"")
    w.delete("firewall/cluster.fw")
    w.mkdir("firewall/cluster.fw")
    files = show(changed_node, capsys, "latest")["files"]
    assert [
        (e["path"], e["type"], e["change"]) for e in files if not e["path"].startswith(("n", "s", "d"))
    ] == [
        ("firewall/cluster.fw", "file", "removed"),
        ("firewall/cluster.fw", "directory", "added"),
    ]
    added = {e["path"]: e["type"] for e in files if e["change"] == "added"}
    assert added["sdn/empty"] == "directory" and added["sdn/full/zones.cfg"] == "file"
    assert "sdn" not in added and "sdn/full" not in added
    assert "  remove      sdn/empty/  (now version" in text(changed_node, capsys, "latest")


def test_mtimes_that_no_calendar_knows(changed_node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    changed_node.w.db.execute("UPDATE tree SET mtime=? WHERE name='storage.cfg'", (1 << 62,))
    assert by_path(show(changed_node, capsys, "latest"))["storage.cfg"]["mtime_now"] == str(1 << 62)


def test_a_damaged_generation_is_not_shown(
    ps: ModuleType, changed_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    g = ps.generations(changed_node.paths)[0]
    with open(g.db, "r+b") as handle:
        handle.truncate(4096)
    assert g.name in show(changed_node, capsys, g.name, rc=ps.EXIT_DAMAGED)["error"]


def test_a_state_from_before_the_join_says_that_a_restore_refuses_it(
    ps: ModuleType, changed_node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = Path(changed_node.paths.corosync_conf)
    conf.parent.mkdir(parents=True)
    conf.write_text("totem {\n  config_version: 3\n}\n")
    assert show(changed_node, capsys, "latest")["refused"] is None
    oldest = ps.generations(changed_node.paths)[-1].name
    assert "member of a cluster" in show(changed_node, capsys, oldest)["refused"]
    assert "'pve-state restore' does not take it" in text(changed_node, capsys, oldest)


def test_the_live_database_is_let_go(changed_node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    show(changed_node, capsys, "latest")
    busy, log, done = changed_node.w.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert (busy, log) == (0, 0)
