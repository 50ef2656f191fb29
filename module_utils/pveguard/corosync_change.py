"""A change to the cluster-wide corosync.conf, made on one member and awaited until it has arrived.

The way is the documented one: a validated candidate, config_version + 1, the former text kept as ``.bak``,
the new text written beside the file and renamed over it. Each member's daemon copies it to /etc/corosync; the
writing one reloads Corosync a second later.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import corosync_conf, corosync_info, pve_file
from .atomic import read_or_none
from .errors import PveguardError
from .run import CommandMissing, Run
from .run import run as real_run

#: The lock that ``pvecm`` takes for the same work (a directory; the cluster file system makes mkdir atomic).
LOCK = "priv/lock/file-corosync_conf"
#: Seconds after which a reload that has not been seen is issued again; the daemon's own comes one second
#: after the write.
RELOAD_AFTER_S = 4.0


@dataclass
class Wanted:
    """What the configuration must say. None leaves a value as it is.

    ``nodes``: ``{name, node_id, links, votes}``; with ``absent`` the nodes that must not be there, by name.
    """

    cluster_name: str | None = None
    nodes: Sequence[dict[str, Any]] = field(default_factory=list)
    token_ms: int | None = None
    absent: bool = False


@dataclass
class Outcome:
    """``before`` and ``after`` are the texts; ``info`` what corosync_info says at the end."""

    changed: bool
    before: str
    after: str
    reloaded: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def merge(text: str, wanted: Wanted) -> tuple[str, list[str]]:
    """The text with what is wanted merged in (config_version raised once) and warnings. The same text if
    nothing differs.

    Raises PveguardError when it must not be done.
    """
    document = corosync_conf.parse(text, "/etc/pve/corosync.conf")
    version = document.config_version
    if wanted.cluster_name and document.cluster_name != wanted.cluster_name:
        raise PveguardError(
            f"/etc/pve/corosync.conf is of the cluster {document.cluster_name!r}, wanted "
            f"{wanted.cluster_name!r}: correct "
            "corosync_cluster_name, or take this host out of the group"
        )
    changed = False
    for node in wanted.nodes:
        if wanted.absent:
            _refuse_namesake(document, node)
            changed |= corosync_conf.remove_node(document, node["name"])
            continue
        votes = node.get("votes")
        changed |= corosync_conf.add_node(
            document,
            node["name"],
            int(node["node_id"]),
            list(node["links"]),
            1 if votes is None else int(votes),
        )
    if wanted.token_ms is not None:
        changed |= document.set_token(wanted.token_ms)
    if not changed:
        return text, []
    corosync_conf.refuse_problems(document)
    document.ensure("totem").set("config_version", (version or 0) + 1)
    found = [problem.message for problem in corosync_conf.problems(document) if problem.severity == "warning"]
    # While a cluster grows node by node its votes are even every other time.
    return document.text(), [message for message in found if not (wanted.nodes and "even number" in message)]


def _refuse_namesake(document: corosync_conf.Document, node: dict[str, Any]) -> None:
    """Only the node that was meant is removed, not another one of its name (a wrong id given, or links)."""
    present = document.node(node["name"])
    if present is None:
        return
    links = dict(enumerate(node["links"])) if node.get("links") else present.addresses
    if int(node.get("node_id") or present.node_id or 0) != present.node_id or links != present.addresses:
        raise PveguardError(
            f"corosync.conf lists {node['name']} with id {present.node_id} and addresses "
            f"{', '.join(present.addresses.values())}, not with those given: it is not removed"
        )


def validate(text: str, run: Run = real_run, directory: Path = Path("/run/pveguard")) -> None:
    """Let ``corosync -t`` judge a candidate. Raises PveguardError with what it said."""
    directory.mkdir(parents=True, exist_ok=True)
    candidate = directory / f"corosync.conf.candidate.{os.getpid()}"
    candidate.write_text(text, encoding="utf-8", newline="")
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
    copy = info["cluster"]
    if copy is None:
        return Outcome(bool(wanted.nodes or wanted.token_ms is not None), "", "", info=info)
    after, warnings = merge(copy["text"], wanted)
    if after != copy["text"]:
        _refuse_state(info, wanted)
    return Outcome(after != copy["text"], copy["text"], after, info=info, warnings=warnings)


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
    """
    info = corosync_info.collect(run=run, root=root)
    if info["cluster"] is None:
        raise PveguardError(
            "/etc/pve/corosync.conf does not exist: this node is not a member of a cluster, so its "
            "configuration cannot be "
            "changed here"
        )
    before = info["cluster"]["text"]
    after, warnings = merge(before, wanted)
    if after == before:
        outcome = Outcome(False, before, before, info=info)
        if wanted.absent:
            return outcome
    else:
        if wanted.absent and info["running"] and not info["quorate"]:
            _lower_expected(before, info, wanted, run, root, sleep)
            info = corosync_info.collect(run=run, root=root)
        _refuse_state(info, wanted)
        pve_file.require_writable(root)
        validate(after, run, root / "run/pveguard")
        with _Lock(root / "etc/pve" / LOCK, deadline_s, sleep, clock):
            _replace(root / "etc/pve/corosync.conf", before, after)
        outcome = Outcome(True, before, after, warnings=warnings)
    _converge(outcome, deadline_s, expected_ids, run, root, sleep, clock)
    return outcome


