# SPDX-License-Identifier: Apache-2.0
"""Filters that decide on the controller: inventory mistakes, typed variables, the cluster plan, the holder of a run's lock."""

from __future__ import annotations

import functools
import getpass
import hashlib
import importlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

from ..base import variables
from ..base.errors import PveguardError
from ..base.host_variables import HostVariables, facts_of, rendered
from ..cluster import assess, corosync_compare, inventory, kinds, plan, roles
from ..corosync import probe_members
from ..hardening import asked
from . import ROOT

#: Variables of the playbooks themselves; those of roles come from their argument_specs.
PLAYBOOK_VARIABLES: dict[str, dict[str, Any]] = {
    "pveguard_gate_enforce": {"type": "str", "choices": ["joining", "always", "never"], "default": "joining"},
    "pveguard_gate_on_failure": {"type": "str", "choices": ["exclude", "stop"], "default": "exclude"},
    "pveguard_reports_dir": {"type": "path"},
    "pveguard_lock_takeover": {"type": "str"},
    "pveguard_revert_drift": {"type": "str", "choices": ["refuse", "overwrite"], "default": "refuse"},
    "authkey_cluster": {"type": "str"},
    "authkey_confirm": {"type": "str"},
    "export_overwrite": {"type": "bool"},
    "export_path": {"type": "path"},
    "leave_confirm": {"type": "str"},
    "leave_dead": {"type": "bool"},
    "leave_node": {"type": "str"},
    "leave_remove_directory": {"type": "bool"},
    "probe_host": {"type": "str"},
    # Words with commas between them, or a list.
    "recover_confirm": {"type": "raw"},
    "recover_deadline_seconds": {"type": "float"},
    "recover_survivor": {"type": "str"},
    # Given to a playbook by the one that imports it.
    "pveguard_gate_alone": {"type": "bool"},
    "pveguard_part_of_run": {"type": "bool"},
    # Registered or set by the playbooks while they run; they are there when another playbook follows in the same command.
    "fsync_gate_power_cut_result": {"type": "raw"},
    "fsync_gate_result": {"type": "raw"},
    "link_gate_result": {"type": "raw"},
    "ram_state_result": {"type": "raw"},
    "pveguard_authkey": {"type": "raw"},
    "pveguard_counters": {"type": "raw"},
    "pveguard_hardening": {"type": "raw"},
    "pveguard_leave": {"type": "raw"},
    "pveguard_node": {"type": "raw"},
    "pveguard_plan": {"type": "raw"},
    "pveguard_probe": {"type": "raw"},
    "pveguard_run": {"type": "raw"},
}


