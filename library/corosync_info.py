#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""What a node's Corosync is configured to be and what it is, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: corosync_info
short_description: Both copies of corosync.conf, membership, quorum and links of a node
description:
  - Reads both copies of corosync.conf of a node and asks its running Corosync, in one round trip.
  - With O(wait_for) it looks again until a change has arrived on this node, so that a play can ask each member.
  - Reads only; also where Corosync or the cluster file system is not installed or does not run.
attributes:
  check_mode:
    support: full
    description: It reads only. In check mode it looks once, does not wait and does not fail for what is missing.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  statistics:
    description: Adds what knet counts of each link, latencies among them. Costs one command more.
    type: bool
    default: false
  wait_for:
    description: What must be so on this node. What is not given is not waited for.
    type: dict
    suboptions:
      sha256:
        description:
          - SHA-256 of both copies, in hexadecimal. Corosync must also run the C(config_version) that stands there.
        type: str
      config_version:
        description: The C(config_version) of both copies and of the running Corosync.
        type: int
      live_member_ids:
        description: Node ids that must be in the membership.
        type: list
        elements: int
      quorate:
        description: Whether the node must be quorate.
        type: bool
  deadline_seconds:
    description: How long to wait in seconds; V(0) looks once.
    type: float
    default: 60
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Look at Corosync
  corosync_info:
    statistics: true
  register: seen

- name: Show the round trips on link 0 in microseconds
  ansible.builtin.debug:
    msg: "{{ seen.corosync.link_statistics | selectattr('link', 'eq', 0) | map(attribute='latency_average_us') }}"

- name: Wait until the change is here
  corosync_info:
    wait_for:
      sha256: "{{ written.text | hash('sha256') }}"
      quorate: true
    deadline_seconds: 90
"""

RETURN = r"""
corosync:
  description: The facts.
  returned: always
  type: dict
  contains:
    installed: {description: Whether the program is there., type: bool}
    running: {description: Whether Corosync answers., type: bool}
    cluster_name: {description: 'Name of the cluster, of the running Corosync or else of the file.', type: str}
    host:
      description: >-
        The copy in /etc/corosync as sha256, config_version (null when it has none or cannot be parsed) and text; null
        when there is none.
      type: dict
    cluster: {description: The same of the copy on /etc/pve., type: dict}
    copies_equal: {description: Whether both are the same bytes; null unless both exist., type: bool}
    example_conf: {description: Whether it is the example of Debian's package., type: bool}
    running_config_version: {description: config_version that Corosync runs., type: int}
    member_config_versions: {description: 'The same of every live member, by node id.', type: dict}
    members:
      description: >-
        Nodes of the nodelist as id, name (null where the file has none and ring0_addr is an address), addresses, votes,
        is_node (/etc/pve has a certificate of its own or the status of an LRM for it) and probe (it has the placeholder of a
        certificate there, or neither a vote nor anything of a node).
      type: list
      elements: dict
    live_member_ids: {description: Node ids in the membership., type: list, elements: int}
    quorate: {description: Whether the node has quorum; null while Corosync does not run., type: bool}
    expected_votes: {description: Votes that Corosync expects., type: int}
    total_votes: {description: Votes that are there., type: int}
    authkey_sha256: {description: Hash of the key; the key is never returned., type: str}
    authkey_mode: {description: 'Its permission bits as octal text, null without a key.', type: str}
    authkey_exposed: {description: Whether others than root may read or change the key., type: bool}
    qdevice: {description: Whether a QDevice is configured., type: bool}
    two_node: {description: Whether quorum.two_node is set., type: bool}
    token_ms: {description: 'Effective token timeout in ms, with the coefficient.', type: int}
    configured_token_ms: {description: 'Token of the file in ms, 0 for the default; null when it has none.', type: int}
    node_id: {description: Node id of this node., type: int}
    restart_pending:
      description: >-
        Settings that were written and wait for a restart of Corosync on this node, as M(corosync_restart) noted them.
      type: list
      elements: str
    links:
      description: >-
        Per link its number, the address of this node, and peers, the state of the link by node id (connected,
        disconnected, localhost).
      type: list
      elements: dict
    link_statistics:
      description: >-
        With O(statistics), per link and peer; null otherwise and while Corosync does not run. From the map stats of
        cmap (corosync-cmapctl -m stats, cmap_keys(7)). What Corosync does not say is null.
      type: list
      elements: dict
      contains:
        link: {description: Number of the link., type: int}
        node_id: {description: Node id of the peer., type: int}
        connected: {description: Whether knet has an answer of the peer on this link., type: bool}
        enabled: {description: Whether the link is configured., type: bool}
        latency_average_us:
          description: >-
            Mean round trip of knet's own pings in microseconds; null without a sample, old when it is not connected.
          type: int
        latency_min_us: {description: Shortest since Corosync started., type: int}
        latency_max_us: {description: Longest since Corosync started., type: int}
        latency_samples: {description: Pings that were answered., type: int}
        mtu_bytes: {description: Bytes that one packet carries on this link., type: int}
        up_count: {description: How often the link came up., type: int}
        down_count: {description: How often it went down., type: int}
    errors: {description: What could not be read., type: list, elements: str}
desired:
  description: The cluster in the form in which the role corosync takes it; null without a configuration.
  returned: always
  type: dict
  contains:
    cluster:
      description: >-
        Variables of the group: corosync_cluster_name, corosync_token in ms where the file has one, and what differs from a
        new cluster's settings and from Corosync's own defaults as corosync_token_coefficient (in ms),
        corosync_link_options, corosync_crypto, corosync_totem, corosync_logging, corosync_quorum.
      type: dict
    hosts: {description: corosync_node_id and corosync_links by node name., type: dict}
    not_expressed:
      description: What differs and is in none of these variables; a value that may be a secret is not shown.
      type: list
      elements: str
arrived:
  description: Whether all that was waited for is so; null when nothing was.
  returned: always
  type: bool
missing:
  description: What is not so, in words.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.cluster import corosync_export
from ansible.module_utils.pveguard.corosync import corosync_info


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "statistics": {"type": "bool", "default": False},
            "wait_for": {
                "type": "dict",
                "options": {
                    "sha256": {"type": "str"},
                    "config_version": {"type": "int"},
                    "live_member_ids": {"type": "list", "elements": "int"},
                    "quorate": {"type": "bool"},
                },
            },
            "deadline_seconds": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    params = module.params
    wanted = {key: value for key, value in (params["wait_for"] or {}).items() if value is not None}
    if wanted:
        deadline = 0.0 if module.check_mode else params["deadline_seconds"]
        info, missing = corosync_info.wait(wanted, deadline, params["statistics"])
    else:
        info, missing = corosync_info.collect(statistics=params["statistics"]), []
    result = {
        "corosync": info,
        "desired": corosync_export.of_info(info),
        "arrived": not missing if wanted else None,
        "missing": missing,
    }
    if missing and not module.check_mode:
        module.fail_json(
            msg=f"not so within {params['deadline_seconds']:g} s: {'; '.join(missing)}; see "
            "'journalctl -u pve-cluster -u corosync' on this host",
            **result,
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
