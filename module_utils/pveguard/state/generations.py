# SPDX-License-Identifier: Apache-2.0
"""Generations: full copies of the state, one plain SQLite file each."""

from __future__ import annotations

import os
import re
import sqlite3
import time

from ..base.atomic import fsync_dir
from ..base.node_name import own as node_name
from ..formats.corosync_version import config_version
from ..pmxcfs.tree import content_of, read_rows, root_version, tree_sha256
from .exits import Damaged, Refused, StoreError
from .files import (
    ensure_store,
    file_sha256,
    read_json,
    remove,
    remove_database,
    write_json,
    write_volatile,
)
from .paths import DAY, FORMAT
from .rows import is_member, plain_copy, verify_database
from .settings import KEEP_AT_LEAST, Config
from .system import log, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence
    from typing import Any

    from ..pmxcfs.tree import Noise
    from .paths import Paths

LISTED = (
    *("name", "lineage", "root_version", "mode", "time", "reason"),
    *("problems", "verified", "restorable", "refused", "checked"),
)
UNFINISHED_SECONDS = 600


def read_manifest(path: str) -> dict[str, Any]:
    """A manifest, {} when it is missing or not one: what a damaged disk left in it must not end the program.

    The lineage may be null: who saves a copy before a join or a bootstrap knows of none.
    """
    found = read_json(path)
    if found.get("lineage", 0) is None:
        del found["lineage"]
    kinds = {"lineage": int, "root_version": int, "rows": int, "time": str, "sha256": str, "reason": str, "mode": str}
    return found if all(type(found.get(key, kind())) is kind for key, kind in kinds.items()) else {}


class Generation:
    """One full copy in the store: NAME.db with its manifest NAME.json."""

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        self.db = f"{folder}/{name}.db"
        self.json = f"{folder}/{name}.json"
        self.manifest = read_manifest(self.json)

    def problems(self, member: bool = False, sound: bool = True) -> list[str]:
        """What is wrong with it; verified in full. ``sound`` as for :func:`verify_database`."""
        if not self.manifest:
            return [f"{self.json} is missing or not readable"]
        found, _ = verify_database(self.db, member, sound)
        if not found and file_sha256(self.db) != self.manifest.get("sha256"):
            found = [f"{self.db} and its manifest disagree (sha256)"]
        return found

    def identity(self) -> list[int]:
        """What changes when one of its files does."""
        found = []
        for path in (self.db, self.json):
            try:
                status = os.stat(path)
            except OSError:
                return []
            found += [status.st_ino, status.st_size, status.st_mtime_ns]
        return found

    def key(self) -> tuple[int, int, str, str]:
        return (
            self.manifest.get("lineage") or 0,
            self.manifest.get("root_version") or 0,
            self.manifest.get("time") or "",
            self.name,
        )


def generations(paths: Paths) -> list[Generation]:
    """All generations, newest first: by lineage and root version, not by the clock."""
    try:
        names = sorted(
            n[:-3] for n in os.listdir(paths.generations) if n.endswith(".db") and not n.startswith(".")
        )
    except OSError:
        return []
    found = [Generation(paths.generations, name) for name in names]
    # A copy made by another program may not know the lineage: it belongs to the one that was current at its
    # time.
    known = sorted(
        (g.manifest.get("time") or "", int(g.manifest["lineage"])) for g in found if g.manifest.get("lineage")
    )
    for g in found:
        if g.manifest and not g.manifest.get("lineage"):
            at = g.manifest.get("time") or ""
            g.manifest["lineage"] = max([line for when, line in known if when <= at], default=1)
    return sorted(found, key=Generation.key, reverse=True)


def next_lineage(paths: Paths) -> int:
    """The lineage of a store that begins anew: above that of every generation, so that what is saved from here on is
    newer than what a former use of the store left.
    """
    found = generations(paths)
    return 1 + (int(found[0].manifest.get("lineage") or 0) if found else 0)


def checked(paths: Paths, found: Iterable[Generation]) -> dict[str, Any]:
    """{name: {time, problems}} of the generations that were verified in this boot and have not changed since."""
    known = read_json(paths.verified)
    return {g.name: known[g.name] for g in found if known.get(g.name, {}).get("file") == g.identity()}


