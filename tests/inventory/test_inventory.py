"""Mistakes of an inventory: each is named, all in one message, before any connection."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.cluster.inventory import inventory_errors, is_secret_name

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
        (
            {"a": host(1, "10.0.0.1", ram_state_noise=["^x$"]), "b": host(2, "10.0.0.2")},
            ("ram_state_noise differs", "a: ['^x$']", "b: unset", "in the cluster's group"),
        ),
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


def playbook(
    inventory: str, tmp_path: Path, *more: str, playbook: str = "playbooks/validate.yml", **environment: str
) -> subprocess.CompletedProcess[str]:
    """validate.yml on hosts that no connection could reach: any attempt would show as unreachable."""
    path = tmp_path / "hosts.yml"
    path.write_text(inventory)
    source = ("-i", str(path)) if inventory else ()
    settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), *source, playbook, *more],
        cwd=ROOT,
        env={**os.environ, **settings, **environment},
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


def mistakes(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The mistakes that the run named, without their numbers."""
    assert "Traceback" not in done.stdout + done.stderr and "unreachable=0" in done.stdout, done.stdout + done.stderr
    text = done.stdout.split("fatal: [", 1)[-1].split("PLAY RECAP", 1)[0]
    return [line.split(". ", 1)[1] for line in map(str.strip, text.splitlines()) if line[:1].isdigit()]


def test_variables_of_hosts_are_rendered_with_hostvars(tmp_path: Path) -> None:
    """Also of hosts outside the limit, through several hosts, and where a template makes a list or a mapping."""
    right = """
all:
  vars: {ansible_host: 192.0.2.1, ansible_ssh_timeout: 1}
  children:
    c:
      vars:
        corosync_cluster_name: "{{ site }}"
        site: alpha
        corosync_links: ["{{ hostvars[inventory_hostname]['ring0'] }}"]
        corosync_node_id: "{{ groups['c'].index(inventory_hostname) + 1 }}"
        corosync_token: "{{ hostvars['pve1'].wanted }}"
        corosync_crypto: "{{ {'cipher': 'aes256'} }}"
        fsync_gate_reports_dir: "{{ playbook_dir }}/{{ inventory_hostname }}"
        ram_state_enabled: "{{ hostvars['pve1'].wanted == 4000 }}"
      hosts:
        pve1: {ring0: 192.0.2.1, wanted: "{{ hostvars['pve2']['base'] * 2 }}"}
        pve2: {ring0: "{{ lookup('env', 'RING') }}", base: 2000, corosync_links: "{{ [hostvars['pve2'].ring0] }}"}
        pve3: {ring0: "{{ hostvars['pve1'].ring0 | replace('.1', '.3') }}"}
"""
    for more in ((), ("--limit", "pve2")):
        done = playbook(right, tmp_path, *more, RING="192.0.2.2")
        assert done.returncode == 0, done.stdout + done.stderr
    # What is wrong with a rendered value is found.
    done = playbook(right, tmp_path, "--limit", "pve1", RING="192.0.2.1")
    (found,) = mistakes(done)
    assert found.startswith("address 192.0.2.1 of corosync_links is used by pve1 (link 0) and pve2 (link 0)")


def test_what_cannot_be_rendered_is_named_beside_all_other_mistakes(tmp_path: Path) -> None:
    wrong = """
all:
  vars: {ansible_host: 192.0.2.1, ansible_ssh_timeout: 1, loop_a: "{{ loop_b }}", loop_b: "{{ loop_a }}"}
  children:
    cluster:
      vars: {corosync_cluster_name: one}
      hosts:
        a: {corosync_node_id: "{{ nothing }}", corosync_links: [10.0.0.1, 10.0.0.300]}
        b: {corosync_node_id: 2, corosync_links: ["{{ ansible_default_ipv4.address }}", 10.1.0.2]}
        c: {corosync_node_id: 2, corosync_links: "{{ hostvars['gone'].links }}", corosync_token: "{{ loop_a }}"}
        d: {corosync_node_id: 4, corosync_links: [10.0.0.4, 10.1.0.2], corosync_totem: {x: "{{ 1 | no_such_filter }}"}}
        e: {corosync_node_id: 5, corosync_links: ["{{ 10.0.0.5", 10.1.0.5], corosync_token: "{{ omit }}"}
        f:
          corosync_node_id: "{{ hostvars['f'].corosync_node_id }}"
          corosync_links: [10.0.0.6, "{{ lookup('file', '/nowhere/at/all') }}"]
          corosync_authkey: !vault |
            $ANSIBLE_VAULT;1.1;AES256
            3031
        g: {corosync_cluster_name: "{{ nothing }}", corosync_node_id: 0, corosync_links: [127.0.0.1], ram_state_enabld: 1}
        h: {corosync_node_id: 8, corosync_links: [10.0.0.8, 10.1.0.8], ram_state_enabled: maybe, corosync_token: 5s}
"""
    done = playbook(wrong, tmp_path)
    found = mistakes(done)
    assert done.returncode != 0
    for part in (
        "a: corosync_node_id cannot be rendered: 'nothing' is undefined (",
        "a: corosync_links[1] '10.0.0.300' is not a valid IP address",
        "b: corosync_links[0] cannot be rendered: 'ansible_default_ipv4' is undefined (the playbooks gather no facts",
        "c: corosync_links cannot be rendered: hostvars['gone'] is undefined: the inventory has no such host (",
        "c: corosync_token cannot be rendered: Recursive loop detected",
        "d: corosync_totem.x cannot be rendered: Syntax error in template: No filter named 'no_such_filter'",
        "e: corosync_links[0] cannot be rendered: Syntax error in template",
        "e: corosync_token cannot be rendered: omit means something in the arguments of a module only",
        "f: corosync_node_id cannot be rendered: Recursive loop detected",
        "f: corosync_links[1] cannot be rendered: ",
        "f: corosync_authkey cannot be rendered: Attempt to use undecryptable variable",
        "g: corosync_cluster_name cannot be rendered: 'nothing' is undefined",
        "g: corosync_node_id 0 is not",
        "g: corosync_links[0] '127.0.0.1' is not an address that other nodes can reach",
        "h: ram_state_enabled 'maybe' is not true or false (",
        "h: corosync_token '5s' is not a whole number from 0 to 2147483647; write the number alone",
        "cluster one: corosync_node_id 2 is set for b and c",
        "address 10.1.0.2 of corosync_links is used by b (link 1) and d (link 1)",
        "ram_state_enabld is not a variable of pveguard; did you mean ram_state_enabled?",
    ):
        assert sum(part in each for each in found) == 1, (part, found)
    assert len(found) == 19, found
    assert all("hosts.yml:" in each for each in found if "rendered" in each and "Syntax" not in each)


