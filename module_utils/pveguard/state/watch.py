# SPDX-License-Identifier: Apache-2.0
"""The watcher: every change of the live database is saved within the RPO."""

from __future__ import annotations

import os
import signal
import sqlite3
import time

from ..base.errors import PveguardError
from ..base.findings import worth_telling
from ..base.node_name import own as node_name
from ..ha import ha_findings
from ..pmxcfs.live_database import Unreadable, position, unknown_schema
from ..pmxcfs.members import CLUSTER, known, parse
from ..pmxcfs.tree import NAME, path_of, read_rows, root_version
from . import status_findings
from .compare import compare
from .exits import StateError, StoreError
from .files import Lock, ensure_store, read_json, remove, stat_id, store_lock, write_volatile
from .generations import history
from .live import advance_pending, live_database, read_live, remember_database, replaced_database
from .members import daemon_mode
from .node import daemon_pid, fill, is_ours, live_mount, memory, resize_tmpfs
from .paths import MIB
from .preflight import ha_masked, resource_ids
from .replica import CHECKPOINT_SECONDS, LOG_BYTES, LOG_LIMIT, Store
from .rescue import modified, rescue_is_over
from .rows import is_member
from .save import save, saved_text
from .show import last_written
from .status import changed_paths, newest_change, write_metrics
from .system import log, notify, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from typing import Any

    from ..base.findings import Finding
    from ..pmxcfs.tree import Rows
    from .compare import Change
    from .paths import Paths
    from .settings import Config

#: Paths that the watcher names while saves fail; unsaved_files counts all.
MAX_UNSAVED = 100