def check_generations(
    paths: Paths, found: Sequence[Generation], anew: bool = False, seconds: float | None = None
) -> dict[str, Any]:
    """Verify generations, newest first, and note the result for this boot. Returns {name: {time, problems}}.

    Without ``anew`` only those that were not verified in this boot; after ``seconds`` the rest is left.
    """
    result = {} if anew else checked(paths, found)
    end = time.monotonic() + seconds if seconds is not None else None
    for g in found:
        if g.name in result or (end is not None and time.monotonic() >= end):
            continue
        result[g.name] = {"file": g.identity(), "time": utc(), "problems": g.problems()}
    if result != read_json(paths.verified):
        write_volatile(paths.verified, result)
    return result


def history(paths: Paths) -> dict[str, Any]:
    """Figures on the generations, under the keys of ``pve-state status --json``."""
    found = generations(paths)
    return {
        "generations": len(found),
        "generations_damaged": sum(bool(entry["problems"]) for entry in checked(paths, found).values()),
        "newest_generation_time": found[0].manifest.get("time") if found else None,
    }


def find_generation(paths: Paths, wanted: str) -> Generation:
    """The generation named ``latest``, or by name or an unambiguous beginning of it."""
    found = generations(paths)
    if not found:
        raise Refused(f"there is no generation in {paths.generations}")
    if wanted == "latest":
        for g in found:
            if not g.problems(is_member(paths)):
                return g
        raise Damaged(f"no generation in {paths.generations} passes verification; see 'pve-state list'")
    match = [g for g in found if g.name == wanted] or [g for g in found if g.name.startswith(wanted)]
    if len(match) != 1:
        what = "no generation" if not match else "more than one generation"
        raise Refused(f"{what} is named {wanted!r}; see 'pve-state list'")
    return match[0]


def manifest_of(
    connection: sqlite3.Connection,
    paths: Paths,
    lineage: int | None,
    reason: str,
    noise: Noise,
    sha256: str,
    replica: bool = False,
) -> dict[str, Any]:
    rows = read_rows(connection)
    conf = content_of(connection, "corosync.conf")
    return {
        "format": FORMAT,
        "sha256": sha256,
        "tree_sha256": tree_sha256(connection, noise),
        "root_version": root_version(rows),
        "rows": len(rows),
        "config_version": config_version((conf or b"").decode("utf-8", "replace")) or None,
        "mode": "member" if conf else "standalone",
        "node": node_name(),
        "time": utc(),
        "reason": reason,
        "lineage": lineage,
        "replica": replica,
    }


