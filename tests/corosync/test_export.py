# SPDX-License-Identifier: Apache-2.0
"""A live cluster in the form of the inventory: the same cluster, and nothing that a run would change."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.pveguard import corosync_conf, corosync_export

NODES: list[dict[str, Any]] = [
    {"name": f"pve{number}", "node_id": number, "links": [f"10.0.0.{number}", f"10.1.0.{number}"]} for number in (1, 2, 3)
]
CONF = corosync_conf.render_new("production", NODES, config_version=7)


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


def test_what_the_role_has_no_variable_for_is_named() -> None:
    text = CONF.replace("token_coefficient: 125", "token_coefficient: 650").replace("quorum_votes: 1", "quorum_votes: 3", 1)
    text = text.replace("    linknumber: 1\n", "    linknumber: 1\n    knet_link_priority: 20\n")
    text = text.replace("ring1_addr: 10.1.0.3", "ring2_addr: 10.1.0.3")
    assert corosync_export.desired(text)["not_expressed"] == [
        "pve1 has 3 votes (quorum_votes)",
        "pve3 has the links 0, 2, and the place of an address in corosync_links is the number of its link",
        "totem.token_coefficient: 650",
        "totem.interface[1].knet_link_priority: 20",
    ]


def test_the_copy_that_can_be_read_is_taken() -> None:
    broken = {"text": "totem {\n", "config_version": None}
    good = {"text": CONF, "config_version": 7}
    found = corosync_export.of_info({"cluster": broken, "host": good})
    assert found is not None and found["cluster"]["corosync_cluster_name"] == "production"
    assert corosync_export.of_info({"cluster": broken, "host": None}) is None
    assert corosync_export.of_info({"cluster": None, "host": good, "example_conf": True}) is None
