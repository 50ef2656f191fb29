"""Mistakes of an inventory: each is named, all in one message, before any connection."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.inventory import inventory_errors, is_secret_name

ROOT = Path(__file__).resolve().parents[2]


def host(node_id: Any, *links: Any, **more: Any) -> dict[str, Any]:
    return {"corosync_cluster_name": "c", "corosync_node_id": node_id, "corosync_links": list(links), **more}


def one(errors: list[str], *words: str) -> None:
    assert len(errors) == 1, errors
    for word in words:
        assert word in errors[0]


def test_a_right_inventory_has_no_errors() -> None:
    assert inventory_errors({"a": host(1, "10.0.0.1"), "b": host("2", "10.0.0.2"), "solo": {}}) == []


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ({"a": host(1, "10.0.0.1"), "b": host(1, "10.0.0.2")}, ("corosync_node_id 1", "a and b")),
        ({"a": host(1, "10.0.0.1"), "b": host(2, "10.0.0.1")}, ("10.0.0.1", "a (link 0)", "b (link 0)")),
        ({"a": host(1, "10.0.0.1", "")}, ("corosync_links[1]", "empty")),
        ({"a": host(1, "10.0.0.1"), "b": host(2, "10.0.0.2", "10.1.0.2")}, ("same number",)),
        ({"a": host(1)}, ("a: corosync_links is missing",)),
        ({"a": host(0, "10.0.0.1")}, ("corosync_node_id 0",)),
        ({"a": host(None, "10.0.0.1")}, ("corosync_node_id is missing",)),
        ({"a": host(True, "10.0.0.1")}, ("corosync_node_id True",)),
        ({"a": host(1, "10.0.0.300")}, ("not a valid IP address",)),
        ({"a": host(1, "127.0.0.1")}, ("other nodes can reach",)),
        ({"a": {"corosync_links": ["10.0.0.1"]}}, ("corosync_cluster_name is not",)),
        ({"a.x": host(1, "10.0.0.1"), "a.y": host(2, "10.0.0.2")}, ("share the node name",)),
        ({"a_b": host(1, "10.0.0.1")}, ("not a valid host name",)),
        ({"A.x": host(1, "10.0.0.1"), "a": host(2, "10.0.0.2")}, ("share the node name",)),
        ({"a": host(65536, "10.0.0.1")}, ("corosync_node_id 65536", "from 1 to 65535", "transport knet")),
        ({"a": host(2**32, "10.0.0.1", corosync_totem={"transport": "udpu"})}, ("from 1 to 4294967295",)),
        ({"a": host(70000, "10.0.0.1", corosync_totem={"transport": "tcp"})}, ("from 1 to 65535",)),
        # One address in two forms.
        ({"a": host(1, "2001:db8::1"), "b": host(2, "2001:DB8:0:0::1")}, ("2001:db8::1", "a (link 0)", "b (link 0)")),
        ({"a": host(1, "10.0.0.1"), "b": host(2, "::ffff:10.0.0.1")}, ("10.0.0.1", "is used by")),
        ({"a": host(1, "Pve1.Example.org"), "b": host(2, "pve1.example.org.")}, ("pve1.example.org", "is used by")),
        ({"192.0.2.1": host(1, "10.0.0.1"), "192.0.2.2": host(1, "10.0.0.2")}, ("corosync_node_id 1",)),
    ],
)
def test_each_mistake_is_named(hosts: dict[str, Any], words: tuple[str, ...]) -> None:
    one(inventory_errors(hosts), *words)


@pytest.mark.parametrize(
    "names",
    [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2"), ("192.0.2.1", "pve2.example.org"), ("10.0.0.1", "10.0.0.2")],
)
def test_hosts_may_be_named_by_their_address(names: tuple[str, str]) -> None:
    """The node's own name is not known before it is asked, and no part of an address is one."""
    assert inventory_errors({name: host(number, f"10.0.0.{number}") for number, name in enumerate(names, 1)}) == []


