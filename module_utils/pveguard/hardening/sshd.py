# SPDX-License-Identifier: Apache-2.0
"""sshd of a node: what counts for root from every member and from the controller, who sets it, and what of it harms a cluster.

Members reach each other as root with a key of RSA, are known by their RSA host key, and forward UNIX sockets; without that
there is no migration, no replication, no join and no console of another node.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import managed_file, node_name, rollback_timer, ssh_login
from ..base.atomic import read_or_none
from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..formats import sshd_config
from ..pmxcfs import members as members_file
from .looking import silent, writer

ROLE = "node_hardening"
AREA = "sshd"
KEPT_FOR = f"{ROLE}.{AREA}"
#: Read before every other file of the folder, as ``0`` and ``0`` sort first.
DROP_IN = "/etc/ssh/sshd_config.d/00-pveguard.conf"
INCLUDE_LINE = "Include /etc/ssh/sshd_config.d/*.conf"
#: Of the rollback timer.
TIMER = "hardening-sshd"
PVE = "/etc/pve"

#: Root by key alone, and nobody by password.
KEYS_ONLY = {
    "PermitRootLogin": "prohibit-password",
    "PubkeyAuthentication": "yes",
    "PasswordAuthentication": "no",
    "KbdInteractiveAuthentication": "no",
}
#: What nothing of Proxmox VE needs.
PLAIN = {
    "PermitEmptyPasswords": "no",
    "PermitUserEnvironment": "no",
    "HostbasedAuthentication": "no",
    "IgnoreRhosts": "yes",
    "X11Forwarding": "no",
}
#: Taken off sshd's own lists, so that what a later version adds is kept. rsa-sha2-256 and rsa-sha2-512 stay.
WEAK = {
    "KexAlgorithms": ("*-sha1", "diffie-hellman-group14-*"),
    "Ciphers": ("*-cbc", "*-cbc@*", "arcfour*"),
    "MACs": ("*-sha1*", "*-md5*", "umac-64*", "*ripemd160*"),
    "HostKeyAlgorithms": ("ssh-rsa", "ssh-rsa-cert*", "ssh-dss*"),
    "PubkeyAcceptedAlgorithms": ("ssh-rsa", "ssh-rsa-cert*", "ssh-dss*"),
}
#: What a Match block must not set for root.
OF_ROOT = frozenset(
    [key.lower() for key in (*KEYS_ONLY, *PLAIN, *WEAK)]
    + ["challengeresponseauthentication", "allowusers", "denyusers", "allowgroups", "denygroups", "authenticationmethods"]
    + ["authorizedkeysfile", "authorizedkeyscommand", "chrootdirectory", "disableforwarding", "allowstreamlocalforwarding"]
    + ["allowtcpforwarding", "permitopen", "forcecommand", "maxauthtries", "maxsessions", "refuseconnection"]
)
#: Whose lines go on, in sshd's own reading.
LISTS = frozenset(["allowusers", "denyusers", "allowgroups", "denygroups"])
#: Of what harms, and goes when the line goes.
SHOWN_SETTERS = LISTS | {
    "permitrootlogin", "pubkeyauthentication", "authenticationmethods", "disableforwarding", "allowstreamlocalforwarding",
    "allowtcpforwarding", "permitopen", "forcecommand", "chrootdirectory", "maxsessions", "maxauthtries",
    "hostkeyalgorithms", "pubkeyacceptedalgorithms",
}  # fmt: skip
#: What only members of a cluster need: the RSA keys by which they know each other, and the socket of a migration.
OF_RSA = ("hostkey", "hostkeyalgorithms", "pubkeyacceptedalgorithms")
OF_FORWARDING = ("disableforwarding", "allowstreamlocalforwarding", "allowtcpforwarding", "permitopen")
#: Keys offered before the right one: those of an agent, and root's own.
FEW_TRIES = 3


@dataclass(frozen=True)
class Who:
    """Somebody who logs in as root. ``name``: of a member, or ``controller``."""

    name: str
    address: str
    online: bool = True

    @property
    def shown(self) -> str:
        return f"{self.name} ({self.address})"


def drop_in(keys_only: bool, algorithms: bool) -> str:
    """The text of the drop-in."""
    lines = [
        "# Managed by pveguard (role node_hardening). Read first, and the first value counts: what pvecm writes into sshd_config",
        "# does not undo it.",
    ]
    lines += [f"{key} {value}" for key, value in ({**KEYS_ONLY, **PLAIN} if keys_only else PLAIN).items()]
    if algorithms:
        lines += [f"{key} -{','.join(weak)}" for key, weak in WEAK.items()]
    return "\n".join(lines) + "\n"


def look(
    root: Path = Path("/"),
    run: Run = real_run,
    *,
    peers: Sequence[Who] | None = None,
    controller: str | None = None,
) -> dict[str, Any]:
    """The facts; never raises. ``peers``: the other members, asked of the cluster file system without; ``controller``: its
    address, by default where the ssh login in use comes from.

    ``known`` is false, with ``error``, where they could not be read; ``installed`` is false where there is no sshd.
    """
    try:
        return _look(root, run, peers, controller)
    except CommandMissing:
        if not (root / sshd_config.MAIN.lstrip("/")).exists():
            return {"known": True, "installed": False}
        return {"known": False, "error": "sshd is configured, and its program is not installed"}
    except (PveguardError, OSError, ValueError) as error:
        return {"known": False, "error": str(error)}
    # Whatever a file holds, the other areas are told.
    except Exception as error:
        return {"known": False, "error": f"not understood ({type(error).__name__})"}


def _look(root: Path, run: Run, peers: Sequence[Who] | None, controller: str | None) -> dict[str, Any]:
    if silent():
        # Who has to get in is not known, nor what root's keys are, which lie there.
        raise PveguardError(f"{PVE}: {silent()}")
    own, members = members_of(root, run) if peers is None else (Who(node_name.own(), ""), list(peers))
    came = controller_address() if controller is None else controller
    everybody = [*members, *([Who("controller", came)] if came else [])]
    # Asked first: it says whether there is an sshd at all.
    effective = {each.name: settings(each, run, own=own.address) for each in (everybody or [Who("nobody", "192.0.2.1")])}
    one = next(iter(effective.values()))
    lines = sshd_config.read(root)
    keys = authorized_keys(root, one)
    host_keys = _host_keys(root, one, run)
    proxmox = os.path.isdir(root / PVE.lstrip("/"))
    return {
        "known": True,
        "installed": True,
        "node": own.name,
        "address": own.address,
        "peers": [{"name": each.name, "address": each.address} for each in members],
        "offline": [each.name for each in members if not each.online],
        "controller": came,
        "include": leading_include(root, lines),
        "before": [each.file for each in _before(lines)],
        "match": match_blocks(lines),
        "effective": {name: _shown(found) for name, found in effective.items()},
        "proxmox": proxmox,
        "problems": {each.shown: problems(effective[each.name], each, keys, host_keys, proxmox) for each in everybody},
        "set_by": setters(root, lines),
        "weak": weak(one),
        "host_keys": host_keys,
        "known_host_key": _known_host_key(root, own.name, host_keys),
        "authorized_keys": keys,
        "managed": KEPT_FOR in managed_file.names(root, ROLE) and (root / DROP_IN.lstrip("/")).exists(),
        "drifted": managed_file.drifted(KEPT_FOR, root),
        "timer": rollback_timer.status(TIMER, root=root)["state"],
    }


def members_of(root: Path, run: Run) -> tuple[Who, list[Who]]:
    """This node and the other members with the addresses by which Proxmox VE reaches them. Raises PveguardError."""
    name = node_name.own()
    if not os.path.isdir(root / PVE.lstrip("/")):
        return Who(name, ""), []
    try:
        said = members_file.read(str(root / PVE.lstrip("/")), run)
    except PveguardError as error:
        raise PveguardError(f"the other members are not known: {error}") from error
    gone = members_file.offline(said)
    nodes = sorted((said.get("nodelist") or {}).items())
    found = [Who(str(each), str(node.get("ip") or ""), each not in gone) for each, node in nodes]
    if without := [each.name for each in found if not each.address and each.name != name]:
        raise PveguardError(f"the addresses of {', '.join(without)} are not known: /etc/pve/.members has none")
    own = next((each for each in found if each.name == name), Who(name, ""))
    return own, [each for each in found if each.name != name]


def controller_address() -> str:
    """Where the ssh login in use comes from; empty without one."""
    return ssh_login.connection().partition(" ")[0]


def settings(who: Who, run: Run, *, config: str = "", own: str = "") -> dict[str, list[str]]:
    """What ``sshd -T`` says for root from there: ``{keyword: values}``, one value a line. ``config``: another main file.

    Raises PveguardError where sshd does not take the configuration.
    """
    local = f",laddr={own or '127.0.0.1'},lport=22"
    spec = f"user=root,addr={who.address},host={who.name if who.name != 'controller' else who.address}{local}"
    done = run(["sshd", "-T", *(["-f", config] if config else []), "-C", spec])
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key.lower(), []).append(value.strip())
    if done.rc or "permitrootlogin" not in found:
        raise PveguardError(f"sshd -T fails for {who.shown}: {' '.join(done.stderr.split())[-400:] or f'code {done.rc}'}")
    return found


def value(found: Mapping[str, Sequence[str]], key: str, default: str = "") -> str:
    """One value, by its present name."""
    said = (found.get(key.lower()) or [default])[0]
    return "prohibit-password" if said == "without-password" else said


def problems(
    found: Mapping[str, Sequence[str]],
    who: Who,
    keys: Sequence[Mapping[str, Any]],
    host_keys: Sequence[Mapping[str, Any]],
    proxmox: bool = True,
) -> dict[str, str]:
    """``{keyword: what is wrong with it}``: what keeps root out from there, or a migration, by the effective settings. Without
    ``proxmox``, on a host of Debian alone, what keeps root out.
    """
    wrong: dict[str, str] = {}
    if value(found, "PermitRootLogin") not in ("yes", "prohibit-password"):
        wrong["permitrootlogin"] = f"PermitRootLogin {value(found, 'PermitRootLogin')} keeps root out"
    if value(found, "PubkeyAuthentication", "yes") != "yes":
        wrong["pubkeyauthentication"] = "PubkeyAuthentication no: members log in by key"
    ways = value(found, "AuthenticationMethods", "any").split()
    if ways != ["any"] and "publickey" not in ways:
        wrong["authenticationmethods"] = f"AuthenticationMethods {' '.join(ways)}: a key alone does not suffice"
    wrong.update(_users(found, who))
    if value(found, "DisableForwarding", "no") != "no":
        wrong["disableforwarding"] = "DisableForwarding yes: a migration forwards a UNIX socket"
    if value(found, "AllowStreamLocalForwarding", "yes") not in ("yes", "all", "local"):
        said = value(found, "AllowStreamLocalForwarding")
        wrong["allowstreamlocalforwarding"] = f"AllowStreamLocalForwarding {said}: a migration forwards a UNIX socket"
    # Both also decide about UNIX sockets, whatever sshd_config(5) says of them; seen with OpenSSH 9.2.
    if value(found, "AllowTcpForwarding", "yes") not in ("yes", "all", "local"):
        said = value(found, "AllowTcpForwarding")
        wrong["allowtcpforwarding"] = f"AllowTcpForwarding {said}: sshd then forwards no UNIX socket either, as a migration does"
    if value(found, "PermitOpen", "any") != "any":
        said = value(found, "PermitOpen")
        wrong["permitopen"] = f"PermitOpen {said}: sshd then forwards no UNIX socket, as a migration does"
    for key in ("ForceCommand", "ChrootDirectory"):
        if value(found, key, "none") != "none":
            wrong[key.lower()] = f"{key} {value(found, key)}: root's commands do not run"
    if value(found, "MaxSessions", "10") == "0":
        wrong["maxsessions"] = "MaxSessions 0: no command runs"
    if not any(each["keys"] for each in keys):
        where = ", ".join(each["path"] for each in keys) or "nowhere"
        wrong["authorizedkeysfile"] = f"root has no key: sshd looks in {where}"
    wrong.update(_rsa(found, host_keys))
    return {key: text for key, text in wrong.items() if proxmox or key not in (*OF_RSA, *OF_FORWARDING)}


def _users(found: Mapping[str, Sequence[str]], who: Who) -> dict[str, str]:
    wrong = {}
    for key, allows in (("AllowUsers", True), ("DenyUsers", False), ("AllowGroups", True), ("DenyGroups", False)):
        said = [word for line in found.get(key.lower()) or [] for word in line.split()]
        if not said:
            continue
        taken = any(_is_root(pattern, who, key.endswith("Users")) for pattern in said)
        # An exclamation mark in AllowUsers excludes.
        if allows and any(word.startswith("!") and _is_root(word[1:], who, key.endswith("Users")) for word in said):
            taken = False
        if taken != allows:
            wrong[key.lower()] = f"{key} {' '.join(said)} {'leaves root out' if allows else 'keeps root out'}"
    return wrong


def _is_root(pattern: str, who: Who, with_host: bool) -> bool:
    user, at, host = pattern.rpartition("@") if with_host and "@" in pattern else (pattern, "", "")
    if not sshd_config.matches([user], "root"):
        return False
    if not at:
        return True
    try:
        return ipaddress.ip_address(who.address) in ipaddress.ip_network(host)
    except ValueError:
        # sshd compares the name too where UseDNS is on, which is not Debian's default.
        return sshd_config.matches([host], who.address)


def _rsa(found: Mapping[str, Sequence[str]], host_keys: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    wrong = {}
    if not any(each["type"] == "ssh-rsa" for each in host_keys):
        has = ", ".join(each["path"] for each in host_keys if each["type"]) or "none"
        wrong["hostkey"] = f"there is no RSA host key, by which the members know this node (host keys: {has})"
    for key in ("HostKeyAlgorithms", "PubkeyAcceptedAlgorithms"):
        names = value(found, key, "rsa-sha2-512").split(",")
        if not {"rsa-sha2-256", "rsa-sha2-512"} & set(names):
            whose = "host key" if key == "HostKeyAlgorithms" else "key of the other members"
            wrong[key.lower()] = f"{key} has no rsa-sha2-256 and no rsa-sha2-512, which the RSA {whose} needs"
    return wrong


def weak(found: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Algorithms that are allowed and should not be, by keyword."""
    taken = {key: [name for name in value(found, key).split(",") if sshd_config.matches(WEAK[key], name)] for key in WEAK}
    return {key: names for key, names in taken.items() if names}