class Members:
    """Who is online, read from /etc/pve/.members in a thread of its own: a hanging daemon must not hang the
    saves.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        # None until read; else (in a cluster, quorate, names of who is online)
        self.state: tuple[bool, bool, frozenset[str]] | None = None
        self.changes = 0
        self.answered: float | None = None  # time.monotonic() of the last answer

    def _read(self) -> dict[str, Any]:
        with open(f"{self.paths.pve}/.members", encoding="utf-8") as handle:
            return known(parse(handle.read()))

    def look(self) -> None:
        try:
            found = self._read()
            mode = daemon_mode(self.paths, found, self._read)
        except (OSError, ValueError, PveguardError):
            return
        self.answered = time.monotonic()
        names = frozenset(n for n, v in (found.get("nodelist") or {}).items() if v.get("online"))
        state = (mode.name == CLUSTER, bool(mode.quorate), names)
        if self.state is not None and state != self.state:
            self.changes += 1
        self.state = state


class Watcher:
    """Saves every real change of the live database within the RPO."""

    poll = 0.25

    def __init__(self, paths: Paths, config: Config) -> None:
        self.paths, self.config = paths, config
        self.store = Store(paths, config, alone=True)
        self.members = Members(paths)
        self.members_seen = 0
        self.following = False  # whether there is a daemon whose database is looked at
        self.identity: object = None
        self.pid: int | None = None
        self.over = False
        self.position: tuple[Any, ...] | None = None
        self.dirty = False
        self.dirty_since = 0.0  # the oldest change not looked at is not older than this
        self.deep = True
        self.replaced: str | None = None
        # Of saves that went beside the replica.
        self.owed_deep = False
        self.owed_replaced: str | None = None
        self.next_scan = 0.0
        self.pending_since: float | None = None  # the oldest real change not saved is not older than this
        self.last_look = 0.0
        self.last_move = 0.0
        self.logged_since = 0.0  # the oldest save that is only in the replica's log
        self.save_seconds = 0.3  # until one was measured
        self.save_measured = False
        self.scan_seconds = 0.0
        self.late = 0.0
        self.ticked: float | None = None
        self.checkpoint_at = 0.0
        self.checkpoint_error: str | None = None
        self.owed_at = 0.0
        self.retry_at = 0.0
        self.backoff = 0.0
        self.next_fill = 0.0
        self.failed_since: float | None = None
        # (live rows, replica's rows, their difference) of the last look.
        self.unsaved: tuple[Rows, Rows, Change] | None = None
        self.strange: list[Finding] = []  # of the last save
        self.of_ha: list[Finding] = []  # of the last look at HA's resources
        self.looked_at: Rows | None = None  # the replica's table in which HA's resources were looked for
        self.ha_inode: int | None = None
        self.next_metrics = 0.0
        self.measured: dict[str, Any] | None = None
        self.history_of: tuple[float, float] | None = None
        self.history: dict[str, Any] = {}
        self.live_root: int | None = None
        self.stopping = False
        self.save_now = False
        self.advancing = advance_pending(paths)
        self.status: dict[str, Any] = {
            "pid": os.getpid(),
            "started": utc(),
            "saves": 0,
            "save_failures": 0,
            "unsaved_files": 0,
            "unsaved_since": None,
            "unsaved_paths": [],
            "last_save": last_written(paths),
            "error": None,
            "ready": False,
            "warnings": [],
            "findings": [],
        }
        self.published: dict[str, Any] | None = None

    # -- one look at the world

    def tick(self, now: float) -> None:
        """One turn: look whether the database moved, and save when it is time."""
        if self.ticked is not None:
            self.late = max(0.9 * self.late, min(now - self.ticked - self.poll, self.config.rpo))
        self.ticked = now
        if not self._follow_daemon():
            self._publish()
            return
        try:
            now_at = position(self.paths.live_db)
        except Unreadable as error:
            self._lose_live(f"the live database cannot be read: {error}")
            return
        if now_at != self.position:
            self.position = now_at
            self.last_move = now
            if not self.dirty:
                self.dirty = True
                self.dirty_since = self.last_look
        self.last_look = now
        if self.members.changes != self.members_seen:
            self.members_seen = self.members.changes
            self.save_now = True
        if now < self.retry_at:
            return
        if self.save_now or self.deep or self.replaced:
            self._save(now, exact=self.save_now)
        elif self.pending_since is not None:
            waited = now - self.pending_since
            allowance = self._allowance()
            if waited >= allowance or now - self.last_move >= 2 * self.poll:
                self._save(now)
        elif self.dirty and now >= self.next_scan:
            self._scan(now)
        elif (
            self.store.logged
            and now >= self.checkpoint_at
            and now - self.last_move >= 2 * self.poll
            and (self.store.logged > LOG_BYTES or now - self.logged_since >= CHECKPOINT_SECONDS)
        ):
            self._checkpoint(now)
        elif self.store.owed and now >= self.owed_at:
            self._cut_owed(now, self.store.owed)
        if now >= self.next_fill:
            self.next_fill = now + 10
            self._watch_fill()
        self._publish()

    def _allowance(self) -> float:
        """Seconds that a change may wait for others before it is saved with them. What a look and a save took here
        of late is left free twice, and how late this process itself was: on a slow node nothing waits. On a fast one a
        file that is being written waits long, because each save writes all of it: 1.5 s are three saves in 4 s.
        """
        busy = 2 * (self.save_seconds + self.scan_seconds + self.poll) + self.late
        return max(0.0, min(0.7 * self.config.rpo, self.config.rpo - busy))

    def _follow_daemon(self) -> bool:
        """Whether there is a daemon with a database to look at. Nothing is held open between two looks."""
        identity = stat_id(self.paths.live_db)
        pid = daemon_pid(self.paths)
        if identity != self.identity or pid is None:
            self.following = False
        if identity is None or pid is None:
            return False
        if self.pid is not None and pid != self.pid:
            # Another daemon, whatever became of the state in between: begin as after a start.
            self.over = True
            return False
        if self.pid is None:
            self.deep = True
            self.pid = pid
        if not self.following:
            if not is_ours(live_mount(self.paths)):
                self._report(f"{self.paths.live} is not the RAM file system; nothing is saved")
                return False
            self.replaced = self.replaced or replaced_database(self.paths)
            try:
                live_database(self.paths)
            except StateError as error:
                self._report(str(error))
                return False
            self.following, self.identity, self.position = True, identity, None
            self.deep = True
        return True

    def _lose_live(self, message: str) -> None:
        self.following = False
        self._report(message)

    def _scan(self, now: float) -> None:
        """Is the difference real? Metadata only, in one short transaction."""
        started = time.monotonic()
        try:
            ensure_store(self.paths)
            with store_lock(self.paths):
                replica = self.store.rows()
        except StateError as error:
            self._failed(now, error)
            return
        except sqlite3.Error as error:
            self._failed(now, StoreError(f"{self.paths.replica}: {error}"))
            return
        try:
            unknown, rows = read_live(
                self.paths, lambda live: (found, {}) if (found := unknown_schema(live)) else (None, read_rows(live))
            )
        except StateError:
            unknown, rows = "it cannot be read", {}
        if unknown:
            # It is kept as it is.
            self._save(now)
            return
        self.dirty = False
        change = compare(rows, replica, self.config.noise)
        self.live_root = root_version(rows)
        last = root_version(replica)
        if change.rewritten:
            self.deep = True
        self.status["unsaved_files"] = len(change.upsert) + len(change.delete)
        self.unsaved = None
        if change.real or change.rewritten:
            self.unsaved = rows, replica, change
            # The change may be as old as the first move since the last scan, not as young as this one.
            self.pending_since = self.dirty_since
        elif self.live_root - last >= self.config.max_lag:
            self._save(now)
        else:
            if self.store.rescued is not None:
                # What the daemon serves is what the replica holds.
                try:
                    with store_lock(self.paths):
                        rescue_is_over(self.store)
                except StateError as error:
                    self._failed(now, error)
                    return
            self._works()
        self.scan_seconds = time.monotonic() - started
        # A large table under heartbeats: look less often rather than burn a core.
        self.next_scan = now + min(20 * self.scan_seconds, 0.4 * self.config.rpo, self._allowance())

    def _save(self, now: float, exact: bool = False) -> None:
        started = time.monotonic()
        if not self.store.logged:
            self.logged_since = now
        try:
            result = save(
                self.store,
                deep=self.deep or self.owed_deep,
                exact=exact,
                replaced=self.replaced or self.owed_replaced,
                checkpoint=False,
            )
            with store_lock(self.paths):
                # From here on the state on disk is not the one of a clean stop.
                self.store.update_state(clean=False)
        except StateError as error:
            self._failed(now, error)
            return
        except sqlite3.Error as error:
            self._failed(now, StoreError(f"{self.paths.replica}: {error}"))
            return
        took = time.monotonic() - started
        self.save_seconds = max(0.9 * self.save_seconds, took) if self.save_measured else took
        self.save_measured = True
        # What was kept beside the replica only is still to be compared with it.
        self.owed_deep = bool(result["rescued"]) and (self.deep or self.owed_deep)
        self.owed_replaced = (self.replaced or self.owed_replaced) if result["rescued"] else None
        self.deep = False
        self.replaced = None
        self.save_now = False
        self.pending_since = None
        # What was committed after the look at its position, saved or not, moves it at the next one.
        self.dirty = False
        self.live_root = result["live_root_version"]
        self._warn_of(result["warnings"])
        if result["rescued"]:
            self._kept_aside(now, result)
            return
        if result["saved"]:
            self.status["saves"] += 1
            self.status["last_save"] = utc()
            if result["rows_changed"] or result["rows_deleted"]:
                self.status["last_real_change"] = utc()
        self._works()
        if result["saved"] and self.store.logged > LOG_LIMIT and now >= self.checkpoint_at:
            self._checkpoint(now)
        self.unsaved = None
        self.status["unsaved_files"] = 0
        self.status["saved_root_version"] = result["root_version"]
        self.status["lineage"] = result["lineage"]
        remember_database(self.paths)

    def _kept_aside(self, now: float, result: dict[str, Any]) -> None:
        """The live state is safe, but beside the replica: an error until somebody has mended it."""
        self.unsaved = None
        self.status["unsaved_files"] = 0
        self.status["unsaved_paths"] = []
        self.failed_since = None
        if result["rescued"]["kind"] in ("damaged", "schema"):
            # Each copy of it is a whole one: not at every commit.
            self.backoff = min(30.0, max(1.0, 2 * self.backoff))
            self.retry_at = now + self.backoff
            self.dirty = True
        else:
            self.backoff = 0.0
        self.status["last_save"] = utc()
        self._report(saved_text(result))

    def _warn_of(self, warnings: Sequence[str]) -> None:
        """What a restore would refuse in the state that was just saved."""
        self.strange = [status_findings.strange(warning) for warning in warnings]
        for each in self.strange:
            if each.sentence not in self.status["warnings"]:
                log("warning", each.sentence)

    def _failed(self, now: float, error: Exception) -> None:
        self.status["save_failures"] += 1
        if self.failed_since is None:
            self.failed_since = now
        if self.unsaved is not None:
            # What was written but not synced can be read by others: only this process knows that it is not safe.
            self.status["unsaved_paths"] = changed_paths(*self.unsaved)[:MAX_UNSAVED]
        self.backoff = min(30.0, max(1.0, 2 * self.backoff))
        self.retry_at = now + self.backoff
        self._report(f"not saved: {error}; the next try is in {self.backoff:g} s")

    def _report(self, message: str) -> None:
        if message != self.status["error"]:
            log("error", message)
            notify(f"STATUS={message[:200]}")
        self.status["error"] = message
        self._publish()

    def _works(self) -> None:
        """The store answers (again). A checkpoint that failed stays an error until one works."""
        if self.status["error"] != self.checkpoint_error:
            log("info", "saves work again")
        self.status["error"] = self.checkpoint_error
        self.failed_since = None
        self.status["unsaved_paths"] = []
        self.backoff = 0.0

    def _checkpoint(self, now: float) -> None:
        try:
            with store_lock(self.paths):
                self.store.restart_log()
        except StateError as error:
            # What was saved is safe in the log, and saves go on.
            self.checkpoint_at = now + 30
            message = f"no checkpoint of the log: {error}; the next try is in 30 s"
            self.checkpoint_error = message
            self._report(message)
            return
        self.logged_since = now
        self.checkpoint_error = None
        self._works()

    def _cut_owed(self, now: float, reason: str) -> None:
        """Cut the generation that could not be cut with its save."""
        try:
            with store_lock(self.paths), self.store:
                self.store.cut(reason)
        except (StateError, sqlite3.Error) as error:
            self.owed_at = now + 30
            log("error", f"{error}; the next try is in 30 s")

    def _watch_fill(self) -> None:
        limit, used = fill(self.paths)
        self._watch_ha()
        found = [*self.of_ha, *self.strange]
        if limit and used * 100 >= limit * 60:
            total, available = memory()
            wanted = min(2 * limit, total // 2)
            if wanted > limit and available > (wanted - used):
                if resize_tmpfs(self.paths, wanted):
                    log(
                        "warning",
                        f"{self.paths.live} was {used * 100 // limit} % full; its limit is now "
                        f"{wanted // MIB} MiB",
                    )
            else:
                full = status_findings.nearly_full(self.paths.live, used * 100 // limit)
                found += [full] if full else []
        for each in found:
            if each.sentence not in self.status["warnings"]:
                log("error", each.sentence)
        self.status["warnings"] = [each.sentence for each in found]
        self.status["findings"] = [each.as_dict() for each in found]
        self.status["tmpfs_bytes"], self.status["used_bytes"] = limit, used

    def _watch_ha(self) -> None:
        """HA resources on a node whose HA managers are masked; where they cannot be read, what was said before stands."""
        rows = self.store._rows
        if rows is not None and rows is not self.looked_at:
            # A table that was not saved anew has the same resources.
            self.looked_at = rows
            self.ha_inode = next(
                (
                    i
                    for i, row in rows.items()
                    if row[NAME] == b"resources.cfg" and path_of(i, rows) == "ha/resources.cfg"
                ),
                None,
            )
            self.status["last_real_change"] = self.status.get("last_real_change") or newest_change(rows)
        resources: list[str] = []
        if self.ha_inode is not None:
            try:
                query = "SELECT CAST(data AS BLOB) FROM tree WHERE inode=?"
                found = read_live(self.paths, lambda live: live.execute(query, (self.ha_inode,)).fetchone())
                resources = resource_ids(found[0]) if found else []
            except StateError:
                return
        masked = ha_masked(self.paths) if resources else []
        self.status["ha_resources_while_masked"] = len(resources) if masked else 0
        self.of_ha = worth_telling(ha_findings.of_status(resources, masked)) if masked else []

    # -- what is told

    def _lag(self, now: float) -> float:
        """Seconds since the oldest real change that is not saved, 0 when all is."""
        since = [at for at in (self.pending_since, self.failed_since) if at is not None]
        return max(0.0, now - min(since)) if since else 0.0

    def facts(self, now: float) -> dict[str, Any]:
        """What the metrics tell, under the keys of ``pve-state status --json``."""
        watch = self.status
        answers = self.members.answered is not None and time.monotonic() - self.members.answered < 30
        saved, live = watch.get("saved_root_version"), self.live_root
        return {
            **watch,
            "state": "failed" if watch["error"] else "enabled",
            "watch_error": watch["error"],
            "mounted": self.following or is_ours(live_mount(self.paths)),
            "answers": answers,
            "quorate": self.members.state[1] if answers and self.members.state else None,
            "root_version": live,
            "lag_versions": live - saved if live is not None and saved is not None else None,
            "lag_seconds": self._lag(now),
            "lineage_since": self.store.state.get("lineage_since"),
            "rescue": os.path.exists(self.paths.aside().state_file),
            "watcher_running": not self.stopping,
            "watcher_started": watch["started"],
            **self._history(),
        }

    def _history(self) -> dict[str, Any]:
        """Figures on the generations, read again only when something there changed."""
        changed = modified(self.paths.generations), modified(self.paths.verified)
        if changed != self.history_of:
            self.history_of, self.history = changed, history(self.paths)
        return self.history

    def _measure(self, now: float) -> None:
        """Write the metrics when something is different, each second while something is not saved, and else
        now and then, so that their age tells whether somebody is there.
        """
        if self.published is self.measured and now < self.next_metrics:
            return
        self.measured = self.published
        self.next_metrics = now + (1 if self._lag(now) else 15)
        write_metrics(self.paths, self.facts(now))

    def _publish(self) -> None:
        if self.pending_since is None and self.failed_since is None:
            self.status["unsaved_since"] = None
        elif self.status["unsaved_since"] is None:
            self.status["unsaved_since"] = utc()
        self.status["live_root_version"] = self.live_root
        self.status["ready"] = not self.advancing and self.status["error"] is None
        if self.status != self.published:
            write_volatile(self.paths.watch_file, self.status)
            self.published = dict(self.status)
            if not self.status["error"]:
                notify(f"STATUS=saved up to root version {self.status.get('saved_root_version')}")

    # -- the loop

    def finish(self) -> None:
        """The last save, then every handle closed."""
        try:
            if self.following:
                result = save(self.store, deep=self.deep, exact=True, replaced=self.replaced)
                log("error" if result["rescued"] else "info", f"stopped; {saved_text(result)}")
        except (StateError, sqlite3.Error) as error:
            log("error", f"the last save failed: {error}")
        finally:
            try:
                with store_lock(self.paths, wait=5):
                    # The one file is the whole state then.
                    self.store.open()
                    self.store.close()
            except StateError as error:
                log("error", str(error))

    @property
    def ending(self) -> bool:
        return self.stopping or self.over

    def loop(self) -> bool:
        """Watch until this process is to stop, which is True, or until the daemon stops or is another one."""
        import select
        import threading

        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "stopping", True))
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "save_now", True))
        threading.Thread(target=self._background, daemon=True).start()
        ping = float(os.environ.get("WATCHDOG_USEC", "0")) / 4e6
        pinged = 0.0
        ready = False
        while not self.ending:
            now = time.monotonic()
            self.tick(now)
            self._measure(now)
            if not ready:
                notify("READY=1")
                ready = True
            if ping and now - pinged >= min(ping, 10):
                pinged = now
                notify("WATCHDOG=1")
            if select.select([reader], [], [], self.poll)[0]:
                os.read(reader, 64)
        if self.stopping:
            notify("STOPPING=1")
        self.finish()
        self.status["ready"] = False
        write_metrics(self.paths, self.facts(time.monotonic()))
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)
        return self.stopping

    def _background(self) -> None:
        while not self.ending:
            self.members.look()
            try:
                self._advance()
            except OSError as error:
                log("warning", f"the cluster's version could not be advanced: {error}")
            time.sleep(2)

    def _advance(self) -> None:
        """After an unclean restore, raise the cluster's version by ordinary writes beyond what others may
        have seen.

        The daemon's leader is whoever has the highest root version. This node may have lost transactions that
        a member
        which stopped cleanly still has; left alone, that member would roll back what was written since.
        """
        if not self.advancing or self.members.state is None:
            return
        restored = read_json(self.paths.restore_file)
        target = restored.get("advance_to")
        state = self.members.state
        if not target:
            self.advancing = False
            return
        cluster, quorate, _ = state
        if cluster and not quorate:
            return
        if not cluster and is_member(self.paths):
            return
        if cluster:
            lock = f"{self.paths.pve}/priv/lock/pveguard-{node_name()}"
            # A restored state may not have seen a lock yet.
            os.makedirs(os.path.dirname(lock), exist_ok=True)
            while not self.ending:
                if self.live_root is None or self.live_root >= target:
                    break
                before = self.live_root
                # One pair is two transactions. Small batches: others may be doing the same.
                for _ in range(min(25, (target - before) // 2 + 1)):
                    one_pair(lock)
                end = time.monotonic() + 10
                while self.live_root == before and time.monotonic() < end and not self.ending:
                    time.sleep(self.poll)
                if self.live_root == before:
                    return
            if self.live_root is None or self.live_root < target:
                return
            # The last pair may have been cut in two, and others have raised the version since.
            if os.path.isdir(lock):
                os.rmdir(lock)
            log(
                "info",
                f"the cluster's root version is {self.live_root}, beyond what was lost at the last stop",
            )
        write_volatile(self.paths.restore_file, {**restored, "advance_to": None, "advanced": self.live_root})
        self.advancing = False
        self.save_now = True


def one_pair(lock: str) -> None:
    """Make a directory and remove it: two transactions. One that a stop half way left is only removed."""
    try:
        os.mkdir(lock)
    except FileExistsError:
        pass
    except OSError as error:
        # It may be there although the call failed (no answer, no quorum): leave nothing behind.
        try:
            os.rmdir(lock)
        except FileNotFoundError:
            pass
        except OSError as second:
            raise OSError(error.errno, f"{error.strerror}; removed again: {second.strerror}", lock) from error
        raise
    os.rmdir(lock)


def cmd_watch(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    ensure_store(paths)
    with Lock(f"{paths.run}/watch.lock", "a watcher runs already", create=True):
        saves, stopped = 0, False
        while not stopped:
            # As a new process for each daemon, without the time that starting one takes: nothing is saved meanwhile.
            watcher = Watcher(paths, config)
            stopped = watcher.loop()
            saves += watcher.status["saves"]
        remove(paths.watch_file)
    return {"message": "stopped", "saves": saves}
