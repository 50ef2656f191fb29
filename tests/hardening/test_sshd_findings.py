# SPDX-License-Identifier: Apache-2.0
"""What is said of sshd, from facts as a node has them; those of a real sshd are in test_real_sshd.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible.module_utils.pveguard.hardening import sshd, sshd_findings

from tests.findings import finding

GOOD = {**sshd.KEYS_ONLY, **sshd.PLAIN, "MaxAuthTries": "6"}
CLEAN: dict[str, Any] = {
    "known": True,
    "installed": True,
    "node": "pve1",
    "peers": [{"name": "pve2", "address": "192.0.2.2"}],
    "controller": "192.0.2.9",
    "include": {"leading": True, "before": ""},
    "before": [],
    "match": [],
    "effective": {"pve2": dict(GOOD), "controller": dict(GOOD)},
    "problems": {"pve2 (192.0.2.2)": {}, "controller (192.0.2.9)": {}},
    "weak": {},
    "host_keys": [],
    "known_host_key": True,
    "authorized_keys": [
        {"path": "/root/.ssh/authorized_keys", "on_pve": True, "keys": 3},
        {"path": "/root/.ssh/authorized_keys2", "on_pve": False, "keys": 1},
    ],
    "managed": True,
    "drifted": {},
    "timer": "confirmed",
}


def judged(**more: Any) -> list[Any]:
    return sshd_findings.of_report({"hardening": {"sshd": {**copy.deepcopy(CLEAN), **more}}})


def test_a_hardened_node_has_none_and_one_that_was_not_asked_neither() -> None:
    assert judged() == []
    assert sshd_findings.of_node({}, {}) == []
    assert judged(installed=False) == []


def test_what_could_not_be_read_is_unknown() -> None:
    (found,) = sshd_findings.of_report({"hardening": {"sshd": {"known": False, "error": "sshd -T fails"}}})
    assert finding([found], "hardening-sshd-unread").severity == "unknown" and "sshd -T fails" in found.text


def problem(keyword: str, text: str) -> dict[str, Any]:
    return {"problems": {**CLEAN["problems"], "pve2 (192.0.2.2)": {keyword: text}}}


def of_all(key: str, value: str) -> dict[str, Any]:
    return {"effective": {who: {**said, key: value} for who, said in CLEAN["effective"].items()}}


def test_each_condition_and_what_helps() -> None:
    found = judged(timer="armed")
    assert "systemctl start pveguard-rollback-hardening-sshd" in finding(found, "hardening-sshd-unproved").helps
    found = judged(**problem("allowusers", "AllowUsers admin leaves root out"))
    assert "AllowUsers admin leaves root out (from pve2 (192.0.2.2))" in finding(found, "hardening-sshd-root-locked-out").text
    found = judged(**problem("hostkey", "there is no RSA host key"))
    assert "ssh-keygen -A" in finding(found, "hardening-sshd-no-rsa").helps and len(found) == 1
    assert "pvecm updatecerts" in finding(judged(known_host_key=False), "hardening-sshd-host-key-not-known").helps
    assert judged(known_host_key=None) == []
    found = judged(**problem("disableforwarding", "DisableForwarding yes: a migration forwards a UNIX socket"))
    assert finding(found, "hardening-sshd-no-socket-forwarding").severity == "problem" and len(found) == 1
    block = {"place": "/etc/ssh/sshd_config:9", "match": "Address 192.0.2.0/24", "sets": "permitrootlogin yes", "keyword": "x"}
    assert "sshd_config:9 (Match Address 192.0.2.0/24)" in finding(judged(match=[block]), "hardening-sshd-match-root").text
    assert "MaxAuthTries is 2" in finding(judged(**of_all("MaxAuthTries", "2")), "hardening-sshd-few-tries").text
    found = judged(include={"leading": False, "before": ""})
    assert sshd.INCLUDE_LINE in finding(found, "hardening-sshd-no-include").helps
    found = judged(weak={"Ciphers": ["aes128-cbc"]})
    assert "Ciphers: aes128-cbc" in finding(found, "hardening-sshd-weak-algorithms").text
    found = judged(authorized_keys=CLEAN["authorized_keys"][:1])
    assert "authorized_keys2" in finding(found, "hardening-sshd-keys-only-on-pve").helps
    assert "another content" in finding(judged(drifted={sshd.DROP_IN: "another content"}), "hardening-sshd-changed").text
    assert "X11Forwarding yes" in finding(judged(**of_all("X11Forwarding", "yes")), "hardening-sshd-loose").text


@pytest.mark.parametrize("key", ["PasswordAuthentication", "KbdInteractiveAuthentication"])
def test_a_password_of_root_is_told_only_where_sshd_takes_passwords(key: str) -> None:
    both = {"effective": {who: {**said, key: "yes", "PermitRootLogin": "yes"} for who, said in CLEAN["effective"].items()}}
    finding(judged(**both), "hardening-sshd-root-password")
    found = judged(**of_all(key, "yes"))
    assert finding(found, "hardening-sshd-passwords").text == "sshd takes passwords from pve2, controller" and len(found) == 1
    assert judged(**of_all("PermitRootLogin", "yes")) == []