def match_blocks(lines: Iterable[sshd_config.Line]) -> list[dict[str, str]]:
    """What Match blocks set that may count for root, and is not what the drop-in wants anyway."""
    wanted = {key.lower(): said for key, said in {**KEYS_ONLY, **PLAIN}.items()}
    found = []
    for line in lines:
        if not line.match or line.keyword not in OF_ROOT or not _may_be_root(line.match):
            continue
        said = " ".join(line.arguments).replace("without-password", "prohibit-password")
        if wanted.get(line.keyword) == said.lower():
            continue
        found.append({"place": line.place, "match": " ".join(line.match), "sets": line.text, "keyword": line.keyword})
    return found


def _may_be_root(criteria: Sequence[str]) -> bool:
    """Whether a Match block can be about root: other criteria than the user and the group may always hold."""
    words = [part for word in criteria for part in word.split("=", 1)]
    for key, patterns in zip(words, words[1:], strict=False):
        if key.lower() in ("user", "group") and not sshd_config.matches([patterns], "root"):
            return False
    return True


def leading_include(root: Path, lines: Sequence[sshd_config.Line]) -> dict[str, Any]:
    """``{leading, before}``: whether the main file reads the drop-in before anything else; ``before``: what stands there.

    A line of PermitRootLogin above it counts even as a comment, as pvecm makes it one that counts.
    """
    main = [line for line in lines if line.file == sshd_config.MAIN]
    number = next((each.number for each in main if each.keyword == sshd_config.INCLUDE and sshd_config.covers(each, DROP_IN)), 0)
    first = main[0] if main else None
    text = (read_or_none(root / sshd_config.MAIN.lstrip("/")) or b"").decode("utf-8", "replace").splitlines()
    root_login = next((count for count, line in enumerate(text, 1) if re.match(r"#?\s*PermitRootLogin", line, re.I)), 0)
    if not number:
        return {"leading": False, "before": ""}
    if first is not None and first.number != number:
        return {"leading": False, "before": f"{first.place} {first.text}"}
    if 0 < root_login < number:
        return {"leading": False, "before": f"{sshd_config.MAIN}:{root_login} {text[root_login - 1].strip()}"}
    return {"leading": True, "before": ""}