def test_ids_of_addresses_are_right_where_the_transport_makes_them() -> None:
    assert inventory_errors({"a": host(167772161, "10.0.0.1", corosync_totem={"transport": "udpu"})}) == []
    assert inventory_errors({"a": host(65535, "10.0.0.1")}) == []


def test_misspelt_variable_gets_the_nearest_name() -> None:
    errors = inventory_errors(
        {"a": {"ram_state_rpo_secnds": 2}, "b": {"ram_state_rpo_secnds": 2}},
        known_variables=["ram_state_rpo_seconds"],
        prefixes=["ram_state_"],
    )
    one(errors, "a and b", "ram_state_rpo_secnds", "did you mean ram_state_rpo_seconds?")


def test_a_removed_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules[inventory_errors.__module__].REMOVED_VARIABLES, "ha_off", "set ha_state: disabled")
    one(inventory_errors({"a": {"ha_off": 1}}), "ha_off was removed", "ha_state")


def test_a_host_in_two_clusters_is_named() -> None:
    errors = inventory_errors({}, group_clusters={"g": "one", "h": "two"}, host_groups={"a": ["g", "h"], "b": ["g"]})
    one(errors, "a: ", "one (group g)", "two (group h)")


def test_secret_names() -> None:
    assert is_secret_name("corosync_authkey") and is_secret_name("ansible_become_password")
    assert not is_secret_name("ansible_ssh_private_key_file") and not is_secret_name("password_policy")


def playbook(inventory: str, tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """validate.yml on hosts that no connection could reach: any attempt would show as unreachable."""
    path = tmp_path / "hosts.yml"
    path.write_text(inventory)
    return subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(path), "playbooks/validate.yml", *more],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


WRONG = """
all:
  vars: {ansible_host: 192.0.2.1, ansible_ssh_timeout: 1}
  children:
    one:
      vars: {corosync_cluster_name: one, ram_state_enabld: true, pveguard_gate_on_failure: halt}
      hosts:
        a: {corosync_node_id: 1, corosync_links: [10.0.0.1]}
        b: {corosync_node_id: 1, corosync_links: [10.0.0.1], ansible_password: hunter2}
        c: {corosync_node_id: 3}
        d: {corosync_node_id: 1, corosync_links: [10.0.0.4]}
    two:
      vars: {corosync_cluster_name: two}
      hosts:
        a: {}
"""


def test_the_playbook_lists_all_mistakes_in_one_message_without_a_connection(tmp_path: Path) -> None:
    # --limit must not hide the mistakes of the other hosts.
    done = playbook(WRONG, tmp_path, "--limit", "c")
    text = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "unreachable=0" in text
    assert text.count("fatal: [") == 1 and "no host was connected to" in text
    for part in (
        "corosync_node_id 1 is set for",
        "address 10.0.0.1",
        "c: corosync_links is missing",
        "did you mean ram_state_enabled?",
        "ansible_password is a secret in plain text",
        "hosts.yml:",
        "a: is in the groups of several clusters",
        "halt",
    ):
        assert part in text, part
    assert "hunter2" not in text


def test_a_right_inventory_passes(tmp_path: Path) -> None:
    right = """
all:
  hosts:
    a: {ansible_host: 192.0.2.1, ansible_password: "{{ lookup('env', 'PW') }}"}
"""
    done = playbook(right, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_vaulted_secret_passes(tmp_path: Path) -> None:
    key = tmp_path / "pw"
    key.write_text("x")
    vault = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-vault")), "encrypt_string", "--vault-password-file", str(key),
         "--name", "ansible_password", "hunter2"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = "\n".join("          " + line.strip() for line in vault.splitlines()[1:])
    right = f"all:\n  hosts:\n    a:\n      ansible_password: !vault |\n{lines}\n"
    done = playbook(right, tmp_path, "--vault-password-file", str(key))
    assert done.returncode == 0, done.stdout + done.stderr
