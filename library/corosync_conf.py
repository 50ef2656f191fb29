#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The cluster-wide corosync.conf."""

from __future__ import annotations

DOCUMENTATION = r"""
module: corosync_conf
short_description: Change the cluster's corosync.conf on one member and wait until the change has arrived
description:
  - Merges what is wanted into C(/etc/pve/corosync.conf); comments, order and everything it does not know
    stay, and so do a QDevice and an existing C(two_node).
  - Works the documented way. A candidate is checked for mistakes that C(corosync -t) accepts and by
    C(corosync -t) itself, C(config_version) is raised by one, the former text is kept as
    C(corosync.conf.bak), the new one is renamed into place.
  - Corosync does not take other addresses for a link that it has. Such a link is first taken off and then
    added again, each step awaited, while another link carries the cluster.
  - Also without a change it waits until both copies on this node are the same bytes, the running Corosync of
    every live member has their C(config_version), and O(expected_ids) are in the membership. After a change
    every node that was live must still be, and new links must be up. When only the running version lags, the
    reload is issued once more. With V(absent) and nothing to remove it returns at once.
  - A change that has not arrived after O(deadline_seconds) is undone. The former text is put back with a still
    higher C(config_version), that is awaited as long, and the module fails with both texts and the journal.
    Where that cannot be written, because quorum is lost, the message says what to do. The removal of a node
    is not undone.
  - A node that is listed already with the same id and addresses needs no quorum, nothing is written.
  - Writes under the lock that C(pvecm) takes too, C(/etc/pve/priv/lock/file-corosync_conf). One that somebody holds is
    awaited until it is stale (120 s after it was made), then the daemon is asked to drop it. One that cannot be given
    back, because the change costs the quorum for a while, is noted and returned as RV(lock_kept), and where the call
    fails warned of; the next call on this node or the module pve_lock gives it back.
  - Refuses, with nothing changed, without quorum; while both copies differ; while a QDevice is configured when
    a node is added or removed; another cluster's name; a change of the encryption of a live cluster unless
    O(allow_crypto_change); the replacement of all links at once, or of one while no other is up; votes that
    would cost the quorum; V(two_node); what needs a restart of Corosync while there are HA resources.
attributes:
  check_mode:
    support: full
    description: Neither writes nor waits. On a node without a cluster every wish counts as a change.
  diff_mode:
    support: full
    description: Shows the whole file before and after; it holds no secret.
options:
  state:
    description:
      - Whether the nodes must be there. V(absent) removes nodes that are not in the live membership. When
        nothing but these nodes is missing for quorum, the running count of votes is lowered first. A node
        of that name with another id or other addresses is refused.
    type: str
    choices: [present, absent]
    default: present
  cluster_name:
    description: Refuse when the configuration is of another cluster.
    type: str
  nodes:
    description: Nodes that the nodelist must contain, or must not.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Host name of the node.
        type: str
        required: true
      node_id:
        description: Its node id, from 1.
        type: int
        required: true
      links:
        description: Its addresses, index = link number; an empty text stands for a link that it does not have.
        type: list
        elements: str
        required: true
      votes:
        description: Its votes. A node that is added gets 1 without it; a listed one keeps what it has.
        type: int
  update_nodes:
    description:
      - Give listed nodes the addresses and votes of O(nodes). Without it a listed node with other addresses is
        refused. A link that no node is on any more is removed.
    type: bool
    default: false
  links:
    description: Links of the whole cluster. What is not named stays.
    type: list
    elements: dict
    default: []
    suboptions:
      number:
        description: Number of the link, 0 to 7.
        type: int
        required: true
      state:
        description: V(absent) takes the link off every node.
        type: str
        choices: [present, absent]
        default: present
      addresses:
        description: Addresses of nodes on it, by node name. A link that is added needs one for every node.
        type: dict
        default: {}
      priority:
        description: Priority, 0 to 255. The highest that is up carries the traffic (C(link_mode) passive).
        type: int
      transport:
        description: Transport of the link. To change it the link is taken off and added again.
        type: str
        choices: [udp, sctp]
      ping_interval:
        description: Time between pings in ms; set O(links[].ping_timeout) too.
        type: int
      ping_timeout:
        description: Time without an answer after which the link is down, in ms.
        type: int
      ping_precision:
        description: Number of latencies that are averaged.
        type: int
      pong_count:
        description: Number of answers after which the link is up.
        type: int
  token:
    description: The token in ms. Left as it is when not given.
    type: int
  token_coefficient:
    description: What each node beyond the second adds to the token, in ms. Left as it is when not given.
    type: int
  crypto:
    description: Encryption of the cluster's traffic. Left as it is when not given.
    type: dict
    suboptions:
      cipher:
        description: Cipher.
        type: str
        choices: [none, aes256, aes192, aes128]
      hash:
        description: Hash of the authentication.
        type: str
        choices: [none, md5, sha1, sha256, sha384, sha512]
  allow_crypto_change:
    description:
      - Change the encryption of a live cluster. Needs corosync 3.1, every member live and the same
        C(/etc/corosync/authkey) on all of them, which the module can check on this node only.
    type: bool
    default: false
  totem:
    description:
      - Other keys of C(totem), such as C(link_mode) or C(knet_mtu). A null takes a key off, here and in the next
        two options. Keys with an option of their own are refused, unless they have that value already.
    type: dict
    default: {}
  logging:
    description: Keys of C(logging), such as C(debug) or C(to_logfile).
    type: dict
    default: {}
  quorum:
    description: Keys of C(quorum), such as C(wait_for_all).
    type: dict
    default: {}
  restore:
    description:
      - A former text of this cluster that is put back with a C(config_version) above any that was seen. Not
        together with other wishes.
    type: str
  expected_ids:
    description: Node ids that must be in the live membership.
    type: list
    elements: int
    default: []
  deadline_seconds:
    description: How long to wait in seconds, for each step, and as long again when a change must be undone.
    type: float
    default: 60
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Add a node to the cluster's configuration
  corosync_conf:
    cluster_name: production
    nodes:
      - name: pve4
        node_id: 4
        links: [10.0.0.4]
  delegate_to: pve1

- name: A longer token, and a second link for every node
  corosync_conf:
    token: 5000
    links:
      - number: 1
        addresses: {pve1: 10.1.0.1, pve2: 10.1.0.2, pve3: 10.1.0.3}
        priority: 5
  run_once: true

- name: Another address for one node, while the second link carries the cluster
  corosync_conf:
    nodes:
      - name: pve2
        node_id: 2
        links: [10.0.8.2, 10.1.0.2]
    update_nodes: true
  run_once: true

- name: Back to the text from before a change
  corosync_conf:
    restore: "{{ changed.before }}"
  run_once: true

- name: Take the second link off
  corosync_conf:
    links:
      - number: 1
        state: absent
  run_once: true
"""

