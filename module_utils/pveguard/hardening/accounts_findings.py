# SPDX-License-Identifier: Apache-2.0
"""What is judged about users, tokens and second factors of Proxmox VE."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ..base.findings import PROBLEM, UNKNOWN, WARNING, Finding, check, some
from .accounts import DOMAINS_CFG, unused_realms
from .looking import facts_of, proxmox, shown

UNREAD = check(
    "hardening-accounts-unread",
    UNKNOWN,
    "Users, tokens or second factors could not be read",
    "Look at them by hand, as root on a node with quorum.",
    "pveum user list --full; pveum user token list USER",
)
MALFORMED = check(
    "hardening-accounts-malformed",
    UNKNOWN,
    "user.cfg or domains.cfg has lines that are not understood: what they grant is not known",
    "Read those lines; Proxmox passes over what it does not understand.",
    "journalctl -u pvedaemon -g user.cfg",
)
ROOT_FACTOR = check(
    "hardening-accounts-root-without-factor",
    WARNING,
    "root@pam can log in to the web interface with a password alone",
    "Add a second factor and recovery keys in the web interface: Datacenter, Permissions, Two Factor.",
    "pveum user tfa list root@pam",
)
RECOVERY = check(
    "hardening-accounts-no-recovery-keys",
    (WARNING, UNKNOWN),
    "A user has a second factor and no recovery keys: when the device is lost, nobody gets in that way",
    "Add recovery keys in the web interface, before a second factor is demanded.",
    "pveum user tfa list USER",
)
LOCKED = check(
    "hardening-accounts-factor-locked",
    WARNING,
    "The second factor of a user is locked after too many failures: somebody tried, or a clock is wrong",
    "Find out who tried, then unlock it.",
    "pveum user tfa unlock USER",
)
PRIVSEP = check(
    "hardening-accounts-token-full-privileges",
    (WARNING, PROBLEM),
    "A token has all privileges of its user (a problem for root@pam): whoever reads it has them too, without a second factor",
    "Separate its privileges and grant it what it needs.",
    "pveum user token modify USER NAME --privsep 1",
)
EXPIRY = check(
    "hardening-accounts-token-never-expires",
    WARNING,
    "Tokens never expire",
    "Give each an end, or remove what nobody uses.",
    "pveum user token modify USER NAME --expire EPOCH",
)
ADMINISTRATORS = check(
    "hardening-accounts-administrators",
    WARNING,
    "Others than root@pam have the role Administrator (or PVEAdmin) on everything",
    "Grant a smaller role on a smaller path where that is enough.",
    "pveum acl delete / --roles Administrator --users USER",
)
REALMS = check(
    "hardening-accounts-realm-unused",
    WARNING,
    "A realm has no users: a way in that nobody uses",
    "Remove it where nobody is to log in through it.",
    "pveum realm delete REALM",
)


def of_node(node: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """From the facts that ``hardening_info`` brought; nothing where it was not asked."""
    facts = facts_of(node, "accounts")
    return [] if facts is None or not proxmox(node) else findings(facts)


def of_report(node: Mapping[str, Any]) -> list[Finding]:
    return of_node(node, {})


def findings(facts: Mapping[str, Any]) -> list[Finding]:
    """``facts``: of the core ``accounts``."""
    found = [] if facts["known"] else [UNREAD(f"accounts could not be read: {facts['error']}")]
    strange = facts.get("strange") or {}
    for path, numbers in strange.items():
        where = f"{len(numbers)} lines" if path == DOMAINS_CFG else f"line {some(numbers)}"
        found.append(MALFORMED(f"{path} is not understood in {where}", means="what they grant is not known"))
    return found + _factors(facts) + _tokens(facts) + _grants(facts)


def _factors(facts: Mapping[str, Any]) -> list[Finding]:
    factors, users = facts.get("factors"), facts.get("users") or {}
    if factors is None:
        return []
    found = []
    if (users.get("root@pam") or {}).get("enabled") and not (factors.get("root@pam") or {}).get("factors"):
        found.append(
            ROOT_FACTOR("root@pam has no second factor", means="its password alone opens the web interface")
        )
    active = {name: each for name, each in factors.items() if (users.get(name) or {}).get("enabled")}
    bare = sorted(name for name, each in active.items() if each["factors"] and each["recovery"] == 0)
    if bare:
        found.append(
            RECOVERY(f"no recovery keys: {_names(bare)}", code=f"pveum user tfa list {_quoted(bare[0])}")
        )
    unsure = sorted(name for name, each in active.items() if each["recovery"] is None)
    if unsure:
        found.append(RECOVERY(f"recovery keys not understood: {_names(unsure)}", severity=UNKNOWN))
    locked = sorted(
        name
        for name, each in active.items()
        if each["totp_locked"] or each["locked_until"] > facts.get("now", 0)
    )
    if locked:
        undo = "; ".join(f"pveum user tfa unlock {_quoted(name)}" for name in locked)
        found.append(LOCKED(f"the second factor is locked: {_names(locked)}", code=undo))
    return found


def _tokens(facts: Mapping[str, Any]) -> list[Finding]:
    users = facts.get("users") or {}
    # A token of a user who is off or gone is off.
    tokens = [each for each in facts.get("tokens") or [] if (users.get(each["user"]) or {}).get("enabled")]
    tokens = [each for each in tokens if not each["expire"] or each["expire"] > facts.get("now", 0)]
    found = []
    if full := [each for each in tokens if not each["privsep"]]:
        found.append(
            PRIVSEP(
                f"tokens with all privileges of their user: {_names([_token(each) for each in full])}",
                severity=PROBLEM if any(each["user"] == "root@pam" for each in full) else WARNING,
                means="whoever reads one has them too, without a second factor",
                code="; ".join(f"pveum user token modify {_words(each)} --privsep 1" for each in full),
            )
        )
    if forever := [each for each in tokens if not each["expire"]]:
        found.append(
            EXPIRY(
                f"tokens that never expire: {_names([_token(each) for each in forever])}",
                code="; ".join(f"pveum user token modify {_words(each)} --expire EPOCH" for each in forever),
            )
        )
    return found


def _grants(facts: Mapping[str, Any]) -> list[Finding]:
    groups = facts.get("groups") or {}
    whole = [each for each in facts.get("grants") or [] if each["path"] == "/"]
    told, undo = [], []
    for grant in whole:
        for who in grant["who"]:
            if who == "root@pam":
                continue
            kind = "tokens" if "!" in who else "groups" if who.startswith("@") or "@" not in who else "users"
            name = who.removeprefix("@") if kind == "groups" else who
            members = (
                f" ({some([shown(each) for each in groups.get(name) or []]) or 'nobody'})"
                if kind == "groups"
                else ""
            )
            told.append(f"{shown(name)}{members}: {grant['role']}")
            undo.append(f"pveum acl delete / --roles {grant['role']} --{kind} {_quoted(name)}")
    found = []
    if told:
        found.append(ADMINISTRATORS(f"roles on everything: {some(told, 8)}", code="; ".join(undo)))
    if unused := unused_realms(facts):
        found.append(
            REALMS(
                f"realms without users: {_names(unused)}",
                code="; ".join(f"pveum realm delete {_quoted(each)}" for each in unused),
            )
        )
    return found


def _names(names: list[str]) -> str:
    return some([shown(each) for each in names], 8)


def _token(token: Mapping[str, Any]) -> str:
    return f"{token['user']}!{token['name']}"


def _words(token: Mapping[str, Any]) -> str:
    return f"{_quoted(token['user'])} {_quoted(token['name'])}"


def _quoted(text: str) -> str:
    return shlex.quote(shown(text))
