"""A restore of one node, judged and shown before anything is done: what is lost, and which state would win.

Pure: judges what ``pve-state`` and ``node_info`` said; connects to nothing. The leader of a resync is the member with the
highest root version. So a whole state cannot be restored on one member while the daemon of another runs: a lower version is
overwritten at once, a higher one rolls all members back.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..formats.corosync_conf import address_key, short_name

#: What a restore does to a file, in the order of the list, by what happened to it since.
WHOLE = {"added": "lost", "changed": "overwritten", "removed": "comes back"}
PATH = {"changed": "overwritten", "removed": "comes back", "added": "stays"}
#: More files than this are counted, not listed; pve-state show has them all.
MAX_FILES = 500


@dataclass(frozen=True)
class Peer:
    """Another member: ``host`` is its name in the inventory (None: not there), ``asked`` whether it answered.

    ``runs``: its daemon runs (None: not known). ``up``: this node's corosync sees it (None: corosync does not run here).
    ``version``: highest root version known of it, ``version_from`` where that was read.
    """

    name: str
    host: str | None = None
    asked: bool = False
    runs: bool | None = None
    quorate: bool | None = None
    up: bool | None = None
    version: int | None = None
    version_from: str = ""
    tree_sha256: str | None = None


def peer_hosts(node: Mapping[str, Any], inventory: Mapping[str, Mapping[str, Any]], host: str) -> list[str]:
    """Hosts of the inventory that may be the other members of ``node``'s cluster: by name or by address."""
    others = _others(node)
    names = {str(member["name"]) for member in others}
    addresses = {address_key(str(address)) for member in others for address in member["addresses"]}
    found = []
    for name, variables in inventory.items():
        own = {str(variables.get("ansible_host") or name), name, *_texts(variables.get("corosync_links"))}
        if name != host and (name in names or short_name(name) in names or {address_key(each) for each in own} & addresses):
            found.append(name)
    return sorted(found)


def _texts(links: Any) -> list[str]:
    return [str(link) for link in links] if isinstance(links, (list, tuple)) else []


def peers(node: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any] | None]) -> list[Peer]:
    """The other members of ``node``'s cluster; ``answers`` are the facts of :func:`peer_hosts`, None for no answer."""
    corosync = node["corosync"]
    by_name = {short_name(str(facts["hostname"])): (host, facts) for host, facts in answers.items() if facts}
    silent: dict[str, str | None] = {short_name(host): host for host, facts in answers.items() if not facts}
    found = []
    for member in _others(node):
        name = short_name(str(member["name"]))
        # A host may be named by its address.
        by_address = {address_key(str(address)) for address in member["addresses"]}
        if name not in silent:
            silent[name] = next((host for host in silent.values() if host and address_key(host) in by_address), None)
        up = member["id"] in corosync["live_member_ids"] if corosync["running"] else None
        if name not in by_name:
            found.append(Peer(name, silent.get(name), up=up))
            continue
        host, facts = by_name[name]
        pmxcfs, saved = facts["pmxcfs"], (facts.get("ram_state") or {}).get("saved_root_version")
        version, source = pmxcfs["root_version"], "its database"
        if saved is not None and (version is None or saved > version):
            version, source = saved, "its last save"
        found.append(
            Peer(
                name,
                host,
                asked=True,
                runs=pmxcfs["mode"] != "down",
                quorate=pmxcfs["quorate"],
                up=up,
                version=version,
                version_from=source if version is not None else "",
                tree_sha256=pmxcfs["tree_sha256"],
            )
        )
    return sorted(found, key=lambda peer: peer.name)


