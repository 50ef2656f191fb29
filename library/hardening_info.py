#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""How a node is hardened, and what on it breaks Proxmox VE, in one round trip and without changing it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hardening_info
short_description: How a Proxmox VE node is hardened, and what others have set on it
description:
  - Looks at files and at the running kernel, and asks programs that only read (C(sshd -T), C(apt-config dump) and the like).
    Nothing is changed, no service is asked to reload, and no file is run that bash sources.
  - The area V(others) sends up to three ICMP timestamp requests to each other member, for the difference of the clocks.
  - An area that could not be read is RV(facts.AREA.known) false, with the reason in C(error); what of it could be read is there.
  - No secret is returned, neither of users' second factors, nor of tokens, realms or the addresses of package sources.
attributes:
  check_mode:
    support: full
    description: It reads only, so it does the same in check mode.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  areas:
    description: Which areas to look at; all of them when the list is empty.
    type: list
    elements: str
    choices: [sshd, firewall, sysctl, accounts, pveproxy, auditd, updates, others]
    default: []
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Look at how the node is hardened
  hardening_info:
  register: pveguard_hardening

- name: Look at kernel settings alone
  hardening_info:
    areas: [sysctl]
"""

RETURN = r"""
areas:
  description: Those that were looked at.
  returned: success
  type: list
  elements: str
facts:
  description: >-
    The facts of each area that was asked for, by its name. C(ours) of an area are those that M(hardening_files) decides by.
  returned: success
  type: dict
  contains:
    sshd:
      description: >-
        What counts for root from each member and from the controller, who sets it, what of it harms a cluster, and where root's
        keys lie.
      type: dict
    firewall:
      description: >-
        Which firewall is in use, what C(cluster.fw) and C(host.fw) say, the members with their addresses on each link of
        Corosync, who may manage the node, what needs a port, guests whose rules sleep, rules of others.
      type: dict
    sysctl:
      description: >-
        Kernel settings that matter to Proxmox VE, in files (C(set)) and in the running kernel (C(runtime)), modules that are kept
        from being loaded, lockdown of the kernel's command line.
      type: dict
    accounts:
      description: >-
        Users, groups, tokens, roles on paths, realms of Proxmox VE by name, and of second factors how many there are and what is
        locked.
      type: dict
    pveproxy:
      description: Access rules and TLS settings of /etc/default/pveproxy, and the members that they must let in.
      type: dict
    auditd: {description: What the audit daemon does with a full log and rules that meet /etc/pve., type: dict}
    updates:
      description: Sources of packages (of their addresses the host), unattended upgrades, a pending reboot.
      type: dict
    others:
      description: fail2ban, watchdog, time, umask, mounts, faillock and hidepid.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.hardening import hardening_info


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "areas": {
                "type": "list",
                "elements": "str",
                "choices": list(hardening_info.AREAS),
                "default": [],
            },
        },
        supports_check_mode=True,
    )
    areas = module.params["areas"] or list(hardening_info.AREAS)
    module.exit_json(changed=False, areas=areas, facts=hardening_info.collect(areas))


if __name__ == "__main__":
    main()
