# SPDX-License-Identifier: Apache-2.0
"""What a generation has, and what it would change."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3

from ..base.node_name import own as node_name
from ..formats.corosync_version import config_version
from ..pmxcfs.tree import (
    DIRECTORY,
    FILE,
    INODE,
    MTIME,
    ROW_VERSION,
    TYPE,
    WRITER,
    all_paths,
    content_of,
    data_of,
    guest_of,
    read_rows,
    root_version,
)
from .exits import Damaged, Refused, UsageError
from .files import read_json, store_lock
from .generations import find_generation
from .live import open_live
from .node import daemon_running
from .paths import below
from .rescue import modified, pending_rescue
from .rows import NO_COROSYNC_CONF, check_connection, connect, in_memory, is_member
from .system import printable, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    Kept = tuple[dict[str, Any], sqlite3.Connection]

    from ..pmxcfs.tree import Noise, Row
    from .paths import Paths
    from .settings import Config


class Tree:
    """Files and directories of an open database by their path, noise left out."""

    def __init__(self, connection: sqlite3.Connection, noise: Noise) -> None:
        self.connection = connection
        rows = read_rows(connection)
        self.root_version = root_version(rows) if rows else None
        self.entries = {
            path: rows[inode]
            for inode, path in all_paths(rows).items()
            if path is not None and not noise.leaves_out(path)
        }

    def is_file(self, path: str) -> bool:
        return path in self.entries and self.entries[path][TYPE] == FILE

    def is_directory(self, path: str) -> bool:
        return path in self.entries and self.entries[path][TYPE] == DIRECTORY

    def data(self, path: str) -> bytes:
        return data_of(self.connection, self.entries[path][INODE])

    def guests(self) -> dict[int, str]:
        """{guest id: path of its configuration}."""
        found = {}
        for path in self.entries:
            guest = guest_of(path)
            if guest and self.is_file(path):
                found[guest] = path
        return found


def _open_rescued(paths: Paths) -> Kept:
    """As :func:`open_kept` for the pending rescue copy, else the newest of former times."""
    found = pending_rescue(paths)
    if found:
        path = found["path"]
    else:
        former = [f"{paths.rescue}/{e}" for e in _names_in(paths.rescue) if e[:1].isdigit()]
        former = [f"{e}/config.db" if os.path.isdir(e) else e for e in sorted(former, key=modified)]
        if not former:
            raise Refused(f"there is no rescue copy in {paths.rescue}")
        path = former[-1]
    copy = in_memory(path)
    try:
        rows = read_rows(copy)
        conf = content_of(copy, "corosync.conf")
    except sqlite3.Error as error:
        raise Damaged(f"{path}: {error}") from error
    return {
        "name": "rescued",
        "root_version": root_version(rows),
        "rows": len(rows),
        "mode": "member" if conf else "standalone",
        "time": utc(modified(path)),
        "reason": "; ".join(found["why"]) if found else "a rescue copy of former times",
        "lineage": None,
    }, copy


def _names_in(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def open_kept(paths: Paths, wanted: str) -> Kept:
    """(manifest with ``name``, connection) of a generation, of the replica under the name ``replica``, or of the rescue
    copy under the name ``rescued``.

    Raises Refused when there is none of that name, Damaged when it does not pass verification.
    """
    if wanted == "rescued":
        return _open_rescued(paths)
    if wanted != "replica":
        g = find_generation(paths, wanted)
        problems = g.problems(sound=False)
        if problems:
            raise Damaged(f"generation {g.name} is damaged: {problems[0]}; see 'pve-state list --verify'")
        return {"name": g.name, **g.manifest}, connect(g.db, "immutable")
    if not os.path.exists(paths.replica):
        raise Refused(f"there is no replica: {paths.replica} does not exist; see 'pve-state list'")
    try:
        with store_lock(paths):
            changed = last_written(paths)
            copy = in_memory(paths.replica)
        problems, rows = check_connection(copy, sound=False)
    except (sqlite3.Error, Damaged) as error:
        problems = [str(error)]
    if problems:
        raise Damaged(f"the replica is damaged: {problems[0]}; 'pve-state list' shows the generations")
    conf = content_of(copy, "corosync.conf")
    return {
        "name": "replica",
        "root_version": root_version(rows),
        "rows": len(rows),
        "config_version": config_version((conf or b"").decode("utf-8", "replace")) or None,
        "mode": "member" if conf else "standalone",
        "time": changed,
        "reason": "last save",
        "lineage": int(read_json(paths.state_file).get("lineage") or 1),
    }, copy


def last_written(paths: Paths) -> str | None:
    """UTC text of when the replica was written, None when there is none."""
    seconds = max(modified(paths.replica), modified(paths.replica + "-wal"))
    return utc(seconds) if seconds else None


def open_now(paths: Paths) -> tuple[str, sqlite3.Connection]:
    """(source, connection): ``live`` and the daemon's database while it runs, else ``replica`` and that."""
    if daemon_running(paths):
        return "live", open_live(paths)
    manifest, connection = open_kept(paths, "replica")
    return manifest["name"], connection


