"""A change to the cluster-wide corosync.conf, made on one member and awaited until it has arrived.

The way is the documented one: a validated candidate, config_version + 1, the former text kept as ``.bak``,
the new text written beside the file and renamed over it. Each member's daemon copies it to /etc/corosync; the
writing one reloads Corosync a second later. A change that does not arrive everywhere is undone the same way, with a
still higher config_version.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.atomic import read_or_none, write_atomic
from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..formats import corosync_check, corosync_conf, corosync_edit
from ..pmxcfs import pve_file, pve_lock
from . import corosync_info, corosync_refusals, corosync_wish, probe_members
from .corosync_wish import Wanted

#: The lock that ``pvecm`` takes for the same work (a directory; the cluster file system makes mkdir atomic).
LOCK = "priv/lock/file-corosync_conf"
#: Seconds after which a reload that has not been seen is issued again; the daemon's own comes one second
#: after the write.
RELOAD_AFTER_S = 4.0


#: Where the text of a rollback is left on this node when it could not be written to the cluster file system.
ROLLBACK_COPY = Path("var/lib/pveguard/corosync.conf.rollback")
#: Lines of the journal in a failure, and of the difference in its message.
JOURNAL_LINES = 20
DIFF_LINES = 30


@dataclass
class Outcome:
    """``before`` and ``after`` are the texts, ``steps`` how many were written to get there; ``restart_needed`` the
    changed keys that a running Corosync takes only at its next start; ``info`` what corosync_info says at the end;
    ``lock_kept`` the locks on /etc/pve that this node could not give back yet (module pve_lock)."""

    changed: bool
    before: str
    after: str
    reloaded: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    restart_needed: list[str] = field(default_factory=list)
    steps: int = 0
    lock_kept: list[pve_lock.Kept] = field(default_factory=list)


class ChangeFailed(PveguardError):
    """A change that was written and did not arrive. ``rolled_back``: the former text is in force again.

    ``before`` and ``after`` are the texts, ``journal`` the lines of Corosync and the daemon since the change.
    """

    def __init__(self, message: str, before: str, after: str, journal: list[str], rolled_back: bool) -> None:
        super().__init__(message)
        self.before, self.after, self.journal, self.rolled_back = before, after, journal, rolled_back


def validate(text: str, run: Run = real_run, directory: Path = Path("/run/pveguard")) -> None:
    """Let ``corosync -t`` judge a candidate. Raises PveguardError with what it said."""
    directory.mkdir(parents=True, exist_ok=True)
    candidate = directory / f"corosync.conf.candidate.{os.getpid()}"
    candidate.write_bytes(_bytes(text))
    try:
        result = run(["corosync", "-c", str(candidate), "-t"], timeout=60)
    finally:
        candidate.unlink(missing_ok=True)
    if not result.ok:
        said = (
            "; ".join(line for line in (result.stderr + result.stdout).splitlines() if line.strip())
            or f"code {result.rc}"
        )
        raise PveguardError(f"corosync refuses the new corosync.conf, so nothing was changed: {said}")


def plan(wanted: Wanted, run: Run = real_run, root: Path = Path("/")) -> Outcome:
    """What :func:`apply` would write. On a node without a cluster there is no text yet: every wish is a
    change."""
    info = corosync_info.collect(run=run, root=root)
    if info["cluster"] is None:
        return Outcome(not wanted.empty, "", "", info=info)
    before = _exact(info, root)
    texts, warnings = corosync_wish.sequence(before, wanted, probe_members.ids(info))
    if not texts:
        # As apply() would: a reload where this node's Corosync or a member's runs an older text than the copies here.
        lags = any("config_version" in text for text in _missing(info, info["cluster"]["sha256"], ()))
        return Outcome(False, before, before, reloaded=bool(info["running"] and info["copies_equal"] and lags), info=info)
    corosync_refusals.refuse_state(info, wanted)
    keys = corosync_refusals.refuse_at_once(info, before, texts, wanted, run, root)
    return Outcome(True, before, texts[-1], info=info, warnings=warnings, restart_needed=keys, steps=len(texts))


def apply(
    wanted: Wanted,
    deadline_s: float = 60.0,
    expected_ids: Sequence[int] = (),
    run: Run = real_run,
    root: Path = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Merge what is wanted into the cluster's corosync.conf and wait until it has arrived.

    Also without a change it waits until this node's copies are equal, the running Corosync has their
    config_version on every live member, and ``expected_ids`` are live; that needs no quorum, so a founder
    that lists a node which never came can be asked for it. A node that must not be there and is not is not
    waited for. Raises PveguardError that says what was still missing after ``deadline_s`` seconds.

    A change is written in as many steps as Corosync needs, each awaited. When one has not arrived after ``deadline_s``
    seconds, or a member was lost on the way, the former text is put back with a still higher config_version, that is
    awaited as long, and :class:`ChangeFailed` is raised. The removal of a node is not undone: a node that is not
    there must not get its vote back.
    """
    with _giving_back(run, root, sleep, clock) as kept:
        outcome = _apply(wanted, deadline_s, expected_ids, run, root, sleep, clock)
    outcome.lock_kept = kept
    return outcome


