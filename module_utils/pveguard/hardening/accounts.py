# SPDX-License-Identifier: Apache-2.0
"""Users, tokens, second factors and realms of Proxmox VE.

No secret leaves this core: of tfa.cfg only how many factors there are and what is locked, of user.cfg neither keys, comments nor
addresses, of domains.cfg neither binds nor servers.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any

from ..formats import section_config
from .looking import Facts, Looking, area

USER_CFG, TFA_CFG, DOMAINS_CFG = "/etc/pve/user.cfg", "/etc/pve/priv/tfa.cfg", "/etc/pve/domains.cfg"
#: Lists of factors in tfa.cfg.
FACTORS = ("totp", "u2f", "webauthn", "yubico")
#: Roles that can do everything, or hand out everything.
GRANTING = ("Administrator", "PVEAdmin")
_USER = re.compile(r"[^\s:/!]+@[A-Za-z][\w.-]*\Z")
_TOKEN = re.compile(r"([^\s:/!]+@[A-Za-z][\w.-]*)!([A-Za-z][\w.-]*)\Z")
_GROUP = re.compile(r"@?[\w.-]+\Z")
_BUILT_IN = ("pam", "pve")


class UserConfig:
    """What counts of user.cfg. ``strange``: numbers of the lines that were not understood."""

    def __init__(self) -> None:
        self.users: dict[str, Facts] = {}
        self.groups: dict[str, list[str]] = {}
        self.tokens: list[Facts] = []
        self.grants: list[Facts] = []
        self.strange: list[int] = []


def parse_users(text: str) -> UserConfig:
    """Read user.cfg; never raises."""
    found = UserConfig()
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        kind, _, rest = line.partition(":")
        fields = rest.split(":")
        if not _entry(found, kind.strip(), [*fields, *[""] * 6]):
            found.strange.append(number)
    return found


def _entry(found: UserConfig, kind: str, fields: list[str]) -> bool:
    """Take one line; False where it is none."""
    if kind == "user":
        expire = _number(fields[2])
        if not _USER.match(fields[0]) or fields[1] not in ("0", "1") or expire is None:
            return False
        found.users[fields[0]] = {"enabled": fields[1] == "1", "expire": expire}
    elif kind == "token":
        match, expire = _TOKEN.match(fields[0]), _number(fields[1])
        if not match or expire is None or fields[2] not in ("0", "1", ""):
            return False
        # Without the field it is separated, as it is where it is 1.
        found.tokens.append(
            {"user": match[1], "name": match[2], "expire": expire, "privsep": fields[2] != "0"}
        )
    elif kind == "group":
        if not _GROUP.match(fields[0]):
            return False
        members = _list(fields[1])
        found.groups[fields[0]] = [each for each in members if _USER.match(each)]
        # Proxmox passes over such a member; who was meant is not known.
        return len(found.groups[fields[0]]) == len(members)
    elif kind == "acl":
        if not fields[1].startswith("/") or fields[0] not in ("0", "1"):
            return False
        every = _list(fields[2])
        # Names alone: a malformed one may be anything.
        who = [each for each in every if _USER.match(each) or _TOKEN.match(each) or _GROUP.match(each)]
        # As Proxmox takes it: / and // are the same.
        path = re.sub("/+", "/", fields[1].strip()).rstrip("/") or "/"
        found.grants += [{"path": path, "role": role, "who": who} for role in _list(fields[3]) if role in GRANTING]
        return bool(every) and len(who) == len(every)
    else:
        return kind in ("role", "pool")
    return True


def _list(text: str) -> list[str]:
    return [each for each in re.split(r"[,; ]+", text) if each]


def _number(text: str) -> int | None:
    return int(text or 0) if re.fullmatch(r"[0-9]{0,15}", text) else None


def parse_factors(text: str) -> dict[str, Facts] | None:
    """``{user: {factors, recovery, totp_locked, locked_until}}`` of tfa.cfg, None where it is not understood. ``recovery``:
    keys that
    are left, None where that is not known.
    """
    try:
        document = json.loads(text)
    # Deep nesting ends in a RecursionError, a long number in a ValueError.
    except (ValueError, RecursionError):
        return None
    users = document.get("users", {}) if isinstance(document, dict) else None
    if not isinstance(users, dict):
        return None
    found = {}
    for name, entry in users.items():
        # Whose factors these are is not known.
        if not _USER.match(name) or not isinstance(entry, dict):
            return None
        lists = [entry.get(kind) or [] for kind in FACTORS]
        if not all(isinstance(each, list) for each in lists):
            return None
        until = _either(entry, "tfa-locked-until")
        found[name] = {
            "factors": sum(_enabled(each) for some in lists for each in some),
            "recovery": _recovery(entry.get("recovery")),
            "totp_locked": _either(entry, "totp-locked") is True,
            "locked_until": until if isinstance(until, int) and not isinstance(until, bool) else 0,
        }
    return found


def _either(entry: Mapping[str, Any], name: str) -> Any:
    return entry.get(name, entry.get(name.replace("-", "_")))


def _enabled(factor: Any) -> bool:
    info = factor.get("info") if isinstance(factor, dict) else None
    for each in (info, factor):
        if isinstance(each, dict) and each.get("enable") in (False, 0):
            return False
    return factor is not None


def _recovery(entry: Any) -> int | None:
    if entry is None:
        return 0
    lists = [each for each in entry.values() if isinstance(each, list)] if isinstance(entry, dict) else []
    # A key that was used is null.
    return sum(each is not None for each in lists[0]) if len(lists) == 1 else None


@area
def look(looking: Looking) -> Facts:
    """``installed``; ``users`` ({name: enabled, expire}), ``groups``, ``tokens``, ``grants``, ``factors`` (null where not known),
    ``realms`` (name, kind, demands a second factor), ``strange`` ({path: lines}), ``now``.
    """
    if not looking.pve():
        return {"installed": bool(looking.unread)}
    strange: dict[str, list[int]] = {}
    users = parse_users(looking.text(USER_CFG) or "")
    if users.strange:
        strange[USER_CFG] = users.strange[:20]
    before = len(looking.unread)
    said = looking.text(TFA_CFG)
    factors = parse_factors(said or '{"users": {}}')
    if len(looking.unread) > before:
        factors = None
    elif factors is None:
        looking.cannot(TFA_CFG, "no JSON object of users")
    domains = section_config.parse(looking.text(DOMAINS_CFG) or "")
    if domains.strange:
        strange[DOMAINS_CFG] = [len(domains.strange)]
    # It has its own line in user.cfg or not, and can log in unless that line says otherwise.
    users.users.setdefault("root@pam", {"enabled": True, "expire": 0})
    return {
        "installed": True,
        "users": users.users,
        "groups": users.groups,
        "tokens": users.tokens,
        "grants": users.grants,
        "factors": factors,
        "realms": [
            {"name": each.name, "kind": each.kind, "tfa": "tfa" in each.values} for each in domains.sections
        ],
        "strange": strange,
        "now": int(time.time()),
    }


def unused_realms(facts: Mapping[str, Any]) -> list[str]:
    """Realms of directories and the like in which nobody is known."""
    used = {name.rpartition("@")[2] for name in facts.get("users") or {}}
    return sorted(
        {
            each["name"]
            for each in facts.get("realms") or []
            if each["kind"] not in _BUILT_IN and each["name"] not in used
        }
    )
