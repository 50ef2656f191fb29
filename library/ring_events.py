#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""What the ring and the synchronisation of the cluster file system did."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ring_events
short_description: What the ring and the synchronisation of the cluster file system did in a time
description:
  - Without O(since) it returns where the journal is (RV(mark)). Given that later, it returns what Corosync and the cluster
    file system said in between, as counts and one by one - memberships, lost tokens, messages sent again, links,
    quorum, reloads, synchronisations with their leader and what they brought.
  - Reads the journal of this boot only.
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  since:
    description: RV(mark) of an earlier call. Empty for none.
    type: dict
    default: {}
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Note where the journal is
  ring_events:
  register: began

- name: Say what the ring did since then
  ring_events:
    since: "{{ began.mark }}"
  register: ring
"""

RETURN = r"""
mark:
  description: Where the journal is now, with boot_id, monotonic_us and time (UTC).
  returned: always
  type: dict
ring:
  description: What happened; null without O(since).
  returned: always
  type: dict
  contains:
    seconds: {description: Length of the window., type: float}
    from: {description: Its begin (UTC)., type: str}
    to: {description: Its end (UTC)., type: str}
    counts:
      description: >-
        Events by kind - membership, token_late, token_lost, retransmit, link_down, link_up, quorum_lost, quorum, reload,
        not_scheduled, sync, leader, updates, up_to_date and held_up.
      type: dict
    joined: {description: Node ids that joined a membership., type: list, elements: int}
    left: {description: Node ids that left one., type: list, elements: int}
    leaders: {description: Node ids that led a synchronisation, in order., type: list, elements: int}
    leader_changes: {description: How often another one led than before., type: int}
    updates_received: {description: Inodes that synchronisations brought., type: int}
    events: {description: 'The events, with seconds, source, kind and text; 500 at most.', type: list, elements: dict}
    notes: {description: What the figures do not tell., type: list, elements: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.writes import ring_events


def main() -> None:
    module = AnsibleModule(argument_spec={"since": {"type": "dict", "default": {}}}, supports_check_mode=True)
    since = module.params["since"]
    if since and not {"boot_id", "monotonic_us", "time"} <= since.keys():
        module.fail_json(msg="since is not what the module returned as mark: boot_id, monotonic_us and time are needed")
    try:
        result = {"ring": ring_events.collect(since) if since else None, "mark": ring_events.mark()}
    except (PveguardError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
