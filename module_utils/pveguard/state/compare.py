# SPDX-License-Identifier: Apache-2.0
"""What differs between the live table and the replica."""

from __future__ import annotations

import hashlib

from ..pmxcfs.tree import (
    DIRECTORY,
    LENGTH,
    ROW_VERSION,
    TYPE,
    as_bytes,
    path_of,
    read_rows,
    root_version,
    stored_data,
    without_noise,
)
from .live import read_live
from .paths import MIB
from .rows import file_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeVar

    Value = TypeVar("Value")

    from ..pmxcfs.tree import Noise, Row, Rows
    from .paths import Paths
    from .settings import Config

# Bytes that one look at the live database reads of files: a longer one would be torn by a busy daemon.
LOOK_BYTES = 8 * MIB


class Change:
    """Difference of a live table from the replica, noise left out."""

    def __init__(self, rows: Rows, upsert: set[int], delete: set[int], rewritten: str | None) -> None:
        self.rows = rows  # the table as the replica will be
        self.upsert = upsert  # inodes to copy, without 0
        self.delete = delete  # inodes to delete
        self.rewritten = rewritten  # a reason why this is not a continuation of the replica, or None

    @property
    def real(self) -> bool:
        return bool(self.upsert or self.delete)


def compare(
    live: Rows,
    replica: Rows,
    noise: Noise,
    full: bool = False,
    live_hashes: Mapping[int, bytes] | None = None,
    replica_hashes: Mapping[int, bytes] | None = None,
) -> Change:
    """Compare two tables {inode: row} by every field, and by hashes of the data where they are given.

    ``full`` looks at every row for noise. Otherwise only rows that differ are looked at, which is right as
    long as no
    directory of the replica changed (a rename moves everything below it).
    """
    differs = {row[0] for row in live.items() - replica.items()}
    gone = replica.keys() - live.keys()
    if not full:
        full = any(i and i in replica and replica[i][TYPE] == DIRECTORY for i in differs)
    if full:
        wanted = without_noise(live, noise)
        upsert = {i for i in differs if i in wanted and i != 0}
        delete = replica.keys() - wanted.keys()
    else:
        upsert = set()
        noisy: set[int] = set()
        for inode in differs:
            if inode == 0:
                continue
            path = path_of(inode, live)
            (noisy if path is not None and noise.matches(path) else upsert).add(inode)
        delete = set(gone) | (noisy & replica.keys())
        # A directory that became noise or vanished takes along what the replica has below it.
        wanted = dict(replica)
        for inode in delete:
            wanted.pop(inode, None)
        for inode in upsert:
            wanted[inode] = live[inode]
        if 0 in live:
            wanted[0] = live[0]
    if live_hashes is not None and replica_hashes is not None:
        same = {i for i in wanted if i and i in replica and i not in upsert}
        other_data = {i for i in same if live_hashes.get(i) != replica_hashes.get(i)}
    else:
        other_data = set()
    rewritten = None
    if replica.get(0) is not None:
        last = replica[0][ROW_VERSION]
        old = sorted(i for i in upsert if live[i][ROW_VERSION] <= last)
        if root_version(live) < last:
            rewritten = f"the root version went back from {last} to {root_version(live)}"
        elif other_data:
            rewritten = f"{file_name(min(other_data), live)} has other data under the same version"
        elif old:
            rewritten = f"{file_name(old[0], live)} changed to version {live[old[0]][ROW_VERSION]}, not above {last}"
        elif len(delete) > 10 and len(delete) * 2 > len(replica):
            rewritten = f"{len(delete)} of {len(replica)} rows are gone"
    return Change(wanted, upsert | other_data, set(delete), rewritten)


def gather(
    paths: Paths, wanted: Callable[[Rows], Iterable[int]], make: Callable[[Any], Value]
) -> tuple[Rows, dict[int, Value]]:
    """(rows, {inode: make(data)}) of the live database, for the inodes that ``wanted(rows)`` names.

    In looks of ``LOOK_BYTES`` at most: one at everything would be torn again and again by a daemon that writes. What was
    read of a file stands for as long as its row is the same, and the rows are those of the last look, in which nothing was
    missing any more. ``wanted`` is called at each.
    """
    known: dict[int, tuple[Row, Value]] = {}

    def step(connection: sqlite3.Connection) -> tuple[Rows, Iterable[int], dict[int, tuple[Row, Value]], bool]:
        rows = read_rows(connection)
        found: dict[int, tuple[Row, Value]] = {}
        size, whole = 0, True
        inodes = wanted(rows)
        for inode in inodes:
            if inode in known and known[inode][0] == rows[inode]:
                continue
            size += rows[inode][LENGTH] or 0
            if found and size > LOOK_BYTES:
                whole = False
                break
            found[inode] = (rows[inode], make(stored_data(connection, inode)))
        return rows, inodes, found, whole

    while True:
        rows, inodes, found, whole = read_live(paths, step)
        known.update(found)
        if whole:
            return rows, {inode: known[inode][1] for inode in inodes}


def data_hash(data: object) -> bytes:
    return hashlib.blake2b(as_bytes(data), digest_size=16).digest()


def read_change(
    paths: Paths, replica: Rows, config: Config, deep: bool, replica_hashes: Mapping[int, bytes] | None
) -> tuple[Change, dict[int, Any]]:
    """(difference from the replica, {inode: data} of the rows to copy and inode 0) of the live database."""
    seen, hashes = gather(paths, lambda rows: rows, data_hash) if deep else ({}, {})
    changes: list[Change] = []

    def wanted(rows: Rows) -> Iterable[int]:
        # A row that changed since its data was looked at is copied in any case.
        live_hashes = {i: h for i, h in hashes.items() if rows.get(i) == seen[i]} if deep else None
        changes.append(compare(rows, replica, config.noise, deep or not replica, live_hashes, replica_hashes))
        return changes[-1].upsert | ({0} & rows.keys())

    _, blobs = gather(paths, wanted, lambda data: data)
    return changes[-1], blobs
