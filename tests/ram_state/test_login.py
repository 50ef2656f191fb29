# SPDX-License-Identifier: Apache-2.0
"""Which login works while /etc/pve is gone."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import Node

BLOB = base64.b64encode(b"\x00\x00\x00\x0bssh-ed25519" + b"k" * 36).decode()
OTHER = base64.b64encode(b"\x00\x00\x00\x0bssh-ed25519" + b"o" * 36).decode()
FINGERPRINT = "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(BLOB)).digest()).decode().rstrip(
    "="
)
CONNECTION = "10.0.2.2 50022 10.0.2.15 22"


@pytest.fixture
def ssh_node(ps: ModuleType, node: Node, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node as Proxmox installs it: authorized_keys is a link into /etc/pve."""
    node.start_daemon()
    ssh = node.root / "root/.ssh"
    ssh.mkdir(parents=True)
    (node.root / "etc/pve/priv").mkdir()
    keys = node.root / "etc/pve/priv/authorized_keys"
    keys.write_text(f"# comment\nssh-ed25519 {OTHER} someone\nno-pty ssh-ed25519 {BLOB} me@here\n")
    (ssh / "authorized_keys").symlink_to(keys)
    node.accepted = [f"Accepted publickey for root from 10.0.2.2 port 50022 ssh2: ED25519 {FINGERPRINT}"]  # type: ignore[attr-defined]
    node.files = ".ssh/authorized_keys .ssh/authorized_keys2"  # type: ignore[attr-defined]
    real = node.run

    def run(argv: list[str], timeout: float = 60.0) -> Any:
        if argv[0] == "journalctl":
            assert argv[argv.index("-t") + 1] == "sshd" and "sshd-session" in argv
            return ps.Result(0, "\n".join([*node.accepted, "Connection from nowhere"]))  # type: ignore[attr-defined]
        if argv[0] == "sshd":
            assert argv == ["sshd", "-T", "-C", "user=root,host=10.0.2.2,addr=10.0.2.2"]
            return ps.Result(0, f"port 22\nauthorizedkeysfile {node.files}\ntrustedusercakeys none\n")  # type: ignore[attr-defined]
        return real(argv, timeout)

    monkeypatch.setattr(ps, "run", run)
    return node


def login(ps: ModuleType, node: Node, **options: Any) -> dict[str, Any]:
    return dict(ps.check_login(node.paths, CONNECTION, **options))


def test_a_key_that_stands_only_on_pve_is_not_enough(ps: ModuleType, ssh_node: Node) -> None:
    found = login(ps, ssh_node)
    assert not found["independent"] and found["fingerprint"] == FINGERPRINT
    assert found["fallback_file"].endswith("/root/.ssh/authorized_keys2")


def test_check_only_writes_nothing_and_write_adds_exactly_the_key_in_use(
    ps: ModuleType, ssh_node: Node
) -> None:
    second = ssh_node.root / "root/.ssh/authorized_keys2"
    assert not login(ps, ssh_node, fallback=True)["independent"]
    assert not second.exists()
    found = login(ps, ssh_node, fallback=True, write=True)
    assert found["independent"] and found["added"]
    assert second.read_text() == f"no-pty ssh-ed25519 {BLOB} pveguard-login-fallback\n"
    assert second.stat().st_mode & 0o777 == 0o600
    assert not login(ps, ssh_node, fallback=True, write=True)["added"]
    second.write_text(f"ssh-ed25519 {OTHER} mine\n" + second.read_text())
    assert ps.remove_login_fallback(ssh_node.paths) == [str(second)]
    assert second.read_text() == f"ssh-ed25519 {OTHER} mine\n"


def test_the_fallback_stays_where_a_restored_state_does_not_know_the_key(
    ps: ModuleType, ssh_node: Node
) -> None:
    login(ps, ssh_node, fallback=True, write=True)
    (ssh_node.root / "etc/pve/priv/authorized_keys").write_text(f"ssh-ed25519 {OTHER} someone\n")
    assert ps.remove_login_fallback(ssh_node.paths) == []
    assert BLOB in (ssh_node.root / "root/.ssh/authorized_keys2").read_text()


