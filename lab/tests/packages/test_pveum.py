# SPDX-License-Identifier: Apache-2.0
"""The double of pveum: its lists, and that no secret is in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.packages.build import HERE
from lab.tests.doubles.harness import SECONDS

PROGRAM = HERE / "libpve-access-control/root/usr/sbin/pveum"
USERS = """user:root@pam:1:0:::root@example.org::
user:anna@pve:1:1999999999:Anna:B:anna@example.org:an admin:x!oath-key-hidden:
user:old@ldap:0:0:::::

token:root@pam!backup:0:0:for the backup:
token:anna@pve!read:1999999999:1::

group:admins:anna@pve,nobody@pve:all of them:
role:Small:VM.Audit,VM.Console:
acl:1:/:@admins:Administrator:
acl:0:/vms/100:anna@pve!read,old@ldap:PVEAuditor:
"""
FACTORS: dict[str, Any] = {
    "users": {
        "root@pam": {
            "totp": [
                {
                    "info": {"id": "totp:1", "description": "phone", "created": 5, "enable": True},
                    "entry": "otpauth://totp/x?secret=HIDDENSECRET",
                }
            ],
            "recovery": {"secret": "hidden-recovery", "entries": ["hidden-hash", None], "created": 6},
            "totp-locked": True,
        },
        "anna@pve": {"recovery": {"secret": "hidden-two", "entries": [None], "created": 6}},
    }
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    pve = tmp_path / "etc/pve"
    (pve / "priv").mkdir(parents=True)
    (pve / "user.cfg").write_text(USERS)
    realm = "pve: pve\n\tcomment Proxmox\n\ttfa type=yubico,key=hidden-service-key,id=1\n"
    (pve / "domains.cfg").write_text(f"{realm}\nldap: ldap\n\tdefault 1\n")
    (pve / "priv/tfa.cfg").write_text(json.dumps(FACTORS))
    (pve / "priv/token.cfg").write_text("root@pam!backup hidden-uuid\n")
    return tmp_path


def call(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PVE_LAB_ROOT": str(root)}
    return subprocess.run([PROGRAM, *words], env=env, capture_output=True, text=True, timeout=SECONDS)


def rows(root: Path, *words: str) -> Any:
    done = call(root, *words, "--output-format", "json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "hidden" not in done.stdout.lower()
    return json.loads(done.stdout)


def test_users(root: Path) -> None:
    anna, old, admin = rows(root, "user", "list")
    assert anna == {
        "userid": "anna@pve", "enable": 1, "expire": 1999999999, "firstname": "Anna", "lastname": "B",
        "email": "anna@example.org", "comment": "an admin", "realm-type": "pve",
    }  # fmt: skip
    assert old == {"userid": "old@ldap", "enable": 0, "expire": 0, "realm-type": "ldap"}
    assert admin["totp-locked"] == 1 and admin["realm-type"] == "pam"
    full = rows(root, "user", "list", "--full", "1")[0]
    assert full["groups"] == "admins" and full["tokens"] == [{"tokenid": "read", "expire": 1999999999, "privsep": 1}]


def test_tokens(root: Path) -> None:
    expected = [{"tokenid": "backup", "expire": 0, "privsep": 0, "comment": "for the backup"}]
    assert rows(root, "user", "token", "list", "root@pam") == expected
    assert rows(root, "user", "token", "list", "old@ldap") == []
    done = call(root, "user", "token", "list", "nobody@pve")
    assert done.returncode == 255 and "no such user" in done.stderr


def test_second_factors(root: Path) -> None:
    entries = [
        {"id": "totp:1", "type": "totp", "created": 5, "description": "phone", "enable": 1},
        {"id": "recovery", "type": "recovery", "created": 6, "description": "", "enable": 1},
    ]
    assert rows(root, "user", "tfa", "list") == [{"userid": "root@pam", "entries": entries, "totp-locked": 1}]
    assert rows(root, "user", "tfa", "list", "root@pam") == entries
    assert rows(root, "user", "tfa", "list", "anna@pve") == [], "its last recovery key was used"


def test_unlocking_takes_the_locks_and_nothing_else(root: Path) -> None:
    assert call(root, "user", "tfa", "unlock", "root@pam").returncode == 0
    left = json.loads((root / "etc/pve/priv/tfa.cfg").read_text())
    expected = json.loads(json.dumps(FACTORS))
    del expected["users"]["root@pam"]["totp-locked"]
    assert left == expected


def test_grants(root: Path) -> None:
    assert rows(root, "acl", "list") == [
        {"path": "/", "propagate": 1, "roleid": "Administrator", "type": "group", "ugid": "admins"},
        {"path": "/vms/100", "propagate": 0, "roleid": "PVEAuditor", "type": "token", "ugid": "anna@pve!read"},
        {"path": "/vms/100", "propagate": 0, "roleid": "PVEAuditor", "type": "user", "ugid": "old@ldap"},
    ]
    assert rows(root, "group", "list") == [{"groupid": "admins", "users": "anna@pve", "comment": "all of them"}]
    assert {"roleid": "Small", "privs": "VM.Audit,VM.Console", "special": 0} in rows(root, "role", "list")


def test_realms(root: Path) -> None:
    assert rows(root, "realm", "list") == [
        {"realm": "ldap", "type": "ldap", "default": 1},
        {"realm": "pam", "type": "pam", "comment": "Linux PAM standard authentication"},
        {"realm": "pve", "type": "pve", "comment": "Proxmox", "tfa": "yubico"},
    ]


def test_a_node_without_any_of_these_files(root: Path) -> None:
    for path in list((root / "etc/pve").rglob("*.cfg")):
        path.unlink()
    assert rows(root, "user", "list") == [{"userid": "root@pam", "enable": 1, "expire": 0, "realm-type": "pam"}]
    assert rows(root, "user", "tfa", "list") == []
    assert [row["realm"] for row in rows(root, "realm", "list")] == ["pam", "pve"]


STRANGE = ["usr:x@pam:1:0:hidden", "user:no-realm:1:0", "token:nobody@pve!x:0:0:", "acl:1:vms:a@pve:PVEAdmin:"]


@pytest.mark.parametrize("line", STRANGE)
def test_a_strange_line_is_warned_of_and_passed_over(root: Path, line: str) -> None:
    before = rows(root, "user", "list"), rows(root, "acl", "list")
    with (root / "etc/pve/user.cfg").open("a") as stream:
        stream.write(f"{line}\n")
    done = call(root, "user", "list", "--output-format", "json")
    assert done.returncode == 0 and json.loads(done.stdout) == before[0]
    assert "line 12 ignored" in done.stderr and "hidden" not in done.stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"users": []}', '{"users": {"root@pam": 3}}', "not json, hidden"])
def test_a_broken_file_of_second_factors_is_an_error(root: Path, text: str) -> None:
    (root / "etc/pve/priv/tfa.cfg").write_text(text)
    done = call(root, "user", "tfa", "list", "--output-format", "json")
    assert done.returncode == 255 and done.stdout == ""
    assert "failed to parse TFA file" in done.stderr and "hidden" not in done.stderr


def test_without_the_clusters_file_system_there_is_no_answer(root: Path) -> None:
    shutil.rmtree(root / "etc/pve")
    done = call(root, "user", "list")
    assert done.returncode == 255 and "ipcc_send_rec" in done.stderr


@pytest.mark.parametrize("words", [[], ["user"], ["user", "add", "x@pve"], ["user", "list", "--output-format", "yaml"]])
def test_other_arguments_are_refused(root: Path, words: list[str]) -> None:
    done = call(root, *words)
    assert done.returncode == 255 and "lab double" in done.stderr
