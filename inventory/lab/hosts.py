#!/usr/bin/env python3
"""Inventory of the lab's virtual machines. The lab is asked, because its ports are whatever was free.

``$PVEGUARD_LAB`` names the lab (default: ``default``). A lab that is not running is an error, except under molecule
(``$MOLECULE_SCENARIO_NAME``), whose create and destroy start and stop it: there a lab that was never started, or was
taken down, is an empty inventory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[0] = str(ROOT)

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402


def host_variables(about: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Ansible variables of one node; ``about`` and ``node`` as ``python3 -m lab status --json`` shows them."""
    known_hosts = about["known_hosts"]
    if any(character.isspace() for character in known_hosts):
        known_hosts = f'"{known_hosts}"'  # ssh takes several files separated by space
    options = (f"UserKnownHostsFile={known_hosts}", "GlobalKnownHostsFile=/dev/null", "StrictHostKeyChecking=yes",
               "IdentitiesOnly=yes", "ServerAliveInterval=15", "ServerAliveCountMax=8")  # fmt: skip
    # A connection that is kept open does not survive a restored snapshot or a power cut: each generation has its own.
    generation = f"{about['directory']} {about['generation']} {node['name']}"
    return {
        "ansible_host": node["address"],
        "ansible_port": node["port"],
        "ansible_user": node["user"],
        "ansible_ssh_private_key_file": about["identity_file"],
        "ansible_ssh_common_args": " ".join(f"-o {shlex.quote(option)}" for option in options),
        "ansible_host_key_checking": True,
        "ansible_control_path": f"%(directory)s/lab-{hashlib.sha256(generation.encode()).hexdigest()[:12]}",
        # A plain machine beside the nodes is there to be a probe; its id keeps out of the way of the nodes'.
        "corosync_node_id": node["number"] + (1000 if node["plain"] else 0),
        "corosync_links": [node["ring_address"]],
    }


def group_variables(about: dict[str, Any]) -> dict[str, Any]:
    """What only the running lab knows: where its reports go, and the package repository in its nodes."""
    variables: dict[str, Any] = {}
    if about["name"] != "default":
        # Nodes of all labs have the same names and machine ids; their reports must not meet.
        variables["pveguard_reports_dir"] = f"{ROOT}/reports/{about['name']}"
    # Nodes that come with the packages keep their repositories, as a Proxmox VE installation does.
    return variables | (package_variables(about) if about["profile"] == "debian" else {})


def package_variables(about: dict[str, Any]) -> dict[str, Any]:
    """Where nodes without the packages find them."""
    repository = about["repository"]
    if repository is None:
        return {}
    variables = {
        "pmxcfs_repository": repository["uri"],
        "pmxcfs_repository_components": repository["components"],
        "pmxcfs_repository_key": repository["key"],
    }
    if repository["fingerprint"]:
        variables["pmxcfs_repository_fingerprint"] = repository["fingerprint"]
    return variables


def inventory(about: dict[str, Any]) -> dict[str, Any]:
    """The answer to ``--list``."""
    nodes = about["nodes"]
    probes = [node["name"] for node in nodes if node["plain"]]
    answer: dict[str, Any] = {
        "lab": {"hosts": [node["name"] for node in nodes], "vars": group_variables(about)},
        "_meta": {"hostvars": {node["name"]: host_variables(about, node) for node in nodes}},
    }
    if probes:
        answer["pve_probe"] = {"hosts": probes, "vars": package_variables(about)}
    return answer


def main() -> int:
    name = os.environ.get("PVEGUARD_LAB") or "default"
    try:
        about = Lab(name).describe()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    # Nodes that crashed or whose power was cut are still nodes of the lab.
    if not any(node["running"] for node in about["nodes"]):
        if os.environ.get("MOLECULE_SCENARIO_NAME") and not about["up"]:
            print(json.dumps({"lab": {"hosts": []}, "_meta": {"hostvars": {}}}))
            return 0
        print(f"lab: lab {name} is not running; start it with: make lab, or python3 -m lab --name {name} up",
              file=sys.stderr)  # fmt: skip
        return 2
    if "--host" in sys.argv[1:]:
        print(json.dumps({}))  # all is in _meta
    else:
        print(json.dumps(inventory(about), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