def _others(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    corosync = node["corosync"]
    if corosync.get("example_conf"):
        return []
    return [member for member in corosync["members"] if member["name"] != node["hostname"]]


def propose(
    host: str,
    node: Mapping[str, Any],
    found: Mapping[str, Any],
    others: Sequence[Peer] = (),
    command: str = "",
) -> dict[str, Any]:
    """What would be done to ``host``, and whether it may be.

    ``node``: facts of node_info; ``found``: what the module looked up; ``command``: the playbook's command line without
    the variables of a restore, for the commands that are offered. Keys: lines (the proposal as text), refusals (nothing may
    be done while there is one), offers (commands that would work instead), change (whether anything differs), peers_down
    (no other member's daemon runs, as far as they were asked).
    """
    refusals = [str(text) for text in found["refusals"]]
    warnings = [str(text) for text in found["warnings"]]
    offers: list[str] = []
    if found["way"] == "list":
        refusals.insert(0, _which(host, found["generations"], command))
    elif found["way"] == "whole" and _is_member(found):
        _judge_whole(host, node, found, others, command, refusals, warnings, offers)
    elif found["way"] == "resync":
        _judge_resync(node, others, refusals, warnings)
    elif others:
        _judge_agreement(node, others, warnings)
    change = (
        found["way"] == "resync" or found["files"] is None or any(_does(found, e) for e in found["files"])
    )
    return {
        "lines": _lines(host, node, found, others, warnings),
        "refusals": refusals,
        "offers": offers,
        "change": bool(change),
        "peers_down": not any(peer.runs for peer in others),
    }


def _judge_whole(
    host: str,
    node: Mapping[str, Any],
    found: Mapping[str, Any],
    others: Sequence[Peer],
    command: str,
    refusals: list[str],
    warnings: list[str],
    offers: list[str],
) -> None:
    generation = found["generation"]
    version = int(generation.get("root_version") or 0)
    if node["hostname"] not in [member["name"] for member in node["corosync"]["members"]]:
        refusals.append(
            f"corosync.conf does not name {node['hostname']} in its nodelist, so the other members are not known; correct "
            "/etc/corosync/corosync.conf"
        )
        return
    running = [peer for peer in others if peer.runs]
    if running:
        best = max((peer.version or 0 for peer in running), default=0)
        names = _names(running)
        if version > best:
            outcome = (
                f"version {version} of the generation is above theirs ({best}): it would become the leader and roll all "
                "members back, and what was written since is lost on each of them"
            )
        else:
            outcome = f"version {version} of the generation is not above theirs ({best}): it would be overwritten by them at once"
        refusals.append(
            f"the daemon runs on {names}, and in a running cluster the state with the highest version wins; {outcome}"
        )
        offers += _offers(found, command)
        return
    known = _own_version(node)
    for peer in (peer for peer in others if not peer.asked):
        where = (
            f"{peer.name} could not be asked ({peer.host})"
            if peer.host
            else f"{peer.name} is not in the inventory"
        )
        if peer.up:
            refusals.append(
                f"{where}, but corosync sees it: its daemon may run, and the highest version would win. Make it reachable, "
                "or switch it off"
            )
        elif peer.up is None:
            refusals.append(
                f"{where}, and corosync does not run on {host}, so nobody knows whether its daemon runs. Make it reachable, "
                "or start corosync"
            )
        elif known is None or version > known:
            refusals.append(
                f"{where}, and version {version} of the generation is above the {known or 'unknown'} version of now: if it "
                "runs apart from this node, it would be rolled back later. Make it reachable"
            )
        else:
            warnings.append(
                f"{where}: if it holds a version above {version}, its state wins as soon as its daemon runs"
            )
    for peer in (peer for peer in others if peer.asked):
        if peer.version is None:
            warnings.append(
                f"the version that {peer.name} holds is not known: above {version} its state wins when it starts"
            )
        elif peer.version > version:
            warnings.append(
                f"{peer.name} holds version {peer.version}, above {version}: when its daemon starts, its state wins, here as "
                f"well. To keep this one, run 'pve-state restore --resync' on {peer.name} before its daemon starts"
            )
        elif peer.version == version:
            warnings.append(
                f"{peer.name} holds version {version} as well: the later mtime wins when it starts"
            )
    theirs, ours = generation.get("config_version"), (found["judged"] or {}).get("config_version")
    if theirs and ours and theirs != ours:
        warnings.append(
            f"corosync.conf of the generation has config_version {theirs}, /etc/corosync/corosync.conf has {ours}: correct the "
            "one on /etc/pve once the cluster is quorate"
        )


def _judge_resync(
    node: Mapping[str, Any], others: Sequence[Peer], refusals: list[str], warnings: list[str]
) -> None:
    sources = [peer for peer in others if peer.runs and peer.quorate]
    if not sources:
        states = (
            "; ".join(f"{peer.name}: {_state(peer)}" for peer in others) or "this node knows no other member"
        )
        refusals.append(
            "no other member was found whose daemon runs with quorum, so there may be nobody to fetch the state from, and "
            f"/etc/pve would hold corosync.conf and nothing else ({states})"
        )
        return
    own, best = _own_version(node), max(peer.version or 0 for peer in sources)
    if own is not None and own > best:
        warnings.append(
            f"this node holds version {own}, above the {best} of {_names(sources)}: what only it has is kept in a generation"
        )


def _judge_agreement(node: Mapping[str, Any], others: Sequence[Peer], warnings: list[str]) -> None:
    tree = node["pmxcfs"]["tree_sha256"]
    different = [
        p for p in others if p.runs and p.quorate and p.tree_sha256 and tree and p.tree_sha256 != tree
    ]
    if different:
        warnings.append(
            f"{_names(different)} showed another tree than this node a moment ago: a change is under way, or they are apart"
        )


def _is_member(found: Mapping[str, Any]) -> bool:
    return bool((found["judged"] or {}).get("member"))


def _own_version(node: Mapping[str, Any]) -> int | None:
    """Highest root version known of the node itself."""
    known = (node["pmxcfs"]["root_version"], (node.get("ram_state") or {}).get("saved_root_version"))
    return max((version for version in known if version is not None), default=None)


def _offers(found: Mapping[str, Any], command: str) -> list[str]:
    """Commands for what works on a member of a running cluster."""
    name = found["generation"]["name"]
    base = f"{command} -e ram_state_restore_generation={shlex.quote(name)}"
    lines = [
        "What works while the others run:",
        "one file or directory through /etc/pve, for all members (files that came since stay):",
    ]
    paths = [
        e["path"] for e in found["files"] or [] if e["change"] != "added" and e["path"] != "corosync.conf"
    ]
    lines += [f"  {base} -e ram_state_restore_path={shlex.quote(path)}" for path in paths[:MAX_FILES]]
    lines += [
        "all of them (corosync.conf, guests that moved and locked guests stay as they are):",
        f"  {base} -e ram_state_restore_path=/",
        "when the state of this node itself is damaged, fetch the others':",
        f"  {command} -e ram_state_restore_resync=true",
    ]
    return lines


def _which(host: str, generations: Iterable[Mapping[str, Any]], command: str) -> str:
    lines = ["no generation is named. Add one of these", f"  {command} -e ram_state_restore_generation=NAME"]
    lines += [f"  {_generation_text(generation)}" for generation in generations] or [f"  {host} has none"]
    return "\n".join(lines)


def _generation_text(generation: Mapping[str, Any]) -> str:
    return (
        f"{generation['name']}  version {generation.get('root_version')}, lineage {generation.get('lineage')}, "
        f"{generation.get('mode')}, {generation.get('time')} ({generation.get('reason')})"
    )


def _does(found: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """What happens to a file: lost, overwritten, comes back; "" when it stays as it is."""
    if any(left["path"] == entry["path"] for left in found["left"]):
        return ""
    what = (PATH if found["way"] == "path" else WHOLE)[entry["change"]]
    return "" if what == "stays" else what


def _lines(
    host: str,
    node: Mapping[str, Any],
    found: Mapping[str, Any],
    others: Sequence[Peer],
    warnings: Sequence[str],
) -> list[str]:
    if found["way"] == "list":
        return []
    what = {
        "whole": "the whole state, with the daemon down for seconds",
        "path": f"/etc/pve{'' if found['path'] == '/' else '/' + found['path'].removeprefix('/etc/pve/')}, through /etc/pve",
        "resync": "everything fetched anew from the other members, with the daemon down for seconds",
    }[found["way"]]
    lines = [f"{host}: {what}"]
    if found["generation"]:
        lines.append(f"generation {_generation_text(found['generation'])}")
    if found["now"]:
        source = "live" if found["now"]["source"] == "live" else "the last save; the daemon does not run"
        lines.append(f"now version {found['now']['version']} ({source})")
    if found["way"] == "resync":
        lines += ["", "What only this node holds is lost; it is kept as a generation before."]
    else:
        lines += ["", *_file_lines(node, found)]
    if others:
        lines += ["", *_peer_lines(found, others)]
    if warnings:
        lines += ["", *(f"mind: {_printable(text)}" for text in warnings)]
    return lines


def _file_lines(node: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    if found["files"] is None:
        return [
            f"What is there now cannot be read, so what is lost is not known: {found['files_error']}",
            "What can be read of it is kept before it is replaced.",
        ]
    names = {member["id"]: member["name"] for member in node["corosync"]["members"]}
    why = {entry["path"]: entry["why"] for entry in found["left"]}
    words = PATH if found["way"] == "path" else WHOLE
    rows: dict[str, list[str]] = {word: [] for word in (*words.values(), "is left")}
    for entry in found["files"]:
        path = _printable(entry["path"]) + ("/" if entry["type"] == "directory" else "")
        if entry["path"] in why:
            rows["is left"].append(f"{path}  ({_printable(why[entry['path']])})")
        else:
            rows[words[entry["change"]]].append(f"{path}  ({_sides(entry, names)})")
    width = max(len(word) for word in rows)
    lines = [f"{word:{width}}  {text}" for word, texts in rows.items() for text in texts]
    if not lines:
        return ["Nothing differs."]
    more = len(lines) - MAX_FILES
    lines = lines[:MAX_FILES] + ([f"and {more} more; 'pve-state show' has them all"] if more > 0 else [])
    counts = ", ".join(f"{len(texts)} {word}" for word, texts in rows.items() if texts)
    return [*lines, f"{len(found['files'])} files differ: {counts}"]


def _sides(entry: Mapping[str, Any], names: Mapping[int, str]) -> str:
    sides = []
    for when in ("now", "then"):
        if entry[f"version_{when}"] is None:
            continue
        text = when if entry[f"bytes_{when}"] is None else f"{when} {entry[f'bytes_{when}']} bytes,"
        text += f" version {entry[f'version_{when}']}, {entry[f'mtime_{when}']}"
        if when == "now" and entry["writer_now"]:
            text += f", written by {names.get(entry['writer_now'], 'node ' + str(entry['writer_now']))}"
        sides.append(text)
    return "; ".join(sides)


def _peer_lines(found: Mapping[str, Any], others: Sequence[Peer]) -> list[str]:
    width = max(len(peer.name) for peer in others)
    wanted = (found["generation"] or {}).get("root_version")
    lines = ["the other members:"]
    for peer in others:
        version = "version unknown"
        if peer.version is not None:
            version = f"version {peer.version} ({peer.version_from})"
            if wanted is not None and peer.version != wanted:
                version += f", {'above' if peer.version > wanted else 'below'} the generation's"
        lines.append(f"{peer.name:{width}}  {_state(peer)}, {version}")
    return lines


def _state(peer: Peer) -> str:
    if not peer.asked:
        seen = {
            True: "corosync sees it",
            False: "corosync does not see it",
            None: "corosync does not run here",
        }[peer.up]
        return f"{'no answer' if peer.host else 'not in the inventory'} ({seen})"
    if not peer.runs:
        return "daemon down"
    return {
        True: "daemon runs, quorate",
        False: "daemon runs, no quorum",
        None: "daemon runs, not in a cluster",
    }[peer.quorate]


def _names(found: Iterable[Peer]) -> str:
    return ", ".join(peer.name for peer in found)


def way_back(host: str, found: Mapping[str, Any], former: str | None, command: str) -> list[str]:
    """How a restore that was done is taken back, as exact commands. ``former`` is the generation of what was there."""
    if not former:
        return [f"{host}: there was no state that passes verification, so there is none to go back to"]
    base = f"{command} -e ram_state_restore_generation={shlex.quote(former)}"
    lines = [f"{host}: what was there is generation {former}. The way back:"]
    if found["way"] == "path":
        left = {entry["path"] for entry in found["left"]}
        files = [entry for entry in found["files"] if entry["path"] not in left]
        if any(entry["change"] == "changed" for entry in files):
            lines.append(f"  {base} -e ram_state_restore_path={shlex.quote(found['path'])}")
        came = [
            f"/etc/pve/{entry['path']}"
            for entry in files
            if entry["change"] == "removed" and entry["type"] == "file"
        ]
        lines += [f"  rm {shlex.quote(path)}    # on {host}; it was not there" for path in came]
    elif found["way"] == "whole":
        lines.append(f"  {base}")
        if found["judged"]["in_ram"]:
            switch = " --peers-down" if _is_member(found) else ""
            lines.append(
                f"  pve-state restore --generation {former} --take-down{switch}    # on {host}, by hand"
            )
    else:
        lines.append("  single files of it, through /etc/pve:")
        lines.append(f"  {base} -e ram_state_restore_path=PATH")
    return lines


def command(sources: Iterable[str], host: str) -> str:
    """The playbook's command line without the variables of a restore."""
    inventories = " ".join(f"-i {shlex.quote(str(source))}" for source in sources)
    return " ".join(
        filter(
            None, ["ansible-playbook", inventories, "playbooks/restore.yml", f"--limit {shlex.quote(host)}"]
        )
    )


def _printable(text: str) -> str:
    """Text without the control characters that could command a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
