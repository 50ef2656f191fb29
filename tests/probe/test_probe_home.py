# SPDX-License-Identifier: Apache-2.0
"""A probe's place on /etc/pve and its folders: made once, removed with what they are for and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import CommandMissing
from ansible.module_utils.pveguard.pmxcfs import probe_home, pve_file


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "etc/pve/nodes").mkdir(parents=True)
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: True)
    monkeypatch.setattr(pve_file, "has_quorum", lambda _root: True)
    return tmp_path


def test_made_once(root: Path) -> None:
    first = probe_home.present("watch1", root=root)
    path = root / "etc/pve/nodes/watch1/pve-ssl.pem"
    assert first["changed"] and "/etc/pve/nodes/watch1/pve-ssl.pem" in first["made"] and len(first["made"]) == 7
    text = path.read_bytes()
    shown = subprocess.run(["openssl", "x509", "-noout", "-subject"], input=text, capture_output=True, check=True).stdout
    assert b"watch1" in shown and b"PRIVATE KEY" not in text
    assert probe_home.present("watch1", root=root) == {"changed": False, "made": []}
    assert path.read_bytes() == text


def test_a_placeholder_that_is_no_certificate_is_replaced(root: Path) -> None:
    probe_home.present("watch1", root=root)
    path = root / "etc/pve/nodes/watch1/pve-ssl.pem"
    path.write_text("")
    assert probe_home.present("watch1", root=root)["made"] == ["/etc/pve/nodes/watch1/pve-ssl.pem"]
    assert b"BEGIN CERTIFICATE" in path.read_bytes()


def test_check_mode_makes_and_removes_nothing(root: Path) -> None:
    assert probe_home.present("watch1", check_mode=True, root=root)["changed"]
    assert not (root / "var").exists() and not (root / "etc/pve/nodes/watch1").exists()
    probe_home.present("watch1", root=root)
    assert len(probe_home.absent(check_mode=True, root=root)["removed"]) == 6
    assert (root / "var/lib/rrdcached/db/pve2-node").is_dir()


def test_statistics_go_and_other_files_stay(root: Path) -> None:
    probe_home.present("watch1", root=root)
    folder = root / "var/lib/rrdcached/db"
    (folder / "pve2-storage/pve1").mkdir()
    (folder / "pve2-storage/pve1/local").write_bytes(b"RRD\0" + b"0003")
    (folder / "pve2-node/notes.txt").write_text("of the operator\n")
    with pytest.raises(PveguardError, match="pve2-node holds files that are no statistics"):
        probe_home.absent(root=root)
    assert (folder / "pve2-node/notes.txt").read_text() == "of the operator\n"
    (folder / "pve2-node/notes.txt").unlink()
    probe_home.absent(root=root)
    assert list(folder.iterdir()) == []
    assert probe_home.absent(root=root) == {"changed": False, "removed": []}


def test_without_openssl_the_message_says_what_for(root: Path) -> None:
    def missing(*_: object, **__: object) -> None:
        raise CommandMissing("openssl is not installed")

    with pytest.raises(PveguardError, match=r"pve-ssl\.pem cannot be made: openssl is not installed"):
        probe_home.present("watch1", run=missing, root=root)  # type: ignore[arg-type]