RETURN = r"""
config_version:
  description: config_version of the file afterwards, or the one it would have; null without a cluster.
  returned: success
  type: int
text:
  description: The whole configuration afterwards.
  returned: success
  type: str
live_member_ids:
  description: Node ids in the membership.
  returned: success
  type: list
  elements: int
reloaded:
  description: Whether the reload was issued again.
  returned: success
  type: bool
steps:
  description: How many texts were, or would be, written one after the other.
  returned: success
  type: int
restart_needed:
  description: Changed keys that Corosync takes only at its next start. The module restarts nothing.
  returned: success
  type: list
  elements: str
lock_kept:
  description: >-
    Locks on C(/etc/pve) that could not be given back, each with its path and the reason. The module pve_lock gives them
    back once there is quorum.
  returned: always, but for a failure that comes before anything is looked at
  type: list
  elements: dict
  contains:
    path: {description: Path of the lock., type: str}
    reason: {description: Why it could not be removed., type: str}
rolled_back:
  description: Whether the former text is in force again.
  returned: when a change was written and did not arrive
  type: bool
before:
  description: The text before the change.
  returned: success, and when a change was written and did not arrive
  type: str
after:
  description: The text that did not arrive.
  returned: when a change was written and did not arrive
  type: str
journal:
  description: What Corosync and the daemon of this node said meanwhile.
  returned: when a change was written and did not arrive
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.corosync import corosync_change, corosync_wish
from ansible.module_utils.pveguard.formats import corosync_conf
from ansible.module_utils.pveguard.pmxcfs import pve_lock

ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "cluster_name": {"type": "str"},
    "nodes": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "node_id": {"type": "int", "required": True},
            "links": {"type": "list", "elements": "str", "required": True},
            "votes": {"type": "int"},
        },
    },
    "update_nodes": {"type": "bool", "default": False},
    "links": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "number": {"type": "int", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "addresses": {"type": "dict", "default": {}},
            "priority": {"type": "int"},
            "transport": {"type": "str", "choices": ["udp", "sctp"]},
            "ping_interval": {"type": "int"},
            "ping_timeout": {"type": "int"},
            "ping_precision": {"type": "int"},
            "pong_count": {"type": "int"},
        },
    },
    "token": {"type": "int", "no_log": False},
    "token_coefficient": {"type": "int", "no_log": False},
    "crypto": {
        "type": "dict",
        "options": {
            "cipher": {"type": "str", "choices": ["none", "aes256", "aes192", "aes128"]},
            "hash": {"type": "str", "choices": ["none", "md5", "sha1", "sha256", "sha384", "sha512"]},
        },
    },
    "allow_crypto_change": {"type": "bool", "default": False},
    "totem": {"type": "dict", "default": {}},
    "logging": {"type": "dict", "default": {}},
    "quorum": {"type": "dict", "default": {}},
    "restore": {"type": "str"},
    "expected_ids": {"type": "list", "elements": "int", "default": []},
    "deadline_seconds": {"type": "float", "default": 60},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
    )
    params = module.params
    wanted = corosync_wish.Wanted(
        cluster_name=params["cluster_name"],
        nodes=params["nodes"],
        token_ms=params["token"],
        absent=params["state"] == "absent",
        update_nodes=params["update_nodes"],
        links=[{**link, "absent": link["state"] == "absent"} for link in params["links"]],
        token_coefficient_ms=params["token_coefficient"],
        crypto=params["crypto"],
        allow_crypto_change=params["allow_crypto_change"],
        totem=params["totem"],
        logging=params["logging"],
        quorum=params["quorum"],
    )
    try:
        if params["restore"] is not None:
            if not wanted.empty:
                module.fail_json(msg="restore puts a whole text back and takes no other wish")
            outcome = corosync_change.restore(
                params["restore"], params["deadline_seconds"], params["expected_ids"], module.check_mode
            )
        elif module.check_mode:
            outcome = corosync_change.plan(wanted)
        else:
            outcome = corosync_change.apply(wanted, params["deadline_seconds"], params["expected_ids"])
    except corosync_change.ChangeFailed as error:
        module.fail_json(
            msg=str(error),
            rolled_back=error.rolled_back,
            before=shown(error.before),
            after=shown(error.after),
            journal=error.journal,
            lock_kept=pve_lock.report(module.warn),
        )
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error), lock_kept=pve_lock.report(module.warn))
    for warning in outcome.warnings:
        module.warn(f"/etc/pve/corosync.conf: {warning}")
    module.exit_json(
        changed=outcome.changed or outcome.reloaded,
        config_version=corosync_conf.parse(outcome.after).config_version,
        before=shown(outcome.before),
        text=shown(outcome.after),
        live_member_ids=outcome.info["live_member_ids"],
        reloaded=outcome.reloaded,
        steps=outcome.steps,
        # No warning: on a cluster of one that lists a second node it is so each time, and whoever lists it gives it back.
        lock_kept=[each.shown() for each in outcome.lock_kept],
        restart_needed=outcome.restart_needed,
        diff={
            "before_header": "/etc/pve/corosync.conf",
            "after_header": "/etc/pve/corosync.conf",
            "before": shown(outcome.before),
            "after": shown(outcome.after),
        },
    )


def shown(text: str) -> str:
    """A text for the answer; a comment may hold bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


if __name__ == "__main__":
    main()
