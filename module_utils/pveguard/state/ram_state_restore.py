"""Restores on a node: what a generation would change there, and the change itself.

The work is done by the program ``pve-state``. What is only asked is answered by this process's own code, so that looking
leaves no file behind, and the program need not be installed: generations outlive a way back to stock. What takes the daemon
down runs from a copy below /run, detached from the connection.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..base import node_program, ssh_login
from ..base.detached import run_detached
from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from . import program
from .program import PVE_STATE
from .ram_state import Ask

#: Where the program lies while a restore takes the daemon down; gone after a boot.
PROGRAM = replace(PVE_STATE, command="", home="/run/pveguard/lib")
UNIT = "pveguard-restore"
WHOLE, PATH, RESYNC, LIST = "whole", "path", "resync", "list"


@dataclass(frozen=True)
class Options:
    """What is to be restored.

    ``generation`` is a name, the beginning of one, or ``latest``; ``path`` is a file or
    directory below /etc/pve, ``/`` for everything that may be written there, empty for the whole state with the daemon
    taken down; ``resync`` fetches the other members' state instead of a generation. ``peers_down``: the caller saw that no
    other member's daemon runs. ``deadline_s``: seconds after which a restore that did not end is undone. ``diffs``: return
    the texts that differ. ``connection``: the ssh connection in use ("" for a local session).
    """

    generation: str = ""
    path: str = ""
    resync: bool = False
    peers_down: bool = False
    allow_offline_members: bool = False
    login_fallback: bool = True
    deadline_s: float = 300.0
    diffs: bool = False
    connection: str | None = None

    @property
    def way(self) -> str:
        if self.resync:
            return RESYNC
        if not self.generation:
            return LIST
        return PATH if self.path else WHOLE


def look(options: Options, ask: Ask = program.ask) -> dict[str, Any]:
    """What there is and what a restore would change; nothing is written.

    Keys: way (``whole``, ``path``, ``resync``, or ``list`` when neither a generation nor a resync is asked for); path;
    generation (manifest with ``name``, or None); generations (all manifests, newest first, with ``list`` only); now
    (``{source, version}`` or None); files (list as ``pve-state show --json`` has it; None when the present state cannot be
    read, and files_error says why); left (``[{path, why}]`` of files that are not written); judged (what ``pve-state
    restore --check`` says, None with a path); refusals, warnings; shown (a hash of all this, see :func:`restore`).
    Raises PveguardError for an unknown or damaged generation.
    """
    found: dict[str, Any] = {
        "way": options.way,
        "path": options.path,
        "generation": None,
        "generations": [],
        "now": None,
        "files": None,
        "files_error": "",
        "left": [],
        "judged": None,
        "refusals": [],
        "warnings": [],
    }
    if options.way == LIST:
        found["generations"] = _good(ask, "list").get("generations", [])
        return found
    if options.way == PATH:
        planned = _ask(ask, "restore-file", options.generation, options.path, "--check")
        if "error" in planned:
            found["refusals"] = [planned["error"]]
        found["left"] = [_entry(entry, True) for entry in planned.get("left", [])]
        found["warnings"] = planned.get("warnings", [])
        shown = _ask(ask, "show", options.generation, options.path)
        if "error" in shown and "error" in planned:
            raise PveguardError(planned["error"])
        found["generation"] = shown.get("generation") or planned.get("generation")
    else:
        which = ["--generation", options.generation] if options.generation else ["--resync"]
        # Whether the others run is judged where all of them were asked.
        judged = _good(ask, "restore", *which, "--check", "--peers-down", *_switches(options))
        found["judged"] = judged
        found["generation"] = judged["generation"]
        found["refusals"], found["warnings"] = judged["refusals"], judged["warnings"]
        shown = {"error": ""}
        if judged["generation"]:
            shown = _ask(ask, "show", judged["generation"]["name"])
    if "error" in shown:
        found["files_error"] = shown["error"]
    else:
        found["now"] = shown["now"]
        found["files"] = [_entry(entry, options.diffs) for entry in shown["files"]]
    found["shown"] = _shown(found)
    return found


def restore(
    options: Options, shown: str, check: bool = False, run: Run = real_run, ask: Ask = program.ask
) -> dict[str, Any]:
    """Do what :func:`look` showed, if that is still what there is; ``shown`` is its hash.

    Returns ``{changed, found, ...}`` and, from the program, former (name of the generation that is the way back),
    downtime_seconds, root_version and tree_sha256 where the daemon was taken down.
    Raises PveguardError for a refusal, with nothing changed, and when the former state was put back.
    """
    found = look(options, ask)
    if found["way"] == LIST:
        raise PveguardError("neither a generation nor a resync is asked for; nothing was changed")
    if found["refusals"]:
        raise PveguardError("refused, nothing was changed: " + "; ".join(found["refusals"]))
    if found["shown"] != shown:
        raise PveguardError(
            "the configuration is not what was shown any more: somebody changed it meanwhile. Nothing was changed; run "
            "again and look again"
        )
    result: dict[str, Any] = {"changed": changes(found), "found": found, "former": None}
    if check or not result["changed"]:
        return result
    if found["way"] == PATH:
        argv = ["restore-file", found["generation"]["name"], options.path, "--yes"]
        done = _good(ask, *argv, timeout=options.deadline_s + 60)
        return {**result, "changed": done["changed"], "former": done["kept"], "warnings": done["warnings"]}
    node_program.install(PROGRAM)
    name = found["generation"]["name"] if found["generation"] else None
    # By the interpreter: Debian mounts /run with noexec.
    argv = ["/usr/bin/python3", "-IS", PROGRAM.launcher, "restore", "--take-down", "--json"]
    argv += ["--result", f"/run/pveguard/{UNIT}.json"]
    argv += ["--generation", name] if name else ["--resync"]
    argv += ["--peers-down"] if options.peers_down else []
    done = run_detached(UNIT, [*argv, *_switches(options)], 2 * options.deadline_s + 60, run)
    if done.get("generation") != name:
        # A former run's connection was lost and its unit went on: this was its work.
        raise PveguardError(
            f"another restore ({done.get('generation') or 'resync'}) was still under way on this node and has ended; "
            "look at the node, then run again"
        )
    return {**result, **{key: value for key, value in done.items() if key != "message"}, "changed": True}


def changes(found: Mapping[str, Any]) -> bool:
    """Whether a restore would change anything; in doubt it would."""
    if found["way"] == RESYNC or found["files"] is None:
        return True
    left = {entry["path"] for entry in found["left"]}
    return any(
        entry["path"] not in left and (found["way"] == WHOLE or entry["change"] != "added")
        for entry in found["files"]
    )


def diff(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Ansible's diff of what a restore changes; secrets and binary files are shown by their hashes."""
    left = {entry["path"] for entry in found["left"]}
    shown = []
    for entry in found["files"] or []:
        if entry["path"] in left or (found["way"] == PATH and entry["change"] == "added"):
            continue
        text = entry.get("diff")
        if entry["type"] == "directory":
            text = f"{'-' if entry['change'] == 'added' else '+'}/etc/pve/{entry['path']}/\n"
        elif text is None:
            sides = {
                when: f"{entry[f'bytes_{when}']} bytes, sha256 {entry[f'sha256_{when}']}"
                for when in ("now", "then")
            }
            text = f"/etc/pve/{entry['path']}\n-{sides['now']}\n+{sides['then']}\n"
        shown.append({"prepared": text})
    return shown


