# SPDX-License-Identifier: Apache-2.0
"""What is judged about the sources of packages, unattended upgrades and pending reboots."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ..base.findings import PROBLEM, UNKNOWN, WARNING, Finding, check, some
from .looking import facts_of, proxmox, shown
from .updates import CODENAMES, FLOATING, codename

UNREAD = check(
    "hardening-updates-unread",
    UNKNOWN,
    "Sources of packages, or the settings of apt, could not be read",
    "Look at them by hand, as root.",
    "apt-get indextargets; apt-config dump",
)
MALFORMED = check(
    "hardening-updates-malformed",
    UNKNOWN,
    "A file of sources has lines that are not understood: what it brings is not known",
    "Mend the lines.",
    "apt-get update --print-uris",
)
MIXED = check(
    "hardening-updates-mixed-releases",
    PROBLEM,
    "Sources of another Debian release than the node's: the next upgrade mixes both, and removes packages of Proxmox VE",
    "Have all sources name one release.",
    "grep -rn . /etc/apt/sources.list /etc/apt/sources.list.d",
)
FLOATS = check(
    "hardening-updates-floating-suite",
    WARNING,
    "A source names stable or testing instead of a release: on the day of the next release the node is half upgraded",
    "Name the release.",
    "grep -rnwE 'oldstable|stable|testing|sid' /etc/apt/sources.list /etc/apt/sources.list.d",
)
UNSIGNED = check(
    "hardening-updates-unsigned",
    PROBLEM,
    "A source is taken without a valid signature (trusted=yes, allow-insecure): whoever is on the way installs what he "
    "likes as root",
    "Remove the option, and install the key.",
    "grep -rniE 'trusted|allow-insecure|allow-weak' /etc/apt/sources.list /etc/apt/sources.list.d",
)
KEY = check(
    "hardening-updates-key-missing",
    PROBLEM,
    "The key that a source names (Signed-By) is not there: apt update fails, so no update comes (CIS Debian 12 1.2.1.1)",
    "Install it; that of Proxmox is in proxmox-archive-keyring (Debian 13).",
    "ls -l /usr/share/keyrings",
)
ENTERPRISE = check(
    "hardening-updates-enterprise-without-key",
    WARNING,
    "The enterprise repository is on and there is no subscription: apt update fails there, and no update of Proxmox VE comes",
    "Switch it off and pve-no-subscription on, or add the subscription.",
    "Enabled: no, in /etc/apt/sources.list.d/pve-enterprise.sources",
)
TEST = check(
    "hardening-updates-test-repository",
    WARNING,
    "A repository for tests of Proxmox is on (a post-install script asks for it)",
    "Remove it.",
    "grep -rnE 'pve-?test' /etc/apt/sources.list /etc/apt/sources.list.d",
)
ORIGINS = check(
    "hardening-updates-unattended-origins",
    WARNING,
    "Unattended upgrades take more than Debian's security origin: packages of Proxmox change on all members in one night",
    "Keep only Debian's security origin there.",
    "Unattended-Upgrade::Origins-Pattern in /etc/apt/apt.conf.d",
)
REBOOTS = check(
    "hardening-updates-unattended-reboot",
    PROBLEM,
    "Unattended upgrades reboot the node by themselves: members go down together, and with them the quorum",
    "Switch that off.",
    "echo 'Unattended-Upgrade::Automatic-Reboot \"false\";' > /etc/apt/apt.conf.d/99-no-reboot",
)
REBOOT = check(
    "hardening-updates-reboot-pending",
    WARNING,
    "The node runs an older kernel or older libraries than are installed",
    "Reboot it when its guests are elsewhere, one member at a time.",
    "reboot",
)


def of_node(node: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """From the facts that ``hardening_info`` brought; nothing where it was not asked."""
    facts = facts_of(node, "updates")
    return [] if facts is None else findings(facts, proxmox(node))


def of_report(node: Mapping[str, Any]) -> list[Finding]:
    return of_node(node, {})


def findings(facts: Mapping[str, Any], on_proxmox: bool = True) -> list[Finding]:
    """``facts``: of the core ``updates``."""
    found = [] if facts["known"] else [UNREAD(f"where updates come from could not be read: {facts['error']}")]
    for path, numbers in (facts.get("strange") or {}).items():
        found.append(
            MALFORMED(
                f"{shown(path, 120)} is not understood in line {some(numbers)}", code=f"cat {_quoted(path)}"
            )
        )
    return found + _sources(facts) + _proxmox(facts) + _unattended(facts, on_proxmox)


def _at(source: Mapping[str, Any]) -> str:
    return f"{shown(source['path'], 120)} line {source['line']} ({', '.join(filter(None, source['hosts'])) or 'no host'})"


def _files(sources: list[Mapping[str, Any]], what: str) -> str:
    return f"{what} {' '.join(_quoted(path) for path in dict.fromkeys(source['path'] for source in sources))}"


def _sources(facts: Mapping[str, Any]) -> list[Finding]:
    sources: list[Mapping[str, Any]] = list(facts.get("sources") or [])
    release = facts.get("release") or ""
    found = []
    names = {
        name for source in sources for suite in source["suites"] if (name := codename(suite)) in CODENAMES
    }
    # A node whose release is not told has at least to agree with itself.
    others = (
        {name for name in names if name != release}
        if release in CODENAMES
        else names
        if len(names) > 1
        else set()
    )
    mixed = [source for source in sources if {codename(suite) for suite in source["suites"]} & others]
    if mixed:
        told = some([f"{', '.join(source['suites'])} in {_at(source)}" for source in mixed])
        found.append(
            MIXED(f"the node is {release or 'not told'}, and has {told}", code=_files(mixed, "editor"))
        )
    floating = [
        source
        for source in sources
        if any(codename(suite) in FLOATING for suite in source["suites"]) and _debian(source)
    ]
    if floating:
        told = some([f"{', '.join(source['suites'])} in {_at(source)}" for source in floating])
        found.append(FLOATS(f"no release is named: {told}", code=_files(floating, "editor")))
    if unsigned := [source for source in sources if source["trusted"] or source["insecure"]]:
        told = some([_at(source) for source in unsigned])
        found.append(UNSIGNED(f"taken without a valid signature: {told}", code=_files(unsigned, "editor")))
    if missing := [source for source in sources if source["missing"]]:
        told = some([f"{shown(source['missing'][0], 120)}, named in {_at(source)}" for source in missing])
        found.append(KEY(f"a key is not there: {told}"))
    return found


def _debian(source: Mapping[str, Any]) -> bool:
    return any("debian" in name or "proxmox" in name for name in source["hosts"])


def _proxmox(facts: Mapping[str, Any]) -> list[Finding]:
    sources: list[Mapping[str, Any]] = list(facts.get("sources") or [])
    found = []
    enterprise = [source for source in sources if "enterprise.proxmox.com" in source["hosts"]]
    if enterprise and not facts.get("subscription"):
        undo = [
            rf"sed -i '/^Enabled:/d; s/^Types:/Enabled: no\n&/' {_quoted(path)}"
            if path.endswith(".sources")
            else f"sed -i '/enterprise.proxmox.com/s/^deb/#&/' {_quoted(path)}"
            for path in dict.fromkeys(source["path"] for source in enterprise)
        ]
        told = some([_at(source) for source in enterprise])
        found.append(
            ENTERPRISE(
                f"the enterprise repository is on without a subscription: {told}", code="; ".join(undo)
            )
        )
    tests = [source for source in sources if {"pvetest", "pve-test"} & set(source["components"])]
    if tests:
        told = some([_at(source) for source in tests])
        found.append(
            TEST(
                f"a repository for tests is on (usually a post-install script): {told}",
                code=_files(tests, "editor"),
            )
        )
    if facts.get("reboot"):
        found.append(REBOOT(f"a reboot is pending: {shown(facts['reboot'], 120)}"))
    return found


def _unattended(facts: Mapping[str, Any], on_proxmox: bool) -> list[Finding]:
    unattended = facts.get("unattended")
    if not unattended or not unattended["on"] or not on_proxmox:
        return []
    found = []
    wide = [each for each in unattended["origins"] if not _is_security(each)]
    if wide:
        undo = "#clear Unattended-Upgrade::Origins-Pattern; in /etc/apt/apt.conf.d, and only Debian-Security there"
        found.append(
            ORIGINS(f"unattended upgrades take: {some([shown(each, 100) for each in wide])}", code=undo)
        )
    if unattended["reboot"]:
        found.append(
            REBOOTS(
                "Unattended-Upgrade::Automatic-Reboot is true",
                means="members go down together, and the quorum",
            )
        )
    return found


def _is_security(pattern: str) -> bool:
    """Debian's default patterns: its security origin, and the release itself, which brings point releases."""
    parts = dict(part.split("=", 1) for part in pattern.split(",") if "=" in part)
    origin = parts.get("origin") or parts.get("o") or pattern.partition(":")[0]
    return origin == "Debian" and "*" not in pattern


def _quoted(path: str) -> str:
    return shlex.quote(shown(path, 200))
