# SPDX-License-Identifier: Apache-2.0
"""Lines of sshd's configuration, and what of them can be about root."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.formats import sshd_config
from ansible.module_utils.pveguard.hardening import sshd, sshd_proof
from ansible.module_utils.pveguard.hardening.sshd import Who


def write(root: Path, **files: str) -> None:
    (root / "etc/ssh/sshd_config.d").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        folder = "" if name == "sshd_config" else "sshd_config.d/"
        (root / f"etc/ssh/{folder}{name}").with_suffix("" if not folder else ".conf").write_text(text)


def test_lines_in_the_order_in_which_they_are_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        sshd_config='\n# no\nInclude sshd_config.d/*.conf\nPort=22\nAllowUsers "root" admin # why\nMatch User x\n'
        " X11Forwarding no\nMatch all\nUsePAM yes\n",
        b="PermitRootLogin yes\nMatch Address 192.0.2.0/24\nMaxSessions 1\n",
        a="Port 22",
    )
    assert [(line.place.rpartition("/")[2], line.text, " ".join(line.match)) for line in sshd_config.read(tmp_path)] == [
        ("sshd_config:3", "include sshd_config.d/*.conf", ""),
        ("a.conf:1", "port 22", ""),
        ("b.conf:1", "permitrootlogin yes", ""),
        ("b.conf:2", "match Address 192.0.2.0/24", "Address 192.0.2.0/24"),
        ("b.conf:3", "maxsessions 1", "Address 192.0.2.0/24"),
        # A block ends with its file.
        ("sshd_config:4", "port 22", ""),
        ("sshd_config:5", "allowusers root admin", ""),
        ("sshd_config:6", "match User x", "User x"),
        ("sshd_config:7", "x11forwarding no", "User x"),
        ("sshd_config:8", "match all", ""),
        ("sshd_config:9", "usepam yes", ""),
    ]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PveguardError, match="/etc/ssh/sshd_config: No such file"):
        sshd_config.read(tmp_path)
    write(tmp_path, sshd_config='Banner "open\n')
    with pytest.raises(PveguardError, match="/etc/ssh/sshd_config:1: No closing quotation"):
        sshd_config.read(tmp_path)
    write(tmp_path, sshd_config="Include /etc/ssh/sshd_config\n")
    with pytest.raises(PveguardError, match="include each other"):
        sshd_config.read(tmp_path)


@pytest.mark.parametrize(
    ("criteria", "about_root"),
    [
        ("User root", True),
        ("User *,!root", False),
        ("User backup,git-*", False),
        ("User=backup", False),
        ("Group sftp", False),
        ("Group root", True),
        ("Address 192.0.2.0/24", True),
        ("Address 192.0.2.0/24 User backup", False),
        ("LocalPort 2222", True),
    ],
)
def test_which_match_blocks_can_be_about_root(tmp_path: Path, criteria: str, about_root: bool) -> None:
    write(tmp_path, sshd_config=f"Match {criteria}\n PermitRootLogin yes\n Banner none\n PasswordAuthentication no\n")
    found = sshd.match_blocks(sshd_config.read(tmp_path))
    assert [each["sets"] for each in found] == (["permitrootlogin yes"] if about_root else [])


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ({"allowusers": ["admin", "ro?t"]}, []),
        ({"allowusers": ["root@192.0.2.0/24"]}, []),
        ({"allowusers": ["root@198.51.100.*"]}, ["allowusers"]),
        ({"allowusers": ["*", "!root"]}, ["allowusers"]),
        ({"denyusers": ["root@198.51.100.1"]}, []),
        ({"denyusers": ["*@192.0.2.*"]}, ["denyusers"]),
        ({"allowgroups": ["root ssh"]}, []),
        ({"permitrootlogin": ["no"], "denygroups": ["root"]}, ["denygroups", "permitrootlogin"]),
        ({"permitrootlogin": ["forced-commands-only"]}, ["permitrootlogin"]),
        ({"authenticationmethods": ["publickey,password publickey"]}, []),
        ({"hostkeyalgorithms": ["ssh-ed25519,rsa-sha2-256"]}, []),
        ({"pubkeyacceptedalgorithms": ["ssh-ed25519"]}, ["pubkeyacceptedalgorithms"]),
        ({"allowstreamlocalforwarding": ["local"]}, []),
        ({"allowstreamlocalforwarding": ["remote"]}, ["allowstreamlocalforwarding"]),
        ({"chrootdirectory": ["/srv"]}, ["chrootdirectory"]),
    ],
)
def test_what_keeps_root_out_or_a_migration(lines: dict[str, list[str]], wrong: list[str]) -> None:
    keys, host_keys = [{"path": "x", "keys": 1}], [{"path": "y", "type": "ssh-rsa"}]
    found = {"permitrootlogin": ["without-password"], "pubkeyauthentication": ["yes"], **lines}
    assert sorted(sshd.problems(found, Who("pve2", "192.0.2.2"), keys, host_keys)) == wrong


def test_a_look_never_raises(tmp_path: Path) -> None:
    def missing(argv: object, **_more: object) -> Result:
        raise CommandMissing("no sshd")

    assert sshd.look(tmp_path, missing) == {"known": True, "installed": False}
    write(tmp_path, sshd_config="")
    assert sshd.look(tmp_path, missing)["known"] is False
    refuses = Result(255, "", "line 3: Bad configuration option: x")
    broken = sshd.look(tmp_path, lambda argv, **_more: refuses, controller="192.0.2.9")
    assert broken["known"] is False and "Bad configuration option: x" in broken["error"]
    (tmp_path / "etc/pve").mkdir()
    said = '{"nodename": "a", "cluster": {"quorate": 1}, "nodelist": {"zz": {"id": 2}}}'
    nowhere = sshd.look(tmp_path, lambda argv, **_more: Result(0, said))
    assert nowhere["known"] is False and "addresses of zz are not known" in nowhere["error"]


def test_the_proof_has_the_options_of_proxmox_ve() -> None:
    argv = sshd_proof.command(Who("pve2", "192.0.2.2"), forward="/a:/b")
    assert argv == [
        *("ssh", "-o", "BatchMode=yes", "-o", "HostKeyAlias=pve2"),
        *("-o", "UserKnownHostsFile=/etc/pve/nodes/pve2/ssh_known_hosts"),
        *("-o", "GlobalKnownHostsFile=none", "-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ConnectTimeout=20"),
        *("-L", "/a:/b", "-o", "ExitOnForwardFailure=yes", "root@192.0.2.2"),
    ]