def _refuse_state(info: dict[str, Any], wanted: Wanted) -> None:
    if not info["running"]:
        raise PveguardError("corosync is not running on this node: start it with 'systemctl start corosync'")
    if wanted.absent:
        names = {node["name"] for node in wanted.nodes}
        live = [
            m["name"] for m in info["members"] if m["name"] in names and m["id"] in info["live_member_ids"]
        ]
        if live:
            raise PveguardError(
                f"{', '.join(live)} is in the live membership; stop corosync there before it is removed"
            )
    if not info["quorate"]:
        raise PveguardError(
            "this node has no quorum ('corosync-quorumtool -s'); a change of corosync.conf needs it, bring "
            "members back first"
        )
    if not info["copies_equal"]:
        host = (info["host"] or {}).get("config_version")
        raise PveguardError(
            f"/etc/corosync/corosync.conf (config_version {host}) differs from /etc/pve/corosync.conf "
            "(config_version "
            f"{info['cluster']['config_version']}): make them equal first, then run again"
        )
    if not wanted.absent:
        _refuse_lost_majority(info, wanted)


def _refuse_lost_majority(info: dict[str, Any], wanted: Wanted) -> None:
    """A new node's vote counts from the moment it is listed, before it has joined.

    Where every listed member is live that is how a cluster of one grows, and the failed join is undone.
    With a member away it could cost a running cluster its quorum.
    """
    listed = corosync_conf.parse(info["cluster"]["text"], "/etc/pve/corosync.conf").nodes()
    names = {node.name for node in listed}
    new = [node for node in wanted.nodes if node["name"] not in names]
    away = [node.label for node in listed if node.node_id not in info["live_member_ids"]]
    if not new or not away:
        return
    live = sum(node.votes for node in listed if node.node_id in info["live_member_ids"])
    total = sum(node.votes for node in listed)
    total += sum(1 if node.get("votes") is None else int(node["votes"]) for node in new)
    if live * 2 <= total:
        raise PveguardError(
            f"{', '.join(away)} is away: with {', '.join(node['name'] for node in new)} listed too, the {live} "
            f"live vote(s) would be no majority of {total} and the cluster would lose its quorum. Bring back "
            "what is away, or remove a member that is gone for good ('pvecm delnode NAME'), then run again"
        )


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
    _refuse_state({**info, "quorate": True, "copies_equal": True}, wanted)
    run(["corosync-quorumtool", "-e", str(sum(node.votes for node in others))], timeout=30)
    for _ in range(40):
        if pve_file.has_quorum(root) and corosync_info.collect(run=run, root=root)["quorate"]:
            return
        sleep(0.5)
    raise PveguardError("no quorum although every remaining node is here ('corosync-quorumtool -s')")


def _replace(target: Path, before: str, after: str) -> None:
    now = (read_or_none(target) or b"").decode("utf-8", "replace")
    if now != before:
        raise PveguardError("/etc/pve/corosync.conf was changed by someone else in the meantime; run again")
    new, backup = target.with_name(target.name + ".new"), target.with_name(target.name + ".bak")
    try:
        pve_file.write_in_place(backup, before.encode())
        pve_file.write_in_place(new, after.encode())
        if new.read_bytes() != after.encode():
            raise PveguardError(f"{new} reads back differently from what was written; nothing was changed")
        os.rename(new, target)
    except OSError as error:
        raise PveguardError(
            f"{target}: {error.strerror}: quorum may have been lost ('corosync-quorumtool -s')"
        ) from error


def _missing(info: dict[str, Any], want_sha256: str, expected_ids: Sequence[int]) -> list[str]:
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
    deadline_s: float,
    expected_ids: Sequence[int],
    run: Run,
    root: Path,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    wanted = hashlib.sha256(outcome.after.encode()).hexdigest()
    start = clock()
    while True:
        outcome.info = corosync_info.collect(run=run, root=root)
        missing = _missing(outcome.info, wanted, expected_ids)
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
        if copied and lags and not outcome.reloaded and elapsed > RELOAD_AFTER_S:
            # The daemon's own reload fires once, a second after the write; a slow disk makes it read the old
            # text.
            try:
                run(["corosync-cfgtool", "-R"], timeout=30)
            except CommandMissing as error:
                raise PveguardError(f"corosync cannot be reloaded: {error}") from error
            outcome.reloaded = True
        sleep(0.5)


class _Lock:
    """pvecm's lock on corosync.conf. Anything held longer than the deadline is reported, never taken over."""

    def __init__(
        self, path: Path, deadline_s: float, sleep: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        self.path, self.deadline_s, self.sleep, self.clock = path, deadline_s, sleep, clock

    def __enter__(self) -> None:
        end = self.clock() + self.deadline_s
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                self.path.mkdir()
                return
            except FileExistsError:
                if self.clock() > end:
                    raise PveguardError(
                        f"{self.path} is held: another change of corosync.conf is under way, or was "
                        "interrupted; if none "
                        f"is running, remove it with 'rmdir {self.path}'"
                    ) from None
                self.sleep(0.5)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EROFS):
                    raise
                raise PveguardError(
                    f"{self.path}: {error.strerror}: quorum was lost, nothing was changed"
                ) from error

    def __exit__(self, *_: object) -> None:
        try:
            self.path.rmdir()
        except OSError:
            pass  # gone, or quorum lost: the daemon drops stale locks