def _before(lines: Sequence[sshd_config.Line]) -> list[sshd_config.Line]:
    """The first line of each file of the folder that is read before ours."""
    folder = os.path.dirname(DROP_IN)
    files = {line.file: line for line in reversed(lines) if os.path.dirname(line.file) == folder and line.file < DROP_IN}
    return [files[name] for name in sorted(files)]


def setters(root: Path, lines: Sequence[sshd_config.Line]) -> dict[str, list[dict[str, str]]]:
    """``{keyword: lines}`` of what a finding may be about: the line that counts, and those of Match blocks about root.

    ``place`` is FILE:NUMBER, ``by`` who wrote the file.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        if line.keyword not in SHOWN_SETTERS or (line.match and not _may_be_root(line.match)):
            continue
        counts = found.setdefault(line.keyword, [])
        # Lists of users go on in every line; of the rest the first one counts.
        if line.match or line.keyword in LISTS or not counts:
            text = (read_or_none(root / line.file.lstrip("/")) or b"").decode("utf-8", "replace")
            counts.append({"place": line.place, "by": writer(line.file, text, "dev-sec or a CIS role")})
    return found


def who_sets(lines: Iterable[sshd_config.Line], keyword: str) -> str:
    """The line that decides about a keyword outside Match blocks, empty where none does."""
    return next((f"{each.place}: {each.text}" for each in lines if each.keyword == keyword.lower() and not each.match), "")


def authorized_keys(root: Path, found: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Where root's keys are: ``{path, on_pve, keys}`` for each file that sshd looks in."""
    files = []
    home = pwd.getpwnam("root").pw_dir.removeprefix(str(root).rstrip("/"))
    tokens = {"%%": "%", "%h": home, "%u": "root", "%U": "0"}
    for pattern in value(found, "AuthorizedKeysFile").split():
        if pattern == "none":
            continue
        path = re.sub("%[%huU]", lambda part: tokens[part[0]], pattern)
        path = path if path.startswith("/") else f"{home}/{path}"
        place = root / path.lstrip("/")
        try:
            text = place.read_text("utf-8", "replace")
        except OSError:
            text = ""
        count = sum(1 for line in text.splitlines() if re.match(r"\s*[^#\s].*(ssh-|ecdsa-|sk-)|\s*(ssh-|ecdsa-|sk-)", line))
        files.append({"path": path, "on_pve": on_pve(root, place), "keys": count})
    return files


