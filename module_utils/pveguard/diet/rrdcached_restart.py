# SPDX-License-Identifier: Apache-2.0
"""The restart of rrdcached that loses nothing; apart from the look, so that the facts of a node do not carry it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..base.errors import PveguardError
from . import rrd_flush
from .parts import SYSTEMCTL_S, Facts, Options, Work, mount_unit
from .rrdcached import JOURNALS, MIB, SOCKET, SOCKET_UNIT, UNIT, is_ours, mount_file, settings

#: How long a daemon may take until it answers; with a journal on disk it reads that first.
START_S = 120.0


def refuse(options: Options, facts: Facts, root: Path) -> None:
    """Raises PveguardError, before anything is changed, where the journal of now would not fit."""
    wish = settings(options, facts)
    if not wish["mount"]:
        return
    there = sum(each.stat().st_size for each in (root / facts["journal_path"].lstrip("/")).glob(JOURNALS))
    if there > wish["journal_bytes"]:
        raise PveguardError(
            f"rrdcached's journal has {there // MIB + 1} MiB and would not fit into {wish['journal_bytes'] // MIB} MiB of RAM: "
            "raise write_diet_rrdcached_journal_mib, or set write_diet_rrdcached_journal: none"
        )


def activate(work: Work) -> None:
    """Restart the daemon, with nothing lost: what waits is written first, and what is left in its journal goes along."""
    facts = work.facts
    if not facts.get("installed"):
        return
    units = [*([SOCKET_UNIT] if facts.get("socket_unit") else []), UNIT]
    socket = facts.get("socket") or SOCKET
    if facts.get("running"):
        try:
            written = rrd_flush.flush(str(work.at(socket)), clock=work.clock, sleep=work.sleep)
        except OSError as error:
            raise PveguardError(
                f"rrdcached did not write its values, so it was not restarted: {error}. Look at 'systemctl status {UNIT}'"
            ) from error
        work.done.append(f"rrdcached wrote {written} files")
    work.systemctl("daemon-reload")
    work.systemctl("stop", *units)
    try:
        aside = _move_journal(work)
    except (PveguardError, OSError):
        # A node without it stores no statistics at all; what failed is told by the caller.
        work.run(["systemctl", "start", *units], timeout=SYSTEMCTL_S)
        raise
    work.systemctl("start", *units)
    work.done.append("rrdcached restarted")
    _await(work, socket)
    if aside is not None:
        shutil.rmtree(aside)


def _mounts(work: Work) -> bool:
    """Whether the journal's tmpfs is to be there, by the files as they are now."""
    path = work.facts.get("journal_path")
    return bool(path) and work.at(mount_file(str(path))).exists()


def _stays(work: Work, path: str) -> bool:
    """Whether the tmpfs is mounted as it is wanted, so that nothing has to be carried anywhere."""
    if work.options is None or mount_file(path) in work.changed or not _mounts(work):
        return False
    return bool(work.facts["journal_tmpfs_bytes"] == settings(work.options, work.facts)["journal_bytes"])


def _await(work: Work, socket: str) -> None:
    """Until it answers, which is after it has read its journal."""
    end = work.clock() + START_S
    while True:
        try:
            daemon = rrd_flush.Daemon(str(work.at(socket)))
            daemon.stats()
            daemon.close()
            return
        except OSError as error:
            if work.clock() > end:
                raise PveguardError(f"rrdcached does not answer on {socket} after its start: {error}") from error
        work.sleep(0.2)


def _move_journal(work: Work) -> Path | None:
    """Mount or unmount the journal's tmpfs while the daemon is down, with the files of the journal in it.

    They wait beside it on disk meanwhile, also for a run that comes after one that was interrupted. That place is returned:
    it may go once the daemon has read them.
    """
    path = work.facts.get("journal_path")
    there = work.facts.get("journal_tmpfs_bytes") is not None and is_ours(work.facts)
    if not path or not (_mounts(work) or there):
        return None
    if there and _stays(work, path):
        return None
    place, unit = work.at(path), mount_unit(path)
    aside = place.with_name(f".{place.name}.pveguard")
    aside.mkdir(mode=0o700, exist_ok=True)
    try:
        _copy(place, aside)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if there:
        work.systemctl("stop", unit)
        work.done.append(f"{path} unmounted")
    for each in place.glob(JOURNALS):
        # Beneath a mount it would be read again, much later.
        each.unlink()
    if _mounts(work):
        work.systemctl("start", unit)
        work.done.append(f"a tmpfs mounted on {path}")
    _copy(aside, place)
    return aside


def _copy(source: Path, to: Path) -> None:
    for each in sorted(source.glob(JOURNALS)):
        (to / each.name).unlink(missing_ok=True)
        try:
            # On one file system it takes no space.
            os.link(each, to / each.name)
            continue
        except OSError:
            shutil.copy2(each, to / each.name)
        owner = each.stat()
        os.chown(to / each.name, owner.st_uid, owner.st_gid)