#: Several times faster where libyaml is there.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def _specs() -> dict[str, dict[str, dict[str, Any]]]:
    """``{role: {variable: spec}}`` of every role's meta/argument_specs.yml, all entry points together."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml")):
        document = yaml.load(path.read_text(), Loader=_YAML) or {}
        options: dict[str, dict[str, Any]] = {}
        for entry in (document.get("argument_specs") or {}).values():
            options.update(entry.get("options") or {})
        found[path.parent.parent.name] = options
    for role in _descriptions():
        roles.add_limits(role, found[role.name])
    return found


def _origin(value: Any) -> str:
    """``FILE:LINE`` where a value was written, empty where that is not known.

    Private in Ansible: nothing public tells it, and without it a message names no place.
    """
    try:
        from ansible._internal._datatag._tags import Origin

        origin = Origin.get_tag(value)
    except ImportError:
        return ""
    if origin is None:
        return ""
    path = getattr(origin, "path", None)
    line = getattr(origin, "line_num", None)
    if path:
        return f"{os.path.relpath(str(path))}:{line}" if line else os.path.relpath(str(path))
    return ""


def _in_vaulted_file(where: str) -> bool:
    path = where.rsplit(":", 1)[0]
    try:
        with open(path, "rb") as handle:
            return handle.read(14) == b"$ANSIBLE_VAULT"
    except OSError:
        return False


def _plain_secrets(variables: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, value in variables.items():
        if not inventory.is_secret_name(name) or not isinstance(value, str) or not value:
            continue
        if type(value).__name__ == "EncryptedString" or "{{" in value or "{%" in value:
            continue
        where = _origin(value)
        # Without a file it came from the command line or a prompt, which is the operator's own choice.
        if where and not _in_vaulted_file(where):
            found.append((name, where))
    return found


def _group_clusters(hosts: HostVariables) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Which groups set corosync_cluster_name themselves (in the inventory or in group_vars), and each host's groups."""
    from ansible.vars.plugins import get_vars_from_inventory_sources

    manager = hosts.manager
    if manager is None:
        return {}, {}
    clusters: dict[str, str] = {}
    for name, group in manager.groups.items():
        own = dict(group.get_vars())
        own.update(get_vars_from_inventory_sources(hosts.loader, hosts.sources, [group], "all"))
        if own.get("corosync_cluster_name"):
            clusters[name] = own["corosync_cluster_name"]
    # A child group may refine its parent's value: only groups on different branches contradict each other.
    refined = {
        ancestor.name
        for name in clusters
        for ancestor in manager.groups[name].get_ancestors()
        if ancestor.name in clusters
    }
    for name in refined:
        clusters.pop(name)
    groups = {}
    for host in hosts:
        names = [group.name for group in manager.get_host(host).get_groups()]
        # Templates that come to the same name for this host do not contradict each other.
        found = [hosts.value(host, clusters[name]) for name in names if name in clusters]
        several = len({str(each) for each in found if each is not variables.UNKNOWN}) > 1
        groups[host] = [name for name in names if several or name not in clusters]
    return {name: _text_of(value) for name, value in clusters.items()}, groups


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return "a vaulted value"


def inventory_errors(hostvars: Any, play_hosts: Collection[str] = ()) -> list[str]:
    """Every mistake of the inventory, from the variables of all its hosts; nothing is connected to.

    ``{{ hostvars | pveguard_inventory_errors(ansible_play_hosts_all) }}``: a list of sentences, empty when all is well.
    """
    specs = _specs()
    options = {name: spec for role in specs.values() for name, spec in role.items()}
    options.update(PLAYBOOK_VARIABLES)
    hosts = rendered(hostvars)
    raw: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, Any]] = {}
    errors: list[str] = []
    wrong: dict[str, list[str]] = {}
    for host in list(hosts) or list(play_hosts):
        raw[host] = dict(hosts.raw(host))
        values[host] = {name: value for name, value in raw[host].items() if name not in options}
        for name, spec in options.items():
            if name not in raw[host] or spec.get("type") == "raw":
                continue
            value, broken = hosts.render(host, name)
            where = _from(raw[host][name])
            for place, reason in broken:
                if spec.get("no_log") and not re.search("undefined|vault", reason):
                    reason = "the reason is not shown, because it may hold the secret"
                errors.append(f"{host}: {place} cannot be rendered: {reason}{where}")
            found = variables.problems(name, value, spec)
            for problem in found:
                wrong.setdefault(problem + where, []).append(host)
            values[host][name] = variables.UNKNOWN if found else value
    errors += [f"{inventory._join(same)}: {message}" for message, same in wrong.items()]
    clusters, groups = _group_clusters(hosts)
    errors += inventory.inventory_errors(
        values,
        group_clusters=clusters,
        host_groups=groups,
        known_variables=options,
        prefixes=[f"{role}_" for role in specs] + ["pveguard_"],
        plain_secrets={host: _plain_secrets(each) for host, each in raw.items()},
    )
    return errors


def _from(value: Any) -> str:
    where = _origin(value)
    return f" ({where})" if where else ""


def cluster_name(hostvars: Any, host: str) -> str:
    """``corosync_cluster_name`` of a host, empty where it has none."""
    return str(rendered(hostvars)[host].get("corosync_cluster_name") or "")