def on_pve(root: Path, place: Path) -> bool:
    real = os.path.realpath(place)
    return any(real.startswith(f"{folder}/") for folder in (PVE, os.path.realpath(root / PVE.lstrip("/"))))


def _host_keys(root: Path, found: Mapping[str, Sequence[str]], run: Run) -> list[dict[str, Any]]:
    keys = []
    for path in found.get("hostkey") or []:
        kind, blob = "", ""
        if (root / path.lstrip("/")).exists():
            words = (read_or_none(root / f"{path}.pub".lstrip("/")) or b"").decode("ascii", "replace").split()
            if len(words) < 2:
                words = run(["ssh-keygen", "-y", "-P", "", "-f", path]).stdout.split()
            kind, blob = (words[0], words[1]) if len(words) > 1 else ("", "")
        keys.append({"path": path, "type": kind, "public": blob})
    return keys


def _known_host_key(root: Path, name: str, host_keys: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether the RSA host key is the one by which the members know this node; None where they know none."""
    text = read_or_none(root / f"etc/pve/nodes/{name}/ssh_known_hosts")
    known = {words[2] for line in (text or b"").decode("ascii", "replace").splitlines() if len(words := line.split()) > 2}
    if not known:
        return None
    return any(each["type"] == "ssh-rsa" and each["public"] in known for each in host_keys)


def _shown(found: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What findings are made of, and a reader wants to see."""
    keys = [*KEYS_ONLY, *PLAIN, "MaxAuthTries", "AllowUsers", "AllowGroups", "DenyUsers", "DenyGroups", "DisableForwarding"]
    keys += ["AllowStreamLocalForwarding", "AuthorizedKeysFile"]
    return {key: " ".join(found[key.lower()]) if len(found.get(key.lower(), [])) > 1 else value(found, key) for key in keys}