def test_the_fallback_stays_while_pve_is_gone(ps: ModuleType, ssh_node: Node) -> None:
    login(ps, ssh_node, fallback=True, write=True)
    ssh_node.stop_daemon()
    assert ps.remove_login_fallback(ssh_node.paths) == []
    assert (ssh_node.root / "root/.ssh/authorized_keys2").exists()


def test_logins_that_need_no_proof(ps: ModuleType, ssh_node: Node) -> None:
    assert ps.check_login(ssh_node.paths, "")["independent"]
    ssh_node.accepted = ["Accepted password for root from 10.0.2.2 port 50022 ssh2"]  # type: ignore[attr-defined]
    assert login(ps, ssh_node)["independent"]
    ssh_node.accepted = []  # type: ignore[attr-defined]
    ssh_node.stop_daemon()
    assert login(ps, ssh_node)["independent"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        f"Accepted publickey for root from 10.0.2.2 port 5002 ssh2: ED25519 {FINGERPRINT}",
        f"Accepted publickey for root from 10.0.2.22 port 50022 ssh2: ED25519 {FINGERPRINT}",
        f"x Accepted publickey for root from 10.0.2.2 port 50022 ssh2: ED25519 {FINGERPRINT} trailing",
    ],
)
def test_another_connection_proves_nothing(ps: ModuleType, ssh_node: Node, line: str) -> None:
    keys2 = ssh_node.root / "root/.ssh/authorized_keys2"
    keys2.write_text(f"ssh-ed25519 {OTHER} other\n")
    ssh_node.accepted = [line]  # type: ignore[attr-defined]
    assert not login(ps, ssh_node)["independent"] or "trailing" in line


def test_a_link_from_the_second_file_into_pve_does_not_count(ps: ModuleType, ssh_node: Node) -> None:
    (ssh_node.root / "root/.ssh/authorized_keys2").symlink_to(ssh_node.root / "etc/pve/priv/authorized_keys")
    found = login(ps, ssh_node, fallback=True, write=True)
    assert not found["independent"] and found["fallback_file"] is None
    assert "only from /etc/pve" in found["how"]


def test_sshd_that_reads_one_file_only(ps: ModuleType, ssh_node: Node) -> None:
    ssh_node.files = ".ssh/authorized_keys"  # type: ignore[attr-defined]
    assert not login(ps, ssh_node, fallback=True, write=True)["independent"]
    ssh_node.files = "%h/.ssh/authorized_keys /etc/ssh/keys/%u"  # type: ignore[attr-defined]
    folder = Path(f"{ssh_node.root}/etc/ssh/keys")
    folder.mkdir(parents=True)
    (folder / "root").write_text(f"ssh-ed25519 {BLOB} admin\n")
    assert login(ps, ssh_node)["file"].endswith("/etc/ssh/keys/root")


def test_enable_refuses_without_the_fallback_and_adds_it_with_it(ps: ModuleType, ssh_node: Node) -> None:
    from .conftest import fill, prepare_files

    fill(ssh_node.w)
    prepare_files(ssh_node)
    assert ssh_node.command("enable", "--json", "--connection", CONNECTION) == ps.EXIT_REFUSED
    assert ssh_node.writer is not None and not ssh_node.drop_in
    assert ssh_node.command("enable", "--json", "--connection", CONNECTION, "--login-fallback") == 0
    assert (ssh_node.root / "root/.ssh/authorized_keys2").exists()
    assert ssh_node.command("disable", "--json", "--connection", CONNECTION) == 0
    assert not (ssh_node.root / "root/.ssh/authorized_keys2").exists()


def test_the_connection_is_found_in_a_parent(ps: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    from .conftest import PROGRAM

    code = (
        "import subprocess,sys;env={'PATH':'/usr/bin'};"
        f"print(subprocess.run([sys.executable,{str(PROGRAM)!r},'check-login','--json'],env=env,capture_output=True,text=True).stdout)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SSH_CONNECTION": CONNECTION},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert CONNECTION in out