def _apply(
    wanted: Wanted,
    deadline_s: float,
    expected_ids: Sequence[int],
    run: Run,
    root: Path,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> Outcome:
    info = corosync_info.collect(run=run, root=root)
    if info["cluster"] is None:
        raise PveguardError(
            "/etc/pve/corosync.conf does not exist: this node is not a member of a cluster, so its "
            "configuration cannot be "
            "changed here"
        )
    before = _exact(info, root)
    texts, warnings = corosync_wish.sequence(before, wanted, probe_members.ids(info))
    if not texts:
        outcome = Outcome(False, before, before, info=info)
        if not wanted.absent:
            _converge(outcome, before, deadline_s, expected_ids, (), run, root, sleep, clock)
        return outcome
    if wanted.absent and info["running"] and not info["quorate"]:
        _lower_expected(before, info, wanted, run, root, sleep)
        info = corosync_info.collect(run=run, root=root)
    corosync_refusals.refuse_state(info, wanted)
    keys = corosync_refusals.refuse_at_once(info, before, texts, wanted, run, root)
    pve_file.await_writable(root, sleep, clock)
    for text in texts:
        validate(text, run, root / "run/pveguard")
    outcome = Outcome(True, before, texts[-1], info=info, warnings=warnings, restart_needed=keys, steps=len(texts))
    target, former, written = root / corosync_info.CLUSTER_COPY, before, [before]
    # Who was live stays so, but for a node that is to go and came to life meanwhile.
    # Nor is a probe waited for: nothing depends on one, so one that dies meanwhile must undo nothing.
    live = set() if wanted.absent else set(info["live_member_ids"]) - probe_members.ids(info)
    started = time.time()
    try:
        for text in texts:
            with _lock(deadline_s, run, root, sleep, clock):
                if corosync_refusals.refuse_last_link(corosync_conf.parse(former), corosync_conf.parse(text)):
                    # The lock may have been long in coming.
                    corosync_refusals.refuse_cut(corosync_info.collect(run=run, root=root), former, text)
                _replace(target, former, text, before if former == before else None, root, sleep, clock)
            written.append(text)
            links = corosync_refusals.new_link_numbers(former, text)
            _converge(outcome, text, deadline_s, sorted(live | set(expected_ids)), links, run, root, sleep, clock)
            former = text
    except PveguardError as error:
        if len(written) == 1 or wanted.absent:
            raise
        _roll_back(error, outcome, written, sorted(live), started, deadline_s, run, root, sleep, clock)
    return outcome


def _exact(info: dict[str, Any], root: Path) -> str:
    """The cluster's text so that it can be written back byte for byte, also where a comment is not UTF-8."""
    text: str = info["cluster"]["text"]
    if "\ufffd" not in text:
        return text
    return (read_or_none(root / corosync_info.CLUSTER_COPY) or b"").decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _lower_expected(
    text: str, info: dict[str, Any], wanted: Wanted, run: Run, root: Path, sleep: Callable[[float], None]
) -> None:
    """Make the cluster quorate again without the nodes to be removed, where these alone are what is missing.

    A cluster of one loses quorum the moment a second node is listed. When that one does not come, its vote
    must be taken off the running count ('corosync-quorumtool -e') before the file can be changed.
    """
    names = {node["name"] for node in wanted.nodes}
    others = [node for node in corosync_conf.parse(text).nodes() if node.name not in names]
    away = [node.label for node in others if node.node_id not in info["live_member_ids"]]
    if away:
        raise PveguardError(
            f"this node has no quorum and {', '.join(away)} is away too, so it may be running elsewhere: "
            "bring it back first"
        )
    corosync_refusals.refuse_state({**info, "quorate": True, "copies_equal": True}, wanted)
    run(["corosync-quorumtool", "-e", str(sum(node.votes for node in others))], timeout=30)
    for _ in range(40):
        if pve_file.has_quorum(root) and corosync_info.collect(run=run, root=root)["quorate"]:
            return
        sleep(0.5)
    raise PveguardError("no quorum although every remaining node is here ('corosync-quorumtool -s')")


def _replace(
    target: Path,
    former: str,
    text: str,
    backup: str | None,
    root: Path,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    """Rename ``text`` over ``target`` when that is still ``former``; ``backup`` is kept beside it as .bak.

    An error of the daemon does not say that it was not done, so the file is looked at.
    """
    if (read_or_none(target) or b"") != _bytes(former):
        raise PveguardError("/etc/pve/corosync.conf was changed by someone else in the meantime; run again")
    new = target.with_name(target.name + ".new")

    def rename() -> None:
        try:
            os.rename(new, target)
        except FileNotFoundError:
            if read_or_none(target) != _bytes(text):
                raise

    try:
        if backup is not None:
            bak = target.with_name(target.name + ".bak")
            pve_file.patiently(lambda: pve_file.write_in_place(bak, _bytes(backup)), root, sleep, clock)
        pve_file.patiently(lambda: pve_file.write_in_place(new, _bytes(text)), root, sleep, clock)
        if new.read_bytes() != _bytes(text):
            raise PveguardError(f"{new} reads back differently from what was written; nothing was changed{_unwritten(new, root)}")
        pve_file.patiently(rename, root, sleep, clock)
    except OSError as error:
        try:
            if read_or_none(target) == _bytes(text):
                return
        except OSError as second:
            raise PveguardError(
                f"{target}: {error.strerror}, and it is not known whether it was changed: {second.strerror}: see "
                "'systemctl status pve-cluster'"
            ) from error
        raise PveguardError(
            f"{target}: {error.strerror}: quorum may have been lost ('corosync-quorumtool -s'){_unwritten(new, root)}"
        ) from error


def _unwritten(new: Path, root: Path) -> str:
    """Remove the candidate beside the file; words for a message when it stays."""
    try:
        pve_file.patiently(lambda: new.unlink(missing_ok=True), root, deadline_s=0)
    except OSError as error:
        return f". {new} was left ({error.strerror}): it has no effect, and the next change replaces it"
    return ""


def _roll_back(
    error: PveguardError,
    outcome: Outcome,
    written: Sequence[str],
    live: Sequence[int],
    started: float,
    deadline_s: float,
    run: Run,
    root: Path,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    """Put the first of ``written`` back with a higher config_version than any seen. Always raises."""
    target, before, after = root / corosync_info.CLUSTER_COPY, written[0], outcome.after
    journal = journal_since(started, run)

    def fail(message: str, rolled_back: bool) -> ChangeFailed:
        parts = [f"{error}. {message}", "The change was:", *_diff(before, after)]
        parts += ["Journal of this node since then:", *journal] if journal else []
        return ChangeFailed("\n".join(parts), before, after, journal, rolled_back)

    now = (read_or_none(target) or b"").decode("utf-8", "surrogateescape")
    if now not in written:
        raise fail("It was not put back, because someone else has changed /etc/pve/corosync.conf since", False)
    info = corosync_info.collect(run=run, root=root)
    old = {node.name for node in corosync_conf.parse(before).nodes()}
    came = [
        node.label
        for node in corosync_conf.parse(now).nodes()
        if node.name not in old and node.node_id in info["live_member_ids"]
    ]
    if came:
        raise fail(f"It was not put back, because {', '.join(came)}, which it lists, is a live member by now", False)
    texts = _higher(now, before, [*written], info)
    version = corosync_conf.parse(texts[-1]).config_version
    for text in texts:
        try:
            _await_writable(before, now, info, deadline_s, run, root, sleep, clock)
            with _lock(deadline_s, run, root, sleep, clock):
                _replace(target, now, text, None, root, sleep, clock)
        except PveguardError as second:
            raise fail(_by_hand(texts[-1], second, root), False) from error
        try:
            _converge(outcome, text, deadline_s, live, corosync_refusals.new_link_numbers(now, text), run, root, sleep, clock)
        except PveguardError as second:
            if _missing(outcome.info, hashlib.sha256(_bytes(text)).hexdigest(), ()):
                number = corosync_conf.parse(text).config_version or 0
                message = f"The former text was written back with config_version {number}, and that has not arrived either: "
                raise fail(f"{message}{second}", False) from error
        now, info = text, outcome.info
    away = sorted(set(live) - set(info["live_member_ids"]))
    ids = ", ".join(map(str, away))
    more = f". Node ids {ids} have not come back and get it when they do; run this again then" if away else ""
    raise fail(
        f"The former text was put back with config_version {version} and is in force on every live member{more}", True
    ) from error


def _higher(now: str, wanted: str, written: Sequence[str], info: dict[str, Any]) -> list[str]:
    """The steps from ``now`` to ``wanted``, each with a config_version above any that was seen."""
    highest = max(_highest(info), *(corosync_conf.parse(text).config_version or 0 for text in [now, *written]))
    texts = []
    for text in corosync_edit.steps(corosync_conf.parse(now), corosync_conf.parse(wanted)):
        stepped = corosync_conf.parse(text)
        highest = corosync_conf.next_version(highest)
        stepped.set("totem", "config_version", highest)
        texts.append(stepped.text())
    return texts


def _highest(info: dict[str, Any]) -> int:
    """The highest config_version that a node sees: in both copies, in its own Corosync and in those of the members."""
    copies = [(info[key] or {}).get("config_version") for key in ("cluster", "host")]
    seen = [*copies, info["running_config_version"], *info["member_config_versions"].values()]
    return max(version or 0 for version in seen)


def _info_of_member(run: Run, root: Path) -> dict[str, Any]:
    """What corosync_info says. Raises PveguardError on a node without a cluster."""
    info = corosync_info.collect(run=run, root=root)
    if info["cluster"] is None:
        raise PveguardError("/etc/pve/corosync.conf does not exist: this node is not a member of a cluster")
    return info


def restore(
    wanted: str,
    deadline_s: float = 60.0,
    expected_ids: Sequence[int] = (),
    check_mode: bool = False,
    run: Run = real_run,
    root: Path = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Put a former text of this cluster back, with a config_version above any that was seen, and wait for it.

    No change when the cluster's text differs from it in config_version only. Raises PveguardError for another
    cluster's text, for one that ``corosync -t`` refuses, without quorum, and when it does not arrive.
    """
    info = _info_of_member(run, root)
    now = _exact(info, root)
    old, new = corosync_conf.parse(now, "/etc/pve/corosync.conf"), corosync_conf.parse(wanted, "the text to be restored")
    if old.cluster_name != new.cluster_name:
        raise PveguardError(
            f"the text to be restored is of the cluster {new.cluster_name!r}, this is {old.cluster_name!r}"
        )
    new.set("totem", "config_version", old.config_version or 0)
    if new.text() == now:
        texts = []
        outcome = Outcome(False, now, now, info=info)
    else:
        texts = _higher(now, wanted, [], info)
        keys = corosync_edit.restart_keys(old, new)
        outcome = Outcome(True, now, texts[-1], info=info, restart_needed=keys, steps=len(texts))
    if check_mode:
        return outcome
    with _giving_back(run, root, sleep, clock) as kept:
        if not texts:
            _converge(outcome, now, deadline_s, expected_ids, (), run, root, sleep, clock)
        else:
            validate(wanted, run, root / "run/pveguard")
        for text in texts:
            _await_writable(wanted, now, outcome.info, deadline_s, run, root, sleep, clock)
            with _lock(deadline_s, run, root, sleep, clock):
                _replace(root / corosync_info.CLUSTER_COPY, now, text, None, root, sleep, clock)
            links = corosync_refusals.new_link_numbers(now, text)
            _converge(outcome, text, deadline_s, expected_ids, links, run, root, sleep, clock)
            now = text
    outcome.lock_kept = kept
    return outcome


def publish(
    text: str,
    deadline_s: float = 60.0,
    expected_ids: Sequence[int] = (),
    check_mode: bool = False,
    run: Run = real_run,
    root: Path = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Make this very text the cluster's, over whatever both copies are, and wait for it. The former one stays as .bak.

    Its config_version is the caller's, who has seen all nodes. Raises PveguardError when that is not above every one that
    this node sees and not already everywhere, for another cluster's text, for one that ``corosync -t`` refuses, without
    quorum, and when it does not arrive. Nothing is undone: what was there before is what is to be repaired.
    """
    info = _info_of_member(run, root)
    now, new = _exact(info, root), corosync_conf.parse(text, "the text to be written")
    # A two_node that is there stays: this is about getting the cluster back as it was.
    corosync_check.refuse_problems(new, with_pmxcfs=False)
    outcome = Outcome(text != now, now, text, info=info, steps=int(text != now))
    if outcome.changed:
        if info["cluster_name"] not in (None, new.cluster_name):
            raise PveguardError(f"the text is of the cluster {new.cluster_name!r}, this is {info['cluster_name']!r}")
        highest = _highest(info)
        if (new.config_version or 0) <= highest:
            raise PveguardError(
                f"config_version {new.config_version} of the text is not above {highest}, which this node sees by now: run again"
            )
        pve_file.await_writable(root, sleep, clock)
        validate(text, run, root / "run/pveguard")
    if check_mode:
        return outcome
    with _giving_back(run, root, sleep, clock) as kept:
        if outcome.changed:
            with _lock(deadline_s, run, root, sleep, clock):
                _replace(root / corosync_info.CLUSTER_COPY, now, text, now, root, sleep, clock)
        _converge(outcome, text, deadline_s, expected_ids, (), run, root, sleep, clock)
    outcome.lock_kept = kept
    return outcome


def _await_writable(
    before: str,
    now: str,
    info: dict[str, Any],
    deadline_s: float,
    run: Run,
    root: Path,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    """Wait for quorum. Raises PveguardError when it does not come back."""
    if info["running"] and not info["quorate"]:
        _outvote(before, now, info, run, root, sleep)
    end = clock() + deadline_s
    while True:
        try:
            return pve_file.require_writable(root)
        except PveguardError:
            if clock() > end:
                raise
        sleep(0.5)


def _outvote(
    before: str, now: str, info: dict[str, Any], run: Run, root: Path, sleep: Callable[[float], None]
) -> None:
    """A node that this change listed and that never came must not keep the change from being undone."""
    old = {node.name for node in corosync_conf.parse(before).nodes()}
    added = [{"name": node.name} for node in corosync_conf.parse(now).nodes() if node.name not in old]
    if added:
        _lower_expected(now, info, Wanted(nodes=added, absent=True), run, root, sleep)


def _by_hand(text: str, reason: PveguardError, root: Path) -> str:
    """What is to be done by hand when the former text cannot be put back."""
    copy = root / ROLLBACK_COPY
    try:
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(copy, _bytes(text), mode=0o600)
        place = f"/{ROLLBACK_COPY} of this node"
    except OSError as error:
        place = f"/etc/pve/corosync.conf.bak, with a lower config_version (/{ROLLBACK_COPY}: {error.strerror})"
    return (
        f"The former text could NOT be put back: {reason}. It is in {place}. Where a member is "
        "quorate, copy it there to /etc/pve/corosync.conf.new and rename that to /etc/pve/corosync.conf. Where none is, "
        "copy it to /etc/corosync/corosync.conf on EVERY node, run 'systemctl restart corosync' on each, and when "
        "'corosync-quorumtool -s' says quorate, do the former on one of them. With too few nodes left for a quorum: "
        "'corosync-quorumtool -e 1' on ONE node, only when all others are switched off"
    )


def journal_since(started: float, run: Run) -> list[str]:
    """What Corosync and the daemon of this node have said since ``started`` (seconds since 1970), the last lines."""
    argv = ["journalctl", "--no-pager", "-q", "-o", "short-iso", "-u", "corosync", "-u", "pve-cluster"]
    try:
        said = run([*argv, "--since", f"@{int(started)}"], timeout=30)
    except PveguardError:
        return []
    lines = [line.rstrip() for line in said.stdout.splitlines() if line.strip()] if said.ok else []
    telling = [line for line in lines if re.search(r"error|crit|warn|fail|cannot|refus|NOT |lost|left|newer", line, re.I)]
    return (telling or lines)[-JOURNAL_LINES:]


def _diff(before: str, after: str) -> list[str]:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=1))
    more = len(lines) - DIFF_LINES
    shown = lines[:DIFF_LINES] + ([f"... {more} more lines"] if more > 0 else [])
    return [line.encode("utf-8", "replace").decode() for line in shown]


def _missing(
    info: dict[str, Any], want_sha256: str, expected_ids: Sequence[int], links: Sequence[int] = ()
) -> list[str]:
    """What is not yet as it must be, in words."""
    cluster, host = info["cluster"], info["host"]
    version = (cluster or {}).get("config_version")
    missing = []
    if cluster is None or cluster["sha256"] != want_sha256:
        missing.append("the copy on /etc/pve is not the wanted text")
    if host is None or cluster is None or host["sha256"] != cluster["sha256"]:
        seen = (host or {}).get("config_version")
        missing.append(
            f"/etc/corosync/corosync.conf (config_version {seen}) is not the cluster's (config_version "
            f"{version})"
        )
    if info["running_config_version"] != version:
        missing.append(f"corosync runs config_version {info['running_config_version']}, wanted {version}")
    late = {node: seen for node, seen in info["member_config_versions"].items() if seen != version}
    if late:
        missing.append(
            "members that run another config_version: "
            + ", ".join(f"{n} has {v}" for n, v in sorted(late.items()))
        )
    absent = sorted(set(expected_ids) - set(info["live_member_ids"]))
    if absent:
        missing.append(
            f"node ids {', '.join(map(str, absent))} are not in the membership {info['live_member_ids']}"
        )
    if cluster is not None:
        for number in links:
            if down := corosync_refusals.down_ids(info, number, corosync_refusals.peer_ids(info)):
                missing.append(f"link {number} is not up to node ids {', '.join(map(str, down))}")
    # A node that is listed and not here yet may cost the quorum until it joins; that is not for this step to
    # await.
    if not info["quorate"] and _could_be_quorate(info):
        missing.append("no quorum")
    return missing


def _could_be_quorate(info: dict[str, Any]) -> bool:
    try:
        nodes = corosync_conf.parse((info["cluster"] or {}).get("text", "")).nodes()
    except PveguardError:
        return True
    live = sum(node.votes for node in nodes if node.node_id in info["live_member_ids"])
    return live * 2 > sum(node.votes for node in nodes)


def _converge(
    outcome: Outcome,
    text: str,
    deadline_s: float,
    expected_ids: Sequence[int],
    links: Sequence[int],
    run: Run,
    root: Path,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    wanted = hashlib.sha256(_bytes(text)).hexdigest()
    start = clock()
    reloaded = False
    while True:
        outcome.info = corosync_info.collect(run=run, root=root)
        missing = _missing(outcome.info, wanted, expected_ids, links)
        if not missing:
            return
        elapsed = clock() - start
        if elapsed > deadline_s:
            version = (outcome.info["cluster"] or {}).get("config_version")
            raise PveguardError(
                f"corosync.conf (config_version {version}) has not arrived everywhere after {deadline_s:g} "
                "s: " + "; ".join(missing) + ". The former text is in /etc/pve/corosync.conf.bak; see "
                "'journalctl -u pve-cluster -u corosync'"
            )
        copied = outcome.info["copies_equal"] and outcome.info["cluster"]["sha256"] == wanted
        lags = any("config_version" in text for text in missing)
        if copied and lags and not reloaded and elapsed > RELOAD_AFTER_S:
            # The daemon's own reload fires once, a second after the write; a slow disk makes it read the old
            # text.
            try:
                run(["corosync-cfgtool", "-R"], timeout=30)
            except CommandMissing as error:
                raise PveguardError(f"corosync cannot be reloaded: {error}") from error
            outcome.reloaded = reloaded = True
        sleep(0.5)


def _lock(
    deadline_s: float, run: Run, root: Path, sleep: Callable[[float], None], clock: Callable[[], float]
) -> pve_lock.Lock:
    """pvecm's lock on corosync.conf. Whoever held it when he died holds it no longer than the daemon's rule says."""
    return pve_lock.Lock(root / pve_file.MOUNT.lstrip("/") / LOCK, max(deadline_s, pve_lock.WAIT_S), run, root, sleep, clock)


@contextmanager
def _giving_back(
    run: Run, root: Path, sleep: Callable[[float], None], clock: Callable[[], float]
) -> Iterator[list[pve_lock.Kept]]:
    """Around a change: give back what an earlier one left, and at the end, also of a failure, what this one leaves.

    Without quorum that is tried once only: after a node was listed in a cluster of one it comes back when that node has
    joined, which is for others to await. The list that is yielded is filled at the end.
    """
    kept: list[pve_lock.Kept] = []
    pve_lock.give_back(0, run, root, sleep, clock)
    try:
        yield kept
    finally:
        try:
            if pve_lock.noted(root):
                patience = pve_lock.GIVE_BACK_S if pve_file.has_quorum(root) else 0
                kept += pve_lock.give_back(patience, run, root, sleep, clock).left
        except PveguardError as error:
            # It must not take the place of what the change has to say.
            kept.append(pve_lock.Kept(f"/etc/pve/{LOCK}", str(error)))
