"""A new key for a running cluster: judged from what every member said, placed on all of them, then taken by one reload.

A key cannot be changed on one node after the other: knet drops what is signed with another one. Corosync since 3.1 changes it
at a reload, in phases that each wait until the token has been around (corosync/corosync pull request 562): every node
loads the new key beside the old one, then sends with the new one, then forgets the old one. So the file is placed everywhere
first, and only then one reload is issued. Tried with 3.1.7: three rotations, no membership change.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ..base.atomic import read_or_none, write_atomic
from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from ..corosync import corosync_info
from ..corosync.corosync_refusals import CRYPTO_RELOAD_VERSION
from ..formats import corosync_conf
from ..ha import ha_info
from . import plan

#: The former key until the rotation is done; gone with the next boot.
FORMER = Path("run/pveguard/authkey.former")
#: corosync.conf(5) and totemconfig: bytes of a key.
SIZES = range(128, 4097)
#: A member that lost the others knows after the token and the consensus timeout, 1.2 times the token (corosync.conf(5)).
TOKENS = 2.2
#: Seconds beyond that.
MARGIN_S = 2.0

Facts = Mapping[str, Any]


def decide(
    hosts: Mapping[str, Facts | None], play_hosts: Collection[str], cluster: str = "", key: str | None = None
) -> dict[str, Any]:
    """Whether the key of a cluster may be changed. ``hosts``: every host -> facts of node_info, None for no answer.

    ``cluster``: its name, needed where the hosts belong to several. ``key``: base64 of the key that the inventory has for it.
    Keys: refusals, cluster, seed, members (hosts, the seed first), live_ids, sha256 (of the present key).
    """
    found: dict[str, Any] = {"refusals": [], "cluster": None, "seed": None, "members": [], "live_ids": [], "sha256": None}
    refusals: list[str] = found["refusals"]
    answers = {host: facts for host, facts in hosts.items() if facts and host in play_hosts}
    by_cluster: dict[str, list[str]] = {}
    for host, facts in answers.items():
        if name := plan.live_cluster(facts):
            by_cluster.setdefault(name, []).append(host)
    if not cluster and len(by_cluster) > 1:
        refusals.append(f"the hosts belong to the clusters {', '.join(by_cluster)}: name one with -e authkey_cluster=NAME")
        return found
    name = cluster or next(iter(by_cluster), "")
    if name not in by_cluster:
        refusals.append(f"no host of this run is a member of {'the cluster ' + repr(name) if name else 'a cluster'}")
        return found
    members = by_cluster[name]
    infos = {host: answers[host]["corosync"] for host in members}
    seed = next((host for host in members if infos[host]["quorate"]), members[0])
    found.update(cluster=name, seed=seed, members=[seed] + [host for host in members if host != seed])
    info = infos[seed]
    found["live_ids"], found["sha256"] = info["live_member_ids"], info["authkey_sha256"]
    if not info["quorate"]:
        refusals.append(f"{name} is not quorate, seen from {seed}: bring members back first")
        return found
    try:
        conf = corosync_conf.parse(info["cluster"]["text"], f"{seed}: /etc/pve/corosync.conf")
    except (PveguardError, TypeError) as error:
        refusals.append(f"{seed}: /etc/pve/corosync.conf cannot be used: {error}")
        return found
    asked = {corosync_conf.short_name(str(answers[host]["hostname"])) for host in members}
    away = [node.label for node in conf.nodes() if node.node_id not in info["live_member_ids"]]
    if away:
        refusals.append(f"{', '.join(away)} is away and could not come back with the old key: bring it back, or remove it first")
    unasked = [node.label for node in conf.nodes() if node.name not in asked and node.label not in away]
    if unasked:
        refusals.append(f"the members {', '.join(unasked)} were not asked and would be cut off: run it without --limit")
    if len({(each[copy] or {}).get("sha256") for each in infos.values() for copy in ("cluster", "host")}) > 1:
        refusals.append(
            "corosync.conf is not the same text on all members ('make assess' shows where): make the copies equal first"
        )
    if conf.transport != "knet" or conf.crypto[1] == "none":
        refusals.append(f"the traffic of {name} is not authenticated (corosync_crypto), so there is no key in use")
    if conf.get("totem", "keyfile") is not None or conf.get("totem", "key") is not None:
        refusals.append(
            f"{name} names its key in corosync.conf (totem.key or totem.keyfile); only /etc/corosync/authkey is changed here"
        )
    keys = {host: each["authkey_sha256"] for host, each in infos.items()}
    if len(set(keys.values())) > 1 or None in keys.values():
        shown = ", ".join(f"{host} has {(sha256 or 'none')[:12]}" for host, sha256 in keys.items())
        refusals.append(
            f"/etc/corosync/authkey is not the same on all members (sha256: {shown}): a rotation may have been interrupted. "
            "While all of them are members, copy one to all (mode 0400) and run 'corosync-cfgtool -R' on one"
        )
    versions = {host: str(answers[host]["packages"].get("corosync") or "") for host in members}
    old = {host: version for host, version in versions.items() if not _reloads_keys(version)}
    if old:
        shown = ", ".join(f"{host} has {version or 'none'}" for host, version in old.items())
        refusals.append(f"only corosync 3.1 and later takes a key while it runs ({shown}): upgrade it")
    holders = ha_info.watchdog_holders({host: answers[host]["ha"] for host in members})
    if holders:
        refusals.append(
            f"HA is armed: {', '.join(dict.fromkeys(holders))} holds the watchdog, and a node that is cut off would be reset. "
            "Stop HA first (role ha, ha_state: disabled)"
        )
    if key and hashlib.sha256(decoded(key)).hexdigest() == found["sha256"]:
        refusals.append("corosync_authkey of the inventory is the present key: put the new one there first, or take it out")
    return found


def _reloads_keys(version: str) -> bool:
    match = re.match(r"(?:\d+:)?(\d+)\.(\d+)", version)
    return bool(match) and (int(match.group(1)), int(match.group(2))) >= CRYPTO_RELOAD_VERSION  # type: ignore[union-attr]


def decoded(key: str) -> bytes:
    """The bytes of a key in base64. Raises PveguardError, which never names them, when it is none."""
    try:
        data = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise PveguardError("the key is not valid base64; make it with 'base64 -w0 FILE'") from None
    if len(data) not in SIZES:
        raise PveguardError(f"the key has {len(data)} bytes; corosync takes {SIZES.start} to {SIZES.stop - 1}")
    return data


def generate(run: Run = real_run, root: Path = Path("/")) -> str:
    """A new key of ``corosync-keygen`` in base64; nothing of it stays on disk. Raises PveguardError when that fails."""
    (root / FORMER).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=(root / FORMER).parent) as directory:
        target = Path(directory) / "authkey"
        done = run(["corosync-keygen", "-l", "-k", str(target)], timeout=60)
        data = read_or_none(target)
        if not done.ok or data is None:
            raise PveguardError(f"corosync-keygen failed: {(done.stderr or done.stdout).strip()}")
        return base64.b64encode(data).decode()


def place(key: str, former_sha256: str, root: Path = Path("/"), check: bool = False) -> bool:
    """Make the file the new key, and keep the former one until :func:`settle`; True when that changes it.

    ``former_sha256``: of the key as it was judged. Raises PveguardError when the file is neither.
    """
    data = decoded(key)
    target = root / corosync_info.AUTHKEY
    now = read_or_none(target) or b""
    if now == data:
        return False
    if hashlib.sha256(now).hexdigest() != former_sha256:
        raise PveguardError(
            f"/{corosync_info.AUTHKEY} was changed by someone else in the meantime; nothing was changed here, run again"
        )
    if not check:
        (root / FORMER).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(root / FORMER, now, 0o400)
        write_atomic(target, data, 0o400)
    return True


def put_back(root: Path = Path("/")) -> bool:
    """Make the file the former key again where one is kept; True when that changed it."""
    former = read_or_none(root / FORMER)
    if former is None:
        return False
    changed = read_or_none(root / corosync_info.AUTHKEY) != former
    if changed:
        write_atomic(root / corosync_info.AUTHKEY, former, 0o400)
    return changed


def settle(root: Path = Path("/")) -> bool:
    """Forget the former key; True when one was kept."""
    try:
        os.unlink(root / FORMER)
    except FileNotFoundError:
        return False
    return True


def reload(
    expected_ids: Collection[int],
    deadline_s: float = 60.0,
    issue: bool = True,
    run: Run = real_run,
    root: Path = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Let the cluster take the key (``issue``), and see that all of ``expected_ids`` are in the membership and stay in it for
    as long as the loss of one would take to show.

    Returns the facts of corosync_info. Raises PveguardError when a member is missing after ``deadline_s`` seconds; with 0
    nothing is awaited.
    """
    if issue:
        done = run(["corosync-cfgtool", "-R"], timeout=60)
        if not done.ok:
            raise PveguardError(f"'corosync-cfgtool -R' failed: {' '.join((done.stderr or done.stdout).split()) or done.rc}")
    if not deadline_s:
        return corosync_info.collect(run=run, root=root)
    start = clock()
    whole_since: float | None = None
    while True:
        info = corosync_info.collect(run=run, root=root)
        lost = sorted(set(expected_ids) - set(info["live_member_ids"]))
        now = clock()
        if lost or not info["quorate"]:
            whole_since = None
        elif whole_since is None:
            whole_since = now
        settled_s = TOKENS * (info["token_ms"] or corosync_conf.DEFAULT_TOKEN_MS) / 1000 + MARGIN_S
        if whole_since is not None and now - whole_since >= settled_s:
            return info
        if now - start > deadline_s + settled_s:
            raise PveguardError(
                f"after {deadline_s:g} s node ids {', '.join(map(str, lost)) or 'none'} are not in the membership "
                f"{info['live_member_ids']} (quorate: {info['quorate']}): they do not take the same key; see "
                "'journalctl -u corosync'"
            )
        sleep(0.5)