def cut_generation(
    connection: sqlite3.Connection,
    paths: Paths,
    config: Config,
    lineage: int | None,
    reason: str,
    replica: bool = False,
    unsound: bool = False,
) -> dict[str, Any]:
    """Cut a generation from an open database, verified; returns its manifest with ``name``. ``replica``: it is the
    replica's, so that the replica goes on from there. ``unsound``: also of a state that the daemon would not load.

    When the newest generation of the same lineage already has the same rows and root version, that one is
    returned.
    Raises StoreError when it could not be written, Damaged when the source does not pass verification.
    """
    ensure_store(paths)
    rows = read_rows(connection)
    root = root_version(rows)
    for g in generations(paths):
        facts = (g.manifest.get("lineage"), g.manifest.get("root_version"), g.manifest.get("rows"))
        same = facts == (lineage, root, len(rows))
        if (
            same
            and g.manifest.get("tree_sha256") == tree_sha256(connection, config.noise)
            and not g.problems(sound=False)
        ):
            return {**g.manifest, "name": g.name}
    label = re.sub(r"[^a-z0-9]+", "-", reason.lower()).strip("-")[:40] or "save"
    name = free_name(paths.generations, f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-v{root}-{label}")
    target = f"{paths.generations}/{name}.db"
    temporary = f"{paths.generations}/.{name}.db.tmp"
    try:
        plain_copy(connection, temporary)
        problems, _ = verify_database(temporary, sound=False)
        if problems and not unsound:
            raise Damaged(f"the state was not kept as a generation: {problems[0]}")
        manifest = manifest_of(connection, paths, lineage, reason, config.noise, file_sha256(temporary), replica)
        # The manifest first: without one a copy would pass for a damaged generation after a power cut in between.
        write_json(f"{paths.generations}/{name}.json", manifest)
        os.rename(temporary, target)
        fsync_dir(paths.generations)
    except (OSError, sqlite3.Error) as error:
        _discard(temporary)
        raise StoreError(f"{target}: {error}") from error
    except Damaged:
        _discard(temporary)
        raise
    try:
        prune(paths, config, name)
    except OSError as error:
        log("warning", f"{paths.generations}: old generations were not removed: {error.strerror}")
    return {**manifest, "name": name}


def _discard(path: str) -> None:
    """Remove what is only half there; where even that fails, it is swept later."""
    try:
        remove_database(path)
    except OSError as error:
        log("warning", f"{path}: {error.strerror}")


def free_name(folder: str, name: str) -> str:
    """``name``, or with a number when there is one of that name: two in one second, or the clock was set back."""
    taken, number = name, 1
    while any(os.path.lexists(f"{folder}/{taken}{suffix}") for suffix in ("", ".db", ".json")):
        number += 1
        taken = f"{name}-{number}"
    return taken


def damaged_folder(paths: Paths, suffix: str = "") -> str:
    """A new folder for files that did not pass. Raises OSError."""
    os.makedirs(paths.damaged, mode=0o700, exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    folder = f"{paths.damaged}/{free_name(paths.damaged, stamp + suffix)}"
    os.mkdir(folder, 0o700)
    return folder


def prune(paths: Paths, config: Config, made: str | None = None) -> None:
    """Remove generations beyond the number to keep, and those above the greatest age.

    The newest five stay whatever their age, and so do the newest good one, one that is being restored, and ``made``, which
    has just been cut and whose version may be the lowest.
    """
    found = generations(paths)
    limit = utc(time.time() - config.max_age_days * DAY) if config.max_age_days else ""
    extra = []
    # From the oldest on: one that was cut after another is younger, also when the clock was set back in between.
    age = ""
    for place, g in reversed(list(enumerate(found))):
        age = max(age, str(g.manifest.get("time") or ""))
        if g.name in config.in_use or g.name == made:
            continue
        if place >= config.keep or (place >= KEEP_AT_LEAST and g.manifest and age < limit):
            extra.append(g)
    member = is_member(paths)
    if extra and all(g.problems(member) for g in found if g not in extra):
        good = next((g for g in reversed(extra) if not g.problems(member)), None)
        extra = [g for g in extra if g is not good]
    for g in extra:
        remove_database(g.db)
        remove(g.json)
    _sweep(paths, {g.name for g in found})


# Names that a copy and its manifest have until they are whole; the last is of former versions.
_UNFINISHED = re.compile(r"\..+\.db\.tmp(-wal|-shm|-journal)?|\..+\.json\.[0-9a-z_]{8,}|.+\.json\.tmp[0-9]+")


def _sweep(paths: Paths, names: Container[str]) -> None:
    """Remove what a power cut in the middle of a generation left: a copy that never got its name, a manifest without
    a copy. Not what is young: another program may be making it.
    """
    for entry in os.listdir(paths.generations):
        path = f"{paths.generations}/{entry}"
        unfinished = _UNFINISHED.fullmatch(entry)
        left = unfinished or (entry.endswith(".json") and entry[:-5] not in names)
        if left and time.time() - os.stat(path).st_mtime > UNFINISHED_SECONDS:
            remove(path)


def restore_fix(paths: Paths) -> str:
    """The command that helps when the replica cannot be restored: a member without a copy from after its join gets
    the state from the others.
    """
    if is_member(paths) and not any(g.manifest.get("mode") == "member" for g in generations(paths)):
        return "pve-state restore --resync"
    return "pve-state restore --generation latest"


def left_cluster(g: Generation, member: bool) -> str | None:
    """Why a member's generation is no state for a node that is none, or None."""
    if member or g.manifest.get("mode") != "member":
        return None
    return (
        f"generation {g.name} is from a member of a cluster, and this node is none: the daemon would start in cluster "
        "mode without corosync, and /etc/pve would be read-only. 'pve-state restore-file' takes files out of it"
    )