def config_path(paths: Paths, text: str) -> str:
    """Path in the tree of what an operator typed: absolute below /etc/pve, or relative to it; "" is the root.

    The links that the daemon shows (local, qemu-server, lxc, openvz) are followed to this node.
    """
    path = text
    for mount in (paths.pve, "/etc/pve"):
        if below(path, mount):
            path = path[len(mount) :].lstrip("/")
    path = os.path.normpath(path) if path else "."
    if path.startswith("/") or path.split("/")[0] == "..":
        raise UsageError(f"{text}: wanted a path below /etc/pve, such as storage.cfg or /etc/pve/storage.cfg")
    if path == ".":
        return ""
    first, _, rest = path.partition("/")
    node = f"nodes/{node_name()}"
    links = {"local": node, **{name: f"{node}/{name}" for name in ("qemu-server", "lxc", "openvz")}}
    return f"{links.get(first, first)}/{rest}".rstrip("/")


def is_secret(path: str) -> bool:
    """Whether a file is shown by size and hash only: keys, tokens and passwords."""
    return bool(
        re.search(
            r"(?:^|/)priv/|authkey[^/]*$|token[^/]*$|(?:^|/)(?:shadow|tfa)\.cfg$|\.(?:key|pw)$",
            path,
            re.IGNORECASE,
        )
    )