def _entry(entry: Mapping[str, Any], diffs: bool) -> dict[str, Any]:
    """A file that differs, fit to be passed on: names may be any bytes, and texts are only wanted for a diff."""
    return {
        key: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for key, value in entry.items()
        if diffs or key != "diff"
    }


def _shown(found: Mapping[str, Any]) -> str:
    """One hash of what is to be restored and of the present content of everything that it touches."""
    files = [
        [entry["path"], entry["type"], entry["change"], entry["sha256_now"], entry["sha256_then"]]
        for entry in found["files"] or []
    ]
    facts = [found["way"], found["path"], (found["generation"] or {}).get("name"), files, found["left"]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _switches(options: Options) -> list[str]:
    connection = options.connection if options.connection is not None else ssh_login.connection()
    argv = ["--connection", connection]
    argv += ["--allow-offline-members"] if options.allow_offline_members else []
    return argv + (["--login-fallback"] if options.login_fallback else [])


def _ask(ask: Ask, command: str, *argv: str, timeout: float = 300.0) -> dict[str, Any]:
    """The program's answer; a key ``error`` says why there is no other."""
    result = ask([command, *argv], timeout)
    try:
        value = json.loads(result.stdout)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise PveguardError(
            f"pve-state {command} gave no answer (exit code {result.rc}): {result.stderr.strip()[-400:]}"
        )
    return value


def _good(ask: Ask, command: str, *argv: str, timeout: float = 300.0) -> dict[str, Any]:
    value = _ask(ask, command, *argv, timeout=timeout)
    if "error" in value:
        raise PveguardError(f"pve-state {command}: {value['error']}")
    return value