def variables_of(hostvars: Any, host: str, names: Collection[str]) -> dict[str, Any]:
    """Those of ``names`` that are set for a host, with their values."""
    own = rendered(hostvars)[host]
    return {name: own[name] for name in names if name in own}


def cluster_plan(
    hostvars: Any, play_hosts: Collection[str], bootstrap: str | None = None, joining_probe: str | None = None
) -> dict[str, plan.Plan]:
    """The plan of membership for every host; see the core ``plan``."""
    hosts = {}
    for host, own in rendered(hostvars).items():
        hosts[host] = {
            "cluster": own.get("corosync_cluster_name") or None,
            "node": facts_of(own),
            "probe": probe_members.is_described(own),
        }
    return plan.cluster_plan(hosts, list(play_hosts), bootstrap or None, joining_probe or None)


def assessment(hostvars: Any, play_hosts: Collection[str]) -> str:
    """What is there on each host and what site.yml would change, as text for a terminal."""
    hosts = rendered(hostvars)
    plans = cluster_plan(hosts, play_hosts)
    parts = []
    for host, own in hosts.items():
        node = _node(own)
        if node is None:
            if host in play_hosts:
                parts.append(f"{host}: could not be asked")
            continue
        parts.append(assess.render(host, node, plans[host], _changes(own, node, plans[host]), own.get("pveguard_writes")))
    return "\n\n".join(parts + assess.render_clusters(_compared(hosts)))


def _compared(hosts: HostVariables) -> list[dict[str, Any]]:
    """What the nodes of each cluster say, side by side."""
    nodes = {host: facts_of(own) for host, own in hosts.items()}
    wanted = {host: own.get("corosync_cluster_name") or None for host, own in hosts.items()}
    return corosync_compare.compare(nodes, wanted, [host for host, own in hosts.items() if probe_members.is_described(own)])


def assessments(hostvars: Any, play_hosts: Collection[str]) -> dict[str, dict[str, Any]]:
    """The same as data: ``{host: {findings: [{id, level, text}], changes: [text]}}`` of hosts that could be asked."""
    hosts = rendered(hostvars)
    plans = cluster_plan(hosts, play_hosts)
    clusters = _compared(hosts)
    found = {}
    for host in play_hosts:
        node = _node(hosts[host])
        if node is not None:
            findings = assess.across(host, clusters) + assess.findings(node, plans[host])
            found[host] = {
                "findings": [{"id": each.id, "level": each.severity, "text": each.sentence} for each in findings],
                "changes": _changes(hosts[host], node, plans[host]),
            }
    return found


@functools.cache
def _descriptions() -> list[roles.Role]:
    """What the roles say of themselves."""
    paths = sorted(ROOT.glob("roles/*/meta/pveguard.yml"))
    try:
        return roles.read({path.parent.parent.name: yaml.load(path.read_text(), _YAML) for path in paths})
    except PveguardError as error:
        raise AnsibleFilterError(str(error)) from error