@pytest.mark.slow
def test_values_on_the_command_line_and_in_an_ini_inventory_are_judged_before_any_connection(tmp_path: Path) -> None:
    ini = tmp_path / "hosts"
    ini.write_text(
        "[c]\n"
        "pve1 ansible_host=192.0.2.1 corosync_node_id=1 corosync_links=\"['10.0.0.1']\" link_gate_load=maybe\n"
        "pve2 ansible_host=192.0.2.1 corosync_node_id=2 corosync_links=10.0.0.2,10.1.0.2 link_gate_load=False\n"
        "[c:vars]\n"
        "corosync_cluster_name=one\n"
        "ram_state_enabled=no\n"
        "fsync_gate_min_fsyncs= 2.5\n"
        "ram_state_tmpfs_mib=64M\n"
        "write_report_disks=\n"
        "fsync_gate_methods=commit\n"
    )
    given = "ram_state_allow_ha=nope leave_dead=yess link_gate_duration=1e9"
    done = playbook("", tmp_path, "-i", str(ini), "-e", given)
    found = mistakes(done)
    assert done.returncode != 0
    for part in (
        "pve1: link_gate_load 'maybe' is not true or false",
        "pve2: corosync_links '10.0.0.2,10.1.0.2' is text, not a list: write corosync_links: [VALUE, VALUE]",
        "pve1 and pve2: ram_state_tmpfs_mib '64M' is not a whole number from 0 to 16777216; write the number alone",
        "pve1 and pve2: write_report_disks is empty, wanted true or false; leave it out for the default (True)",
        "pve1 and pve2: fsync_gate_methods 'commit' is text, not a list",
        "pve1 and pve2: ram_state_allow_ha 'nope' is not true or false",
        "pve1 and pve2: leave_dead 'yess' is not true or false",
        "pve1 and pve2: link_gate_duration '1e9' is not a number from 1 to 300",
    ):
        assert sum(part in each for each in found) == 1, (part, found)
    assert len(found) == 8, found


@pytest.mark.parametrize("file", sorted([ROOT / "site.yml", *(ROOT / "playbooks").glob("*.yml")]), ids=lambda file: file.stem)
def test_each_playbook_judges_the_values_first(file: Path) -> None:
    first = yaml.safe_load(file.read_text())[0]
    if file.stem == "validate":
        return
    # export makes the inventory that may be wrong still; unlock ends what others began.
    imported = first.get("ansible.builtin.import_playbook", "")
    assert imported.endswith("validate.yml") is (file.stem not in ("export", "unlock"))
    assert first.get("when") in (None, "not pveguard_part_of_run | default(false, true) | pveguard_bool")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gate", "cluster", "protect", "revert", "../site"])
def test_no_playbook_connects_before_the_values_are_judged(name: str, tmp_path: Path) -> None:
    hosts = "all: {hosts: {pve1: {ansible_host: 192.0.2.1, ansible_ssh_timeout: 1}}}"
    done = playbook(hosts, tmp_path, "-e", "ram_state_deadline_seconds=5m", playbook=f"playbooks/{name}.yml")
    assert done.returncode != 0
    assert ["ram_state_deadline_seconds '5m'" in each for each in mistakes(done)] == [True]


@pytest.mark.slow
def test_a_secret_is_not_shown_with_the_reason(tmp_path: Path) -> None:
    hosts = "all: {hosts: {a: {corosync_authkey: \"{{ 'hunter2' | pveguard_int }}\"}, b: {corosync_authkey: 2718281828}}}"
    done = playbook(hosts, tmp_path)
    assert "hunter2" not in done.stdout + done.stderr and "2718281828" not in done.stdout
    assert len(mistakes(done)) == 2 and "may hold the secret" in done.stdout and "(not shown) is a number" in done.stdout


@pytest.mark.slow
def test_group_names_that_are_templates_and_come_to_the_same_are_one_cluster(tmp_path: Path) -> None:
    hosts = """
all:
  children:
    g: {vars: {corosync_cluster_name: "{{ site }}"}, hosts: {a: {site: one}, b: {site: two}}}
    h:
      vars: {corosync_cluster_name: one}
      hosts:
        a: {corosync_node_id: 1, corosync_links: [10.0.0.1]}
        b: {corosync_node_id: 2, corosync_links: [10.0.0.2]}
"""
    found = mistakes(playbook(hosts, tmp_path))
    assert len(found) == 1 and found[0].startswith("b: is in the groups of several clusters"), found
