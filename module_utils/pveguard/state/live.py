# SPDX-License-Identifier: Apache-2.0
"""The live database: where it is, and looks at it."""

from __future__ import annotations

import os

from ..pmxcfs.live_database import Busy, Unreadable, look, merge_log
from .exits import Damaged, NotRead, Refused, SwitchError
from .files import read_json, size_of, stat_id, write_volatile
from .node import daemon_pid
from .rows import in_memory, is_placeholder

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from typing import TypeVar

    Value = TypeVar("Value")

    from .paths import Paths


def live_database(paths: Paths) -> str:
    """Path of the database that the daemon has or would start with. Raises StateError where there is none."""
    if not os.path.exists(paths.live_db):
        raise Refused(f"{paths.live_db} does not exist; nothing was saved")
    if is_placeholder(paths.live_db):
        raise Refused(
            f"{paths.live_db} is the placeholder: the RAM file system is not mounted; nothing was saved"
        )
    if size_of(paths.live_db) == 0 and size_of(paths.live_db + "-wal") == 0:
        raise Damaged(f"{paths.live_db} is empty (0 bytes); nothing was saved, the replica is kept as it is")
    return paths.live_db


def open_live(paths: Paths) -> sqlite3.Connection:
    """Connection to a copy in memory of the live database, of one moment, whether or not the daemon runs."""
    return in_memory(live_database(paths))


def read_live(paths: Paths, function: Callable[[sqlite3.Connection], Value]) -> Value:
    """What ``function`` returns for a connection to one consistent state of the live database, see :func:`read_only`."""
    try:
        return look(live_database(paths), function)
    except Unreadable as error:
        kind = NotRead if isinstance(error, Busy) else Damaged
        raise kind(f"the live database cannot be read: {error}") from error


def merge_live_log(paths: Paths) -> None:
    """With the daemon down, make the one file of its database the whole state."""
    try:
        merge_log(paths.live_db)
    except Unreadable as error:
        raise SwitchError(str(error)) from error


def switched(paths: Paths) -> bool:
    """True when this node is set up to run from RAM."""
    return os.path.exists(paths.drop_in)


def replaced_database(paths: Paths) -> str | None:
    """A reason when config.db is not the file that was last seen in this boot, else None."""
    seen = read_json(paths.live_file).get("identity")
    now = stat_id(paths.live_db)
    if seen and now and list(now) != list(seen):
        return "config.db was replaced"
    return None


def remember_database(paths: Paths) -> None:
    write_volatile(paths.live_file, {"identity": stat_id(paths.live_db), "pid": daemon_pid(paths)})


def advance_pending(paths: Paths) -> bool:
    return bool(read_json(paths.restore_file).get("advance_to"))
