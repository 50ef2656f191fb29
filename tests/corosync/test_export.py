# SPDX-License-Identifier: Apache-2.0
"""A live cluster in the form of the inventory: the same cluster, and nothing that a run would change."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.cluster import corosync_export
from ansible.module_utils.pveguard.cluster.inventory import inventory_errors
from ansible.module_utils.pveguard.cluster.plan import cluster_plan
from ansible.module_utils.pveguard.corosync import corosync_change, corosync_wish
from ansible.module_utils.pveguard.formats import corosync_check, corosync_conf, corosync_edit, corosync_tools
from hypothesis import example, given
from hypothesis import strategies as st

from tests.loading import load_filters

from .cluster_facts import conf, node

Facts = Mapping[str, dict[str, Any] | None]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

NODES: list[dict[str, Any]] = [
    {"name": f"pve{number}", "node_id": number, "links": [f"10.0.0.{number}", f"10.1.0.{number}"]} for number in (1, 2, 3)
]
CONF = corosync_edit.render_new("production", NODES, config_version=7)


def test_the_form_of_the_role() -> None:
    found = corosync_export.desired(CONF)
    assert found["cluster"] == {"corosync_cluster_name": "production", "corosync_token": 3000}
    assert found["hosts"] == {
        node["name"]: {"corosync_node_id": node["node_id"], "corosync_links": node["links"]} for node in NODES
    }
    assert found["not_expressed"] == []


def test_a_token_only_where_the_file_has_one() -> None:
    found = corosync_export.desired(CONF.replace("  token: 3000\n", ""))
    assert found["cluster"] == {"corosync_cluster_name": "production"}


def test_what_differs_from_a_new_cluster_is_a_variable() -> None:
    text = CONF.replace("token_coefficient: 125", "token_coefficient: 650").replace("link_mode: passive", "link_mode: rr")
    text = text.replace("    linknumber: 1\n", "    linknumber: 1\n    knet_link_priority: 20\n    knet_transport: sctp\n")
    text = text.replace("  secauth: on\n", "  secauth: on\n  crypto_hash: sha512\n  knet_mtu: 1400\n  join: 060\n")
    text = text.replace("  to_syslog: yes\n", "  to_syslog: no\n  logfile: /var/log/corosync.log\n")
    text = text.replace("corosync_votequorum\n", "corosync_votequorum\n  wait_for_all: 1\n")
    found = corosync_export.desired(text)
    assert found["not_expressed"] == []
    assert found["cluster"] == {
        "corosync_cluster_name": "production",
        "corosync_token": 3000,
        "corosync_token_coefficient": 650,
        "corosync_link_options": [{"number": 1, "priority": 20, "transport": "sctp"}],
        "corosync_crypto": {"cipher": "aes256", "hash": "sha512"},
        "corosync_totem": {"join": "060", "knet_mtu": 1400, "link_mode": "rr"},
        "corosync_logging": {"logfile": "/var/log/corosync.log", "to_syslog": "no"},
        "corosync_quorum": {"wait_for_all": 1},
    }


def test_what_says_only_the_default_is_left_out() -> None:
    lines = "crypto_cipher: aes256\n  crypto_hash: sha256\n  join: 50\n  block_unlisted_ips: yes\n"
    text = CONF.replace("  secauth: on\n", f"  secauth: on\n  {lines}")
    text = text.replace("    linknumber: 0\n", "    linknumber: 0\n    knet_transport: udp\n    knet_pong_count: 2\n")
    text = text.replace("corosync_votequorum\n", "corosync_votequorum\n  two_node: 0\n  wait_for_all: 0\n")
    text = text.replace("  to_syslog: yes\n", "  to_syslog: yes\n  fileline: off\n")
    assert corosync_export.desired(text) == corosync_export.desired(CONF)
    # With two_node the default is the other one.
    found = corosync_export.desired(text.replace("two_node: 0", "two_node: 1"))
    assert found["cluster"]["corosync_quorum"] == {"wait_for_all": 0}


def test_what_no_variable_says_is_named() -> None:
    text = CONF.replace("quorum_votes: 1", "quorum_votes: 3\n    rack: 4", 1)
    text = text.replace("ring1_addr: 10.1.0.3", "ring2_addr: 10.1.0.3")
    text = text.replace("    linknumber: 1\n", "    linknumber: 1\n    knet_link_priority: high\n    mcastport: 5405\n")
    text = text.replace("  token: 3000\n", "  token: 03000\n  rrp_mode: passive\n  keyfile: /root/k\n  transport: udpu\n")
    text = text.replace("corosync_votequorum\n", "corosync_votequorum\n  two_node: 1\n  expected_votes: 3\n")
    text = text.replace("  to_syslog: yes\n", "  to_syslog: yes\n  logfile: /var/log/caf\ufffd\n")
    found = corosync_export.desired(text)
    assert found["cluster"] == {"corosync_cluster_name": "production"}
    assert found["not_expressed"] == [
        "pve1 has 3 votes (quorum_votes)",
        "pve1 has rack: 4",
        "pve3 has ring0_addr, ring2_addr, and the place of an address in corosync_links is the number of its link",
        "logging.logfile: /var/log/caf\ufffd",
        # Beside a join or a QDevice these would be brought back, and a new cluster refuses them.
        "quorum.two_node: 1",
        "quorum.expected_votes: 3",
        "totem.token: 03000",
        "totem.rrp_mode: passive",
        "totem.keyfile: /root/k",
        "totem.interface[1].knet_link_priority: high",
        "totem.interface[1].mcastport: 5405",
    ]


def test_a_key_in_the_file_is_not_shown() -> None:
    text = CONF.replace("  secauth: on\n", "  secauth: on\n  key: c2VjcmV0\n")
    assert corosync_export.desired(text)["not_expressed"] == ["totem.key: (not shown)"]
    names = ["totem.shared_secret", "logging.passphrase", "quorum.device.net.psk", "vault.private.value", "node.my_own_key"]
    for name in names:
        *sections, key = name.split(".")
        opening, closing = "".join(f"{section} {{\n" for section in sections), "}\n" * len(sections)
        found = corosync_export.desired(f"{CONF}{opening}{key}: c2VjcmV0\n{closing}")
        assert found["not_expressed"] == [f"{name}: (not shown)"] and "c2VjcmV0" not in str(found)
    assert corosync_export.desired(CONF.replace("nodeid: 1\n", "nodeid: 1\n    api_key: c2VjcmV0\n"))["not_expressed"] == [
        "pve1 has api_key: (not shown)"
    ]


def test_the_copy_that_can_be_read_is_taken() -> None:
    broken = {"text": "totem {\n", "config_version": None}
    good = {"text": CONF, "config_version": 7}
    found = corosync_export.of_info({"cluster": broken, "host": good})
    assert found is not None and found["cluster"]["corosync_cluster_name"] == "production"
    assert corosync_export.of_info({"cluster": broken, "host": None}) is None
    assert corosync_export.of_info({"cluster": None, "host": good, "example_conf": True}) is None


# The inventory


def exported(nodes: Facts, **variables: dict[str, Any]) -> corosync_export.Inventory:
    return corosync_export.inventory(nodes, variables)


def test_one_member_is_enough() -> None:
    found = exported({"pve1": node(1)})
    assert found.errors == [] and found.notes == []
    assert yaml.safe_load(corosync_export.render(found)) == {
        "all": {
            "children": {
                "cluster_production": {
                    "vars": {"corosync_cluster_name": "production"},
                    "hosts": {
                        # Reached by the name that was given; the others by what the members tell each other.
                        "pve1": {"corosync_node_id": 1, "corosync_links": ["10.0.0.1", "10.1.0.1"]},
                        "pve2": {
                            "ansible_host": "192.0.2.2",
                            "corosync_node_id": 2,
                            "corosync_links": ["10.0.0.2", "10.1.0.2"],
                        },
                        "pve3": {
                            "ansible_host": "192.0.2.3",
                            "corosync_node_id": 3,
                            "corosync_links": ["10.0.0.3", "10.1.0.3"],
                        },
                    },
                }
            }
        }
    }


@pytest.mark.parametrize("asked", [["pve1"], ["pve1", "pve2", "pve3"], ["pve3", "pve1"]])
@pytest.mark.parametrize("token", [3000, 5000])
def test_a_run_with_the_exported_inventory_changes_nothing(asked: list[str], token: int) -> None:
    text = conf(token_ms=token)
    nodes = {f"pve{n}": node(n, text, text) for n in (1, 2, 3)}
    found = exported({host: nodes[host] for host in asked})
    hosts = yaml.safe_load(corosync_export.render(found))["all"]["children"]["cluster_production"]["hosts"]
    variables = found.hosts()
    assert list(hosts) == list(variables)
    assert inventory_errors(variables) == []
    # Every node is a member already and stays one.
    known = {host: {"cluster": variables[host]["corosync_cluster_name"], "node": nodes[host]} for host in variables}
    assert {entry["action"] for entry in cluster_plan(known, list(known)).values()} == {"adopt"}
    # And corosync.conf stays as it is, to the byte.
    listed = [
        {"name": host, "node_id": own["corosync_node_id"], "links": own["corosync_links"]} for host, own in variables.items()
    ]
    configured = next(iter(variables.values())).get("corosync_token")
    assert configured == (token if token != 3000 else None)
    assert corosync_wish.merge(text, corosync_wish.Wanted("production", listed, configured)) == (text, [])


def recorded(path: Path) -> str:
    """The corosync.conf that a Corosync had read when its cmap was recorded."""
    tree: dict[str, Any] = {}
    for key, value in corosync_tools.parse_cmap(path.read_text()).items():
        *sections, name = re.sub(r"(node|interface)\.([0-9]+)\.", r"\1 \2.", key).split(".")
        if sections and sections[0] in ("totem", "nodelist", "quorum", "logging") and name != "local_node_pos":
            place = tree
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = value

    def written(values: dict[str, Any], indent: str) -> str:
        out = ""
        for name, value in values.items():
            kind, _, number = name.partition(" ")
            if isinstance(value, dict):
                own = {"linknumber": number, **value} if kind == "interface" else value
                out += f"{indent}{kind} {{\n{written(own, indent + '  ')}{indent}}}\n"
            else:
                out += f"{indent}{name}: {value}\n"
        return out

    return written(tree, "")


TEXTS = {path.name: path.read_text() for path in sorted((HERE / "configurations").iterdir()) if "nodelist" not in path.name} | {
    path.name: recorded(path) for path in sorted((HERE / "recorded").glob("cmapctl-[!s]*"))
}


def asked_of(hosts: Mapping[str, Mapping[str, Any]]) -> corosync_wish.Wanted:
    """What the role corosync asks of corosync.conf for an inventory, by the variables of its hosts (tasks/change.yml)."""
    group = next(iter(hosts.values()))
    return corosync_wish.Wanted(
        cluster_name=group["corosync_cluster_name"],
        token_ms=group.get("corosync_token"),
        links=[{**link, "absent": link.get("state") == "absent"} for link in group.get("corosync_link_options", [])],
        token_coefficient_ms=group.get("corosync_token_coefficient"),
        crypto=group.get("corosync_crypto"),
        totem=group.get("corosync_totem", {}),
        logging=group.get("corosync_logging", {}),
        quorum=group.get("corosync_quorum", {}),
    )


@pytest.mark.parametrize("name", TEXTS)
def test_the_inventory_of_a_cluster_is_valid_and_asks_for_what_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corosync_wish, "resolve_host", lambda _: ["192.0.2.250"])
    text = TEXTS[name]
    document = corosync_conf.parse(text)
    member = document.nodes()[0].name or ""
    found = exported({member: node(document.nodes()[0].node_id or 0, text, text, hostname=member)})
    assert found.errors == []
    (content,) = yaml.safe_load(corosync_export.render(found))["all"]["children"].values()
    hosts = {host: {**content["vars"], **own} for host, own in content["hosts"].items()}
    assert hosts == found.hosts()
    # The rules of validate.yml, the types and names of every role's variables among them.
    rules = load_filters("playbooks")
    assert rules.FILTERS["pveguard_inventory_errors"](hosts) == []
    wanted = asked_of(hosts)
    assert corosync_wish.merge(text, wanted) == (text, [])
    # Nor with corosync_update_nodes.
    nodes = [
        {"name": host, "node_id": int(own["corosync_node_id"]), "links": own["corosync_links"]} for host, own in hosts.items()
    ]
    assert corosync_wish.sequence(text, dataclasses.replace(wanted, nodes=nodes, update_nodes=True)) == ([], [])
    assert corosync_wish.sequence(text, wanted) == ([], [])
    for directory in ("pve", "corosync"):
        (tmp_path / "etc" / directory).mkdir(parents=True)
        (tmp_path / "etc" / directory / "corosync.conf").write_text(text)
    outcome = corosync_change.plan(wanted, root=tmp_path)
    assert (outcome.changed, outcome.steps, outcome.restart_needed, outcome.after) == (False, 0, [], text)


KEYS = (
    "link_mode ip_version consensus knet_mtu window_size join transport secauth crypto_cipher crypto_hash token rrp_mode key "
    "token_coefficient knet_link_priority knet_transport knet_pong_count linknumber debug to_syslog logfile timestamp fileline "
    "wait_for_all two_node expected_votes auto_tie_breaker_node last_man_standing votes password unknown"
).split()
VALUES = "0 1 00 2 007 10 125 650 3000 yes no on off none aes128 aes256 sha256 sctp udp udpu knet rr passive 1.5 -1 c2VjcmV0"
LINES = st.lists(
    st.tuples(
        st.sampled_from(["totem", "logging", "quorum", "interface 0", "interface 1", "interface 3", "system"]),
        st.sampled_from(KEYS),
        st.sampled_from([*VALUES.split(), "", "1 3 5", "a } b", "caf\u00e9", "\ufffd", "x: y # z"]),
    ),
    max_size=12,
)


@given(LINES)
# The edit would take the last of the two lines, which says nothing.
@example([("interface 1", "knet_pong_count", "10"), ("interface 1", "knet_pong_count", "")])
def test_whatever_a_file_says_is_kept_and_is_told(lines: list[tuple[str, str, str]]) -> None:
    text = CONF
    for section, key, value in lines:
        kind, _, number = section.partition(" ")
        if number:
            text += f"totem {{\n  interface {{\n    linknumber: {number}\n    {key}: {value}\n  }}\n}}\n"
        else:
            text += f"{kind} {{\n\t{key}: {value} \n}}\n"
    found = corosync_export.desired(text)
    wanted = asked_of({"pve1": found["cluster"]})
    assert corosync_wish.merge(text, wanted)[0] == text
    assert "c2VjcmV0" not in str([note for note in found["not_expressed"] if re.search(r"\.(key|password):", note)])
    document = corosync_conf.parse(text)
    if any(problem.severity == "error" for problem in corosync_check.problems(document)):
        return
    # A cluster founded with these variables is the same but for what is in a note, or is only a default spelt out.
    new = corosync_edit.render_new("production", NODES)
    founded = corosync_conf.parse(corosync_wish.merge(new, wanted)[0])
    assert founded.crypto == document.crypto
    has, should = (dict(corosync_export._statements(each.root)) for each in (founded, document))
    defaults = corosync_export._defaults(document, corosync_conf.parse(new))
    told = {note.partition(":")[0] for note in found["not_expressed"]}
    ignored = {"totem.config_version", *corosync_export._CRYPTO}
    for name in should.keys() - told - ignored:
        if has.get(name) != should[name] and not name.endswith(".linknumber"):
            assert name not in has and defaults.get(name) == should[name], f"{name}: {should[name]} is told nowhere"


def test_how_a_host_is_reached_is_kept_and_secrets_are_not() -> None:
    asked = {
        "ansible_host": "192.0.2.77",
        "ansible_port": 2222,
        "ansible_user": "admin",
        "ansible_become": True,
        "ansible_password": "hunter2",
        "ansible_ssh_private_key_file": "/home/admin/key",
        "corosync_authkey": "c2VjcmV0",
    }
    found = exported({"pve1": node(1)}, pve1=asked)
    text = corosync_export.render(found)
    for secret in ("hunter2", "/home/admin/key", "c2VjcmV0", "a" * 64):
        assert secret not in text
    hosts = found.hosts()
    assert (hosts["pve1"]["ansible_host"], hosts["pve1"]["ansible_port"]) == ("192.0.2.77", 2222)
    # The others are reached as the same user, and at their own port.
    assert (hosts["pve2"]["ansible_user"], hosts["pve2"]["ansible_become"]) == ("admin", True)
    assert "ansible_port" not in hosts["pve2"]
    group = found.groups["cluster_production"]
    assert group["vars"]["ansible_user"] == "admin" and "ansible_user" not in group["hosts"]["pve1"]
    # Where the hosts that were asked have different users, each keeps its own.
    both = exported({"pve1": node(1), "pve2": node(2)}, pve1={"ansible_user": "one"}, pve2={"ansible_user": "two"}).hosts()
    assert (both["pve1"]["ansible_user"], both["pve2"]["ansible_user"]) == ("one", "two")
    assert "ansible_user" not in both["pve3"]


def test_names_of_the_inventory_are_kept_where_they_are_the_nodes_own() -> None:
    hosts = exported({"pve1.example.com": node(1), "192.0.2.22": node(2)}).hosts()
    assert list(hosts) == ["pve1.example.com", "pve2", "pve3"]
    assert hosts["pve2"]["ansible_host"] == "192.0.2.22" and "ansible_host" not in hosts["pve1.example.com"]


def test_a_member_whose_address_nobody_tells_is_named() -> None:
    for addresses in ({}, {"pve2": "not an address", "pve3": "{{ lookup('pipe', 'id') }}"}):
        found = exported({"pve1": node(1, pmxcfs={"member_addresses": addresses})})
        assert [note.split()[0] for note in found.notes] == ["pve2", "pve3"]
        assert "ansible_host" not in found.hosts()["pve2"]
        assert "lookup" not in corosync_export.render(found)


def test_several_clusters_and_hosts_without_one() -> None:
    second = conf(name="second", nodes=1).replace("pve1", "other1")
    other = node(1, second, second, live=(1,), hostname="other1")
    alone = node(7, None, None, mode="local", running=False, hostname="solo")
    found = exported({"pve1": node(1), "other1": other, "solo": alone, "away": None}, solo={"ansible_port": "22"})
    assert {group: list(content["hosts"]) for group, content in found.groups.items()} == {
        "cluster_production": ["pve1", "pve2", "pve3"],
        "cluster_second": ["other1"],
        "standalone": ["solo"],
    }
    assert "away could not be asked and is left out" in found.notes and found.errors == []
    text = corosync_export.render(found)
    assert text.startswith("# Written by playbooks/export.yml") and "\n# away could not be asked" in text
    assert found.hosts()["solo"] == {"ansible_port": "22"}


def test_a_member_that_did_not_answer_is_described_by_the_others() -> None:
    assert list(exported({"pve1": node(1), "pve2": None}).hosts()) == ["pve1", "pve2", "pve3"]


def test_clusters_with_nodes_of_one_name_are_refused() -> None:
    second = conf(name="second", nodes=1)
    found = exported({"pve1": node(1), "192.0.2.9": node(1, second, second, live=(1,))})
    assert any("another host pve1" in error for error in found.errors)


def test_ha_in_use_is_described_as_a_run_accepts_it() -> None:
    facts = node(1, ha={"resources": ["vm:100"]})
    assert exported({"pve1": facts}).hosts()["pve2"]["ram_state_enabled"] is False
    assert "ram_state_enabled" not in exported({"pve1": node(1)}).hosts()["pve1"]


@pytest.mark.parametrize(
    "second",
    [
        node(2, conf(), conf(note="other")),
        node(2, conf(6), conf(6)),
        node(2, None, None, running=False),
    ],
)
def test_copies_that_differ_are_refused(second: dict[str, Any]) -> None:
    found = exported({"pve1": node(1), "pve2": second})
    assert len(found.errors) == 1 and "not the same everywhere" in found.errors[0] and "pve2" in found.errors[0]


def test_a_configuration_that_cannot_be_is_refused() -> None:
    for broken in (conf().replace("nodeid: 3", "nodeid: 2"), conf().replace("    name: pve3\n", "")):
        (error,) = exported({"pve1": node(1, broken, broken)}).errors
        assert error.startswith("cluster production: /etc/pve/corosync.conf:")


def test_nobody_answered() -> None:
    assert exported({"pve1": None}).errors == ["no host could be asked, so there is nothing to export"]


def test_a_template_in_a_configuration_is_refused() -> None:
    text = conf().replace("10.1.0.3", "lookup")
    found = exported({"pve1": node(1, text, text)}, pve1={"ansible_user": "{{ lookup('pipe', 'id') }}"})
    assert found.errors and all("would take for a template" in error for error in found.errors)


@pytest.mark.slow
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.booleans() | st.integers(0, 2**40))
def test_every_value_is_read_back_as_it_was(value: Any) -> None:
    found = yaml.safe_load(f"key: {corosync_export.scalar(value)}\n")["key"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["on", "No", "null", "1e3", "0x1f", "1:30", "fd00::1", "10.0", "~", "- a", "# a", "", "1_000"])
def test_what_yaml_would_misread_is_quoted(text: str) -> None:
    assert yaml.safe_load(corosync_export.scalar(text)) == text


def test_a_probe_is_in_its_own_group_and_the_members_are_as_without_it() -> None:
    # Whatever its id: it has no vote, or the placeholder of a certificate on /etc/pve.
    probe_node = {"name": "watch1", "node_id": 7, "links": ["10.0.0.9", "10.1.0.9"], "votes": 0}
    for votes, more in ((0, {}), (1, {"probe_votes": 1})):
        text = corosync_edit.render_new("production", [*NODES[:2], {**probe_node, "votes": votes}], config_version=7)
        facts = {"pve1": node(1, text, text, live=(1, 2, 7))}
        facts["pve1"]["corosync"]["members"][2]["probe"] = True
        found = corosync_export.inventory(facts, {"pve1": {"ansible_user": "admin"}})
        assert found.errors == [] and list(found.groups) == ["cluster_production", "pve_probe"]
        assert set(found.groups["cluster_production"]["hosts"]) == {"pve1", "pve2"}
        own = found.groups["pve_probe"]["hosts"]["watch1"]
        named = {key: value for key, value in own.items() if not key.startswith("ansible_")}
        assert named == {
            "corosync_cluster_name": "production", "corosync_node_id": 7, "corosync_links": ["10.0.0.9", "10.1.0.9"], **more,
        }  # fmt: skip
        assert not any("votes" in note for note in found.notes)
        document = yaml.safe_load(corosync_export.render(found))
        groups = {host: [group] for group, each in document["all"]["children"].items() for host in each["hosts"]}
        assert inventory_errors(found.hosts(), host_groups=groups) == []


def test_a_member_with_the_id_of_old_probes_is_a_member() -> None:
    text = corosync_edit.render_new("production", [*NODES[:2], {**NODES[2], "node_id": 1000}], config_version=7)
    found = exported({"pve1": node(1, text, text, live=(1, 2, 1000))})
    assert found.errors == [] and list(found.groups) == ["cluster_production"]
    assert found.hosts()["pve3"]["corosync_node_id"] == 1000


def test_a_node_of_proxmox_ve_without_a_vote_is_a_member_whose_votes_stay_as_they_are() -> None:
    text = corosync_edit.render_new("production", [*NODES[:2], {**NODES[2], "votes": 0}], config_version=7)
    facts = node(1, text, text)
    facts["corosync"]["members"][2].update(probe=False, is_node=True)
    found = exported({"pve1": facts})
    assert set(found.groups) == {"cluster_production"} and "pve3" in found.hosts()
    assert any("pve3 has 0 votes (quorum_votes)" in note for note in found.notes)


TWO = [{"name": f"pve{number}", "node_id": number, "links": [f"10.0.0.{number}", f"10.1.0.{number}"]} for number in (1, 2)]
#: What exists on live clusters: the text, and the variable that says it or the note that it stays as it is.
LIVE = {
    "ids of addresses": (
        lambda text: re.sub(r"    nodeid: .\n|    ring1.*\n|.*secauth.*\n", "", text).replace(
            "transport: knet", "transport: udpu"
        ).replace("  interface {\n    linknumber: 1\n  }\n", ""), "corosync_node_id: 167772162",
    ),
    "ipv6": (lambda text: text.replace("10.0.0.", "2001:DB8:0:0::"), "2001:DB8:0:0::1"),
    "old ipv4": (lambda text: text.replace("10.0.0.2", "10.0.0.02"), "10.0.0.2"),
    "names": (lambda text: re.sub(r"    name: .*\n|    ring1.*\n", "", text).replace("10.0.0.", "pve"), "that of ring0_addr"),
    "a trailing dot": (lambda text: text.replace("10.0.0.1", "Pve1.example.org."), "Pve1.example.org."),
    "ringnumber": (lambda text: text.replace("    linknumber: 1", "    linknumber: 1\n    ringnumber: 4"), "ringnumber: 4"),
    "two sections of a link": (
        lambda text: text.replace("  ip_version", "  interface {\n    knet_link_priority: 4\n  }\n  ip_version"), "priority: 4"
    ),
    "an unknown section": (lambda text: text + "my-own {\n  in {\n    a: 1\n  }\n}\n", "my-own.in.a: 1"),
    "a key outside": (lambda text: "outer: 5\n" + text, "outer: 5"),
    "token 0": (lambda text: text.replace("token: 3000", "token: 0"), "corosync_token: 0"),
    "a sign": (lambda text: text.replace("token_coefficient: 125", "token_coefficient: +125"), "+125"),
    "votes": (lambda text: text.replace("quorum_votes: 1", "quorum_votes: 2", 1), "2 votes"),
    "a high version": (lambda text: text.replace("config_version: 7", f"config_version: {2**64 - 2}"), "production"),
}


@pytest.mark.parametrize("name", LIVE)
def test_what_is_on_a_live_cluster_is_said_and_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corosync_wish, "resolve_host", lambda host: [f"192.0.2.{sum(host.encode()) % 250}"])
    change, says = LIVE[name]
    plain = corosync_edit.render_new("production", TWO, config_version=7)
    text = change(plain)
    assert text != plain
    document = corosync_conf.parse(text)
    found = exported({"pve1": node(document.nodes()[0].node_id or 0, text, text)})
    assert found.errors == []
    rendered = corosync_export.render(found)
    assert says in rendered
    (content,) = yaml.safe_load(rendered)["all"]["children"].values()
    hosts = {host: {**content["vars"], **own} for host, own in content["hosts"].items()}
    assert load_filters("playbooks").FILTERS["pveguard_inventory_errors"](hosts) == []
    nodes = [{"name": host, "node_id": own["corosync_node_id"], "links": own["corosync_links"]} for host, own in hosts.items()]
    wanted = dataclasses.replace(asked_of(hosts), nodes=nodes, update_nodes=True)
    assert corosync_wish.sequence(text, wanted) == ([], [])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("ring1_addr", "ring2_addr", "pve1 has ring0_addr, ring2_addr"),
        ("ring0_addr", "ring2_addr", "pve1 has ring1_addr, ring2_addr"),
        ("    ring1_addr: 10.1.0.2\n", "", "pve2 has no ring1_addr, which other nodes have"),
        ("    name: pve2\n", "", "has no name, and its ring0_addr is an address"),
        ("quorum {", "nodelist {\n  node {\n    nodeid: 3\n  }\n}\nquorum {", "2 nodelist sections"),
    ],
)
def test_what_no_inventory_can_say_is_refused_with_its_key(old: str, new: str, says: str) -> None:
    text = corosync_edit.render_new("production", TWO, config_version=7).replace(old, new)
    found = exported({"pve1": node(1, text, text)})
    assert any(says in error for error in found.errors) and not found.hosts()


@pytest.mark.parametrize("names", [("192.0.2.1", "192.0.2.2"), ("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "10.1.0.2")])
def test_hosts_that_are_given_by_address_get_the_names_of_their_nodes(names: tuple[str, str]) -> None:
    """As with -i '192.0.2.1,': the first was asked, the second did not answer."""
    found = exported({names[0]: node(1), names[1]: None})
    assert found.errors == [] and list(found.groups) == ["cluster_production"]
    hosts = found.hosts()
    assert set(hosts) == {"pve1", "pve2", "pve3"}
    assert [hosts[name]["ansible_host"] for name in hosts] == [names[0], names[1], "192.0.2.3"]
    assert [hosts[name]["corosync_node_id"] for name in hosts] == [1, 2, 3]