def _node(own: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a host has said of itself, with what the roles have looked at; None where it could not be asked."""
    node = (own.get("pveguard_node") or {}).get("node")
    return None if node is None else asked.with_answer(roles.looked(_descriptions(), node, own), own)


def _changes(own: Mapping[str, Any], node: Mapping[str, Any], its_plan: plan.Plan) -> list[str]:
    """What the main job would change on a host, by what its variables want of each role."""
    specs, described = _specs(), _descriptions()

    def value(role: str, variable: str) -> Any:
        spec = specs[role][variable]
        given = own.get(variable)
        given = spec.get("default") if given is None or given == "" else given
        convert = {"bool": variables.as_bool, "int": variables.as_int, "float": variables.as_float}.get(spec["type"])
        return convert(given) if convert else given

    what = kinds.kind(node, own.get("group_names") or (), its_plan["action"])
    parts = [_core(role.changes).changes for role in described if role.changes]
    wanted = roles.settings(described, roles.desired(described, what, value), specs, value)
    return assess.changes(node, its_plan, wanted, parts)


def _core(name: str) -> Any:
    """The core ``ROOM.FILE``."""
    return importlib.import_module(f"ansible.module_utils.pveguard.{name}")


def steps(stage: str, kind: str) -> list[dict[str, Any]]:
    """What the roles do in a stage of protect.yml, or in ``revert``, on a host of this kind; see the core ``roles``."""
    try:
        return roles.steps(_descriptions(), stage, kind)
    except PveguardError as error:
        raise AnsibleFilterError(str(error)) from error


def _typed(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A conversion as a filter: what cannot be converted ends the task, it is never taken for false or 0."""

    def typed(value: Any) -> Any:
        try:
            return convert(value)
        except PveguardError as error:
            raise AnsibleFilterError(str(error)) from error

    return typed


def run_holder(playbook_dir: str) -> dict[str, Any]:
    """Who runs this: run id, user, controller, process and its start, so that a dead run can be told from a live one."""
    if not isinstance(playbook_dir, str):
        raise AnsibleFilterError("pveguard_run_holder takes the playbook's directory")
    pid = _playbook_pid()
    started = _start_ticks(pid)
    machine = _machine()
    return {
        "run_id": f"{socket.gethostname()}-{machine['boot'][:8]}-{pid}-{started}",
        "who": f"{getpass.getuser()}@{socket.gethostname()}",
        "controller": machine,
        "pid": pid,
        "started": started,
        "command": " ".join(Path(arg).name if arg.startswith("/") else arg for arg in _command(pid))[:200],
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def holder_is_gone(holder: Mapping[str, Any]) -> bool:
    """True when the holder of a lock certainly no longer runs: same controller, and it was rebooted or the process ended.

    Host names repeat, and a container does not see its neighbour's processes, so the machine, its boot and the pid
    namespace are compared. In doubt the holder is taken for alive.
    """
    theirs, ours = holder.get("controller"), _machine()
    if not isinstance(theirs, Mapping) or not holder.get("pid") or not ours["id"] or theirs.get("id") != ours["id"]:
        return False
    if theirs.get("boot") != ours["boot"]:
        # In containers the machine id may be that of the image: only the same one saw a boot of its own.
        return theirs.get("name") == ours["name"] and bool(theirs.get("boot"))
    if theirs.get("pid_namespace") != ours["pid_namespace"]:
        return False
    pid = int(holder["pid"])
    return not _command(pid) or _start_ticks(pid) != holder.get("started")


def _machine() -> dict[str, str]:
    """What tells this controller from others: a hash of its machine id, its boot, its pid namespace, its name."""
    return {
        "name": socket.gethostname(),
        "id": hashlib.sha256(_text("/etc/machine-id").encode()).hexdigest()[:16] if _text("/etc/machine-id") else "",
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": os.readlink("/proc/self/ns/pid") if os.path.islink("/proc/self/ns/pid") else "",
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _playbook_pid() -> int:
    """The process of ansible-playbook itself: filters run in its forks as well."""
    pid = os.getpid()
    if not sys.platform.startswith("linux"):
        return pid
    best = pid
    while pid > 1:
        if any(Path(arg).name.startswith("ansible-playbook") for arg in _command(pid)[:3]):
            best = pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return best


def _start_ticks(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return "0"


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        return []


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_bool": _typed(variables.as_bool),
    "pveguard_int": _typed(variables.as_int),
    "pveguard_float": _typed(variables.as_float),
    "pveguard_inventory_errors": inventory_errors,
    "pveguard_assessment": assessment,
    "pveguard_assessments": assessments,
    "pveguard_cluster_name": cluster_name,
    "pveguard_variables_of": variables_of,
    "pveguard_cluster_plan": cluster_plan,
    "pveguard_kind": kinds.kind,
    "pveguard_steps": steps,
    "pveguard_run_holder": run_holder,
    "pveguard_holder_is_gone": holder_is_gone,
}