class Mask:
    """Hides passwords in files that are shown. Equal values get equal numbers, so that a change stays visible."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, path: str, text: str) -> str:
        # SDN controllers and metric servers keep theirs under names that mean other things elsewhere.
        more = "|key|token" if path.startswith("sdn/") or path == "status.cfg" else ""
        key = rf"^(\s*(?:[\w-]*(?:password|passwd|secret)|client-key{more})(?:\s*[:=]\s*|\s+))(\S.*)$"
        text = re.sub(key, self._hide, text, flags=re.MULTILINE | re.IGNORECASE)
        return re.sub(r"(://[^/@:\s]*:)([^/@\s]+)(?=@)", self._hide, text)

    def _hide(self, match: re.Match[str]) -> str:
        number = self.numbers.setdefault(match.group(2), len(self.numbers) + 1)
        return f"{match.group(1)}(hidden {number})"


#: Beyond this the search for the shortest difference takes minutes.
DIFF_LINES = 20_000
RESTORING = {"added": "remove", "removed": "bring back", "changed": "change"}


def differences(then: Tree, now: Tree, only: str = "", secrets: bool = False) -> list[dict[str, Any]]:
    """What differs between two trees, as a list of dicts sorted by path; see "show" in docs/ram-state.md.

    ``change`` is what happened since: a file that was ``added`` since would be removed by a restore. ``only``
    is a path to look at, with all below it. A directory counts by itself only where it holds no file.
    """
    mask = Mask()
    found = []
    held = [
        {path[:cut] for path in tree.entries if tree.is_file(path) for cut in cuts(path)}
        for tree in (then, now)
    ]
    for path in sorted(then.entries.keys() | now.entries.keys()):
        if only and not below(path, only):
            continue
        was, there = then.entries.get(path), now.entries.get(path)
        if was is not None and there is not None and was[TYPE] == there[TYPE]:
            if was[TYPE] == FILE:
                old, new = then.data(path), now.data(path)
                if old != new:
                    found.append(_difference(path, was, there, old, new, secrets, mask))
            continue
        for tree, row, former, current in ((then, was, was, None), (now, there, None, there)):
            if row is None:
                continue
            if row[TYPE] == FILE:
                data = tree.data(path)
                held_then, held_now = (data, None) if former is not None else (None, data)
                found.append(_difference(path, former, current, held_then, held_now, secrets, mask))
            elif path not in held[0 if tree is then else 1]:
                found.append(_difference(path, former, current, None, None, secrets, mask))
    return found


def cuts(path: str) -> list[int]:
    """Where each directory of a path ends."""
    return [index for index, letter in enumerate(path) if letter == "/"]


def _difference(
    path: str, was: Row | None, there: Row | None, old: bytes | None, new: bytes | None, secrets: bool, mask: Mask
) -> dict[str, Any]:
    change = "changed" if was and there else "removed" if was else "added"
    row = was or there
    directory = row is not None and row[TYPE] == DIRECTORY
    secret = is_secret(path)
    binary = any(data is not None and not is_text(data) for data in (old, new))
    entry = {
        "path": path,
        "type": "directory" if directory else "file",
        "change": change,
        "restoring": RESTORING[change],
        "writer_now": there[WRITER] if there else None,
        "secret": secret,
        "binary": binary,
        "diff": None,
    }
    for when, row, data in (("then", was, old), ("now", there, new)):
        entry[f"bytes_{when}"] = len(data) if data is not None else None
        entry[f"sha256_{when}"] = hashlib.sha256(data).hexdigest() if data is not None else None
        entry[f"version_{when}"] = row[ROW_VERSION] if row else None
        entry[f"mtime_{when}"] = moment(row[MTIME]) if row else None
    if not directory and not binary and (secrets or not secret):
        entry["diff"] = text_diff(path, new, old, None if secrets else mask)
    return entry


def moment(seconds: int) -> str:
    """UTC text of an mtime; anything can be set by ``touch -d``."""
    try:
        return utc(seconds)
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def is_text(data: bytes) -> bool:
    if b"\0" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def text_diff(path: str, now: bytes | None, then: bytes | None, mask: Mask | None) -> str | None:
    """Unified diff from now to then, which is what a restore does; None when it would take too long."""
    import difflib

    sides: list[list[str]] = []
    for data in (now, then):
        text = (data or b"").decode("utf-8")
        # Not splitlines(): it breaks at more than line feeds.
        lines = re.findall(r"[^\n]*\n|[^\n]+", mask(path, text) if mask else text)
        if len(lines) > DIFF_LINES:
            return None
        sides.append(lines)
    name = "/etc/pve/" + printable(path, "")
    name_now, name_then = (name if data is not None else "/dev/null" for data in (now, then))
    text = ""
    for line in difflib.unified_diff(sides[0], sides[1], name_now, name_then, "now", "then"):
        text += line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
    return text


def cmd_show(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    manifest, connection = open_kept(paths, args.generation)
    only = config_path(paths, args.file) if args.file and args.file != "/" else ""
    source, live = open_now(paths)
    try:
        then, now = Tree(connection, config.noise), Tree(live, config.noise)
        if only and only not in then.entries and only not in now.entries:
            raise Refused(f"/etc/pve/{only} is neither in {manifest['name']} nor there now")
        files = differences(then, now, only, args.secrets)
        missing = is_member(paths) and not then.is_file("corosync.conf")
    except sqlite3.Error as error:
        raise Damaged(f"the states cannot be compared: {error}") from error
    finally:
        live.close()
        connection.close()
    result = {
        "generation": manifest,
        "now": {"source": source, "version": now.root_version},
        "files": files,
        "refused": NO_COROSYNC_CONF if missing else None,
    }
    if not args.json:
        result["message"] = show_text(result, only)
    return result


def show_text(result: dict[str, Any], only: str = "") -> str:
    manifest, now, files = result["generation"], result["now"], result["files"]
    live = "the live database" if now["source"] == "live" else "the replica (the daemon does not run)"
    lines = [
        f"generation  {manifest['name']}: version {manifest.get('root_version')}, lineage {manifest.get('lineage')}, "
        f"{manifest.get('mode')}, {manifest.get('time')} ({manifest.get('reason')})",
        f"now         {live}: version {now['version']}",
    ]
    if result.get("refused"):
        lines.append(f"refused     'pve-state restore' does not take it: {result['refused']}")
    what = f" of /etc/pve/{only}" if only else ""
    if not files:
        return "\n".join([*lines, f"\nRestoring this generation would change nothing{what}."])
    lines += ["", f"Restoring this generation would{what and ', as to /etc/pve/' + only}:"]
    for action in ("remove", "change", "bring back"):
        lines += [f"  {action:10}  {entry_text(entry)}" for entry in files if entry["restoring"] == action]
    lines += ["", "Lines with - are there now and would go; lines with + would come back."]
    lines += [diff_text(entry) for entry in files if entry["type"] == "file"]
    return "\n".join(lines)


def entry_text(entry: dict[str, Any]) -> str:
    """One line on a difference: what is there now, and what was there then."""
    sides = []
    for when in ("now", "then"):
        if entry[f"version_{when}"] is None:
            continue
        size = f"{entry[f'bytes_{when}']} bytes, " if entry["type"] == "file" else ""
        text = f"{when} {size}version {entry[f'version_{when}']}, {entry[f'mtime_{when}']}"
        if when == "now":
            text += f", written by node {entry['writer_now']}"
        sides.append(text)
    slash = "/" if entry["type"] == "directory" else ""
    return printable(entry["path"], "") + slash + f"  ({'; '.join(sides)})"


def diff_text(entry: dict[str, Any]) -> str:
    if entry["diff"] is not None:
        return "\n" + printable(entry["diff"].rstrip("\n"))
    why = "secret" if entry["secret"] else "binary" if entry["binary"] else "too large for a diff"
    hint = "; --secrets shows it" if entry["secret"] and not entry["binary"] else ""
    sides = [
        f"{when} {entry[f'bytes_{when}']} bytes, sha256 {entry[f'sha256_{when}']}"
        for when in ("now", "then")
        if entry[f"bytes_{when}"] is not None
    ]
    return f"\n{printable(entry['path'], '')}: {why}{hint}\n  " + "\n  ".join(sides)
