# SPDX-License-Identifier: Apache-2.0
"""What is judged about fail2ban, watchdog, time, umask, mounts, faillock and hidepid: told, never changed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..base.findings import PROBLEM, UNKNOWN, WARNING, Finding, check, some
from .looking import facts_of, proxmox, shown
from .others import USUAL, WATCHDOG_DEVICE, WATCHDOG_USUAL

#: A cluster's clocks: beyond it tickets and two-factor codes fail, and logs of members no longer fit together.
OFFSET_SECONDS = 0.5
#: Two members: as for one; what Ceph's monitors allow (mon_clock_drift_allowed); the step of a two-factor code (RFC 6238).
APART_SECONDS, CEPH_SECONDS, STEP_SECONDS = 0.5, 0.05, 30.0
#: From this number of failures down a typo is enough.
DENY_FEW = 4

UNREAD = check(
    "hardening-others-unread",
    UNKNOWN,
    "fail2ban, watchdog, time, umask, mounts, faillock or hidepid could not be read",
    "Look at them by hand, as root.",
    "findmnt; systemctl list-units; grep -r faillock /etc/pam.d",
)
BANS = check(
    "hardening-others-fail2ban-bans-members",
    PROBLEM,
    "fail2ban may ban nodes of the cluster: a ban cuts the ring, migration or the proxy between nodes",
    "Add all addresses of the nodes to ignoreip.",
    "ignoreip in [DEFAULT] of /etc/fail2ban/jail.local",
)
BACKEND = check(
    "hardening-others-fail2ban-backend",
    WARNING,
    "fail2ban reads /var/log/auth.log, which is not there: it sees no login",
    "Let it read the journal.",
    "backend = systemd, in [DEFAULT] of /etc/fail2ban/jail.local",
)
WATCHDOG = check(
    "hardening-others-watchdog-conflict",
    PROBLEM,
    "Somebody else than watchdog-mux takes the watchdog (systemd's RuntimeWatchdogSec, the package watchdog): HA "
    "cannot fence, or "
    "the node is reset",
    "Leave it to watchdog-mux.",
    "apt-get purge watchdog",
)
NOWAYOUT = check(
    "hardening-others-watchdog-nowayout",
    (PROBLEM, WARNING),
    "The watchdog has nowayout, or files set it and it is not in force yet (a warning): watchdog-mux cannot disarm it, so an "
    "orderly stop of it (an upgrade, HA off) resets the node",
    "Remove the option. It is in force until the next boot: do not stop watchdog-mux before.",
    f"cat {WATCHDOG_DEVICE}/nowayout; grep -r nowayout /etc/modprobe.d /etc/default/grub /etc/kernel/cmdline",
)
NMI = check(
    "hardening-others-watchdog-nmi",
    WARNING,
    "nmi_watchdog is on beside ipmi_watchdog: the two clash",
    "Switch nmi_watchdog off.",
    "sysctl -w kernel.nmi_watchdog=0",
)
DRIVER = check(
    "hardening-others-watchdog-unknown",
    UNKNOWN,
    "/etc/default/pve-ha-manager is more than plain assignments: which watchdog is loaded is not known",
    "Write a plain WATCHDOG_MODULE=NAME.",
    "cat /etc/default/pve-ha-manager",
)
TIME = check(
    "hardening-others-time",
    (WARNING, PROBLEM),
    f"Nothing keeps the clock (a problem), two services do (CIS Debian 12 2.3.1.1), or it is not synchronised or more than "
    f"{OFFSET_SECONDS} s off: two-factor codes, tickets and logs of members no longer fit together",
    "Let only chrony keep the clock.",
    "apt-get install chrony; chronyc sources",
)
APART = check(
    "hardening-others-clocks-apart",
    (WARNING, PROBLEM),
    f"The clocks of two members differ by more than {APART_SECONDS} s, with Ceph by more than the {CEPH_SECONDS} s that its "
    f"monitors allow: logs of members no longer fit together. A problem beyond {STEP_SECONDS:g} s, the step of a two-factor code",
    "Let both follow the same time servers.",
    "chronyc sources; chronyc makestep",
)
NOT_COMPARED = check(
    "hardening-others-clocks-unknown",
    UNKNOWN,
    "The clock could not be compared with those of other members, and is not known to be synchronised",
    "Let ICMP timestamp requests through between the members, or chrony keep the clock.",
    "chronyc tracking",
)
UMASK = check(
    "hardening-others-umask",
    PROBLEM,
    "A umask such as 027 (CIS Debian 12 5.4.3.3, PegaProx): containers created in such a session get /etc without "
    "rights for others, so "
    "neither DNS nor apt inside; unprivileged ones fail",
    "Set 022 where root logs in.",
    "umask 022",
)
NOEXEC = check(
    "hardening-others-noexec",
    WARNING,
    "/tmp, /var or /var/tmp is mounted noexec (CIS Debian 12 1.1.2.1.4, 1.1.2.5.4): package scripts, vzdump's "
    "temporary directory and "
    "hook scripts fail",
    "Mount it without.",
    "mount -o remount,exec /tmp",
)
FAILLOCK = check(
    "hardening-others-faillock-root",
    (PROBLEM, WARNING),
    "pam_faillock locks root (even_deny_root, CIS Debian 12 5.3.3.1.3), or is set up so and not in use (a warning): "
    "anyone who can reach "
    "the web interface locks root@pam out of it and of the console",
    "Remove even_deny_root, and unlock it.",
    "faillock --user root --reset",
)
DENY = check(
    "hardening-others-faillock-few",
    WARNING,
    f"pam_faillock locks users after fewer than {DENY_FEW + 1} failures (CIS roles: 3): anyone locks users of the realm pam out",
    "Allow more failures.",
    "deny = 10, in /etc/security/faillock.conf",
)
HIDEPID = check(
    "hardening-others-hidepid",
    WARNING,
    "/proc hides processes (hidepid, an option of dev-sec): lxc-attach and monitoring fail",
    "Mount it without.",
    "mount -o remount,hidepid=0 /proc",
)


def of_node(node: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """From the facts that ``hardening_info`` brought; nothing where it was not asked."""
    facts = facts_of(node, "others")
    return [] if facts is None else findings(facts, proxmox(node))


def of_report(node: Mapping[str, Any]) -> list[Finding]:
    return of_node(node, {})


def findings(facts: Mapping[str, Any], on_proxmox: bool = True) -> list[Finding]:
    """``facts``: of the core ``others``."""
    found = [] if facts["known"] else [UNREAD(f"not all of the node could be read: {facts['error']}")]
    found += _time(facts.get("time") or {})
    found += _clocks(facts.get("clocks") or {}, facts.get("time") or {})
    if not on_proxmox:
        return found
    found += _fail2ban(facts.get("fail2ban") or {})
    found += _watchdog(facts.get("watchdog") or {})
    found += _umask(facts.get("umask") or [])
    found += _mounts(facts)
    found += _faillock(facts.get("faillock") or {})
    return found


def _time(facts: Mapping[str, Any]) -> list[Finding]:
    if facts.get("services") is None:
        return []
    services = facts["services"]
    if not services:
        return [TIME("no service keeps the clock", severity=PROBLEM)]
    if len(services) > 1:
        others = [each for each in services if each != "chrony"] if "chrony" in services else services[1:]
        undo = f"systemctl disable --now {' '.join(others)}"
        return [
            TIME(f"several services keep the clock: {', '.join(services)} (usually a CIS role)", code=undo)
        ]
    if facts["synchronised"] is False:
        return [TIME(f"{services[0]} has not synchronised the clock", code="chronyc sources; timedatectl")]
    if facts["offset"] is not None and abs(facts["offset"]) > OFFSET_SECONDS:
        return [TIME(f"the clock is {facts['offset']:+.3f} s off", code="chronyc makestep")]
    return []


def _clocks(facts: Mapping[str, Any], own: Mapping[str, Any]) -> list[Finding]:
    """What is within the uncertainty of the comparison is not told."""
    limit = CEPH_SECONDS if facts.get("ceph") else APART_SECONDS
    measured = (facts.get("measured") or {}).items()
    certain = {name: (offset, give) for name, (offset, give) in measured if abs(offset) - give > limit}
    found = []
    if certain:
        worst = sorted(certain, key=lambda name: (-abs(certain[name][0]), name))
        told = [f"{shown(name)} by {certain[name][0]:+.3f} s (give or take {certain[name][1]:.3f} s)" for name in worst]
        far = abs(certain[worst[0]][0]) - certain[worst[0]][1] > STEP_SECONDS
        means = "two-factor codes of one are refused by the other" if far else "logs of members no longer fit together"
        severity = PROBLEM if far else WARNING
        found.append(APART(f"clocks of members differ from this one: {some(told)}", severity=severity, means=means))
    if (silent := facts.get("silent")) and own.get("synchronised") is not True:
        found.append(NOT_COMPARED(f"the clock was not compared with {some([shown(name) for name in silent])}"))
    return found


def _fail2ban(facts: Mapping[str, Any]) -> list[Finding]:
    found = []
    if unguarded := facts.get("unguarded"):
        found.append(
            BANS(
                f"fail2ban may ban nodes of the cluster: {some(unguarded)} (ignoreip in /etc/fail2ban)",
                means="a ban cuts the ring, migration or the proxy between nodes",
                code=f"ignoreip = 127.0.0.1/8 ::1 {' '.join(unguarded)}, in [DEFAULT] of /etc/fail2ban/jail.local",
            )
        )
    if old := facts.get("old_backend"):
        found.append(
            BACKEND(
                f"fail2ban reads /var/log/auth.log, which is not there: jail {some([shown(each) for each in old])}"
            )
        )
    return found


def _watchdog(facts: Mapping[str, Any]) -> list[Finding]:
    if not facts:
        return []
    found = []
    undo = [f"sed -i '/^RuntimeWatchdogSec/d' {shlex.quote(shown(path, 200))}" for path in facts["systemd"]]
    told = [f"RuntimeWatchdogSec in {shown(path, 120)}" for path in facts["systemd"]]
    if facts["daemon"]:
        told.append("the package watchdog")
        undo.append("apt-get purge watchdog")
    if told:
        found.append(
            WATCHDOG(
                f"the watchdog is wanted by {' and '.join(told)}",
                means="watchdog-mux cannot have it, so HA cannot fence, or the node is reset",
                code="; ".join(undo),
            )
        )
    found += _nowayout(facts)
    if not facts["understood"]:
        found.append(DRIVER("/etc/default/pve-ha-manager is more than plain assignments"))
    elif facts["module"] == "ipmi_watchdog" and facts["nmi"]:
        found.append(
            NMI("kernel.nmi_watchdog = 1 beside WATCHDOG_MODULE=ipmi_watchdog", means="the two clash")
        )
    return found


def _nowayout(facts: Mapping[str, Any]) -> list[Finding]:
    """What is not known of it was told as unread, and is judged by the files alone."""
    setting, on = facts["nowayout_set"], facts["nowayout"] is True
    if not (on or setting):
        return []
    paths = [each["path"] for each in setting]
    module = facts["module"].replace("-", "_")
    if setting:
        told = f"nowayout of {module} in {some([shown(path, 120) for path in paths])}"
        by = ", ".join(sorted({str(each["by"]) for each in setting}))
    else:
        told = "nowayout of the watchdog, which no file that was read sets,"
        by = f"usually {WATCHDOG_USUAL}, or the kernel's build"
    return [
        NOWAYOUT(
            f"{told}{' is in force' if on else ' is not known to be in force yet'} (set by: {by})",
            severity=PROBLEM if on else WARNING,
            means="watchdog-mux cannot disarm it: an orderly stop of it (an upgrade, HA off) resets the node",
            code="; ".join(_without_nowayout(module, paths)),
        )
    ]


def _without_nowayout(module: str, paths: Sequence[str]) -> list[str]:
    """Takes the option of this module away; where nothing sets it, switches it off."""
    name = module.replace("_", "[-_]")
    line = f"/^[[:space:]]*options[[:space:]]+{name}[[:space:]]/s/[[:space:]]+nowayout(=[^[:space:]]*)?//g"
    undo, boot = [], [path for path in paths if "cmdline" in path or path.startswith("/etc/default/grub")]
    for path in paths:
        file = shlex.quote(shown(path, 200))
        if path not in boot:
            undo.append(f"sed -Ei '{line}' {file}")
        elif path != "/proc/cmdline":
            undo.append(f"sed -Ei 's/ ?\\b{name}\\.nowayout(=[[:alnum:]]*)?//g' {file}")
    if not paths and module:
        undo.append(f"echo 'options {module} nowayout=0' >> /etc/modprobe.d/{module}.conf")
    if len(boot) < len(paths) or not paths:
        undo.append("update-initramfs -u")
    if boot:
        undo.append("update-grub" if any("grub" in path for path in boot) else "proxmox-boot-tool refresh")
    return undo


def _umask(places: list[Mapping[str, Any]]) -> list[Finding]:
    if not places:
        return []
    told = some([f"umask {each['value']} in {shown(each['path'], 120)}" for each in places], 8)
    by = sorted({str(each["by"]) for each in places})
    undo = "; ".join(
        f"sed -Ei 's/(umask[ =]+|UMASK[[:space:]]+){each['value']}/\\1022/' {shlex.quote(shown(each['path'], 200))}"
        for each in places
    )
    breaks = "containers created in such a session get /etc without rights for others, so neither DNS nor apt inside"
    return [UMASK(f"{told} (set by: {', '.join(by)})", means=breaks, code=undo)]


def _without_noexec(path: str, points: Sequence[str]) -> str:
    """Takes the option off the lines of these mount points, and off no other."""
    file = shlex.quote(shown(path, 200))
    if path.endswith(".mount"):
        return f"sed -Ei '/^Options[[:space:]]*=/{{s/,noexec\\b//; s/\\bnoexec,//}}' {file}"
    parts = [
        f"\\#^[^[:space:]]+[[:space:]]+{point}[[:space:]]#{{s/,noexec\\b//; s/\\bnoexec,//}}"
        for point in dict.fromkeys(points)
    ]
    return f"sed -Ei '{'; '.join(parts)}' {file}"


def _mounts(facts: Mapping[str, Any]) -> list[Finding]:
    found = []
    if noexec := facts.get("mounts"):
        points = list(dict.fromkeys(each["point"] for each in noexec if each["where"] == "running"))
        files = list(dict.fromkeys(each["where"] for each in noexec if each["where"] != "running"))
        undo = [_without_noexec(path, [each["point"] for each in noexec if each["where"] == path]) for path in files]
        undo += [f"mount -o remount,exec {point}" for point in points]
        found.append(
            NOEXEC(
                f"{_places(noexec)} (set by: usually {USUAL})",
                means="package scripts, vzdump's temporary directory and hook scripts fail",
                code="; ".join(undo),
            )
        )
    if hidden := facts.get("hidepid"):
        undo = (
            ["sed -Ei 's/,?hidepid=[a-z0-9]+//' /etc/fstab"]
            if any(each["where"] != "running" for each in hidden)
            else []
        )
        undo += ["mount -o remount,hidepid=0 /proc"]
        found.append(
            HIDEPID(
                f"{_places(hidden)} (set by: usually dev-sec)",
                means="lxc-attach and monitoring fail",
                code="; ".join(undo),
            )
        )
    return found


def _places(mounts: list[Mapping[str, str]]) -> str:
    return some(
        [
            f"{each['point']} is mounted {shown(each['option'])}"
            if each["where"] == "running"
            else f"{each['point']} {shown(each['option'])} in {shown(each['where'], 120)}"
            for each in mounts
        ],
        8,
    )


def _faillock(facts: Mapping[str, Any]) -> list[Finding]:
    if not facts:
        return []
    found = []
    active, root = facts["active"], facts["root"]
    if root:
        files = " ".join(shlex.quote(path) for path in root)
        found.append(
            FAILLOCK(
                f"even_deny_root in {', '.join(root)}{'' if active else ', not in use by PAM'} (set by: {facts['by']})",
                severity=PROBLEM if active else WARNING,
                means="anyone who can reach the web interface locks root@pam out of it and of the console",
                code=f"sed -Ei 's/ even_deny_root//; /^ *even_deny_root/d' {files}; faillock --user root --reset",
            )
        )
    if active and facts["deny"] is not None and 0 < facts["deny"] <= DENY_FEW:
        found.append(
            DENY(
                f"deny = {facts['deny']} in {facts['conf']} or {', '.join(active)} (set by: {facts['by']})",
                means="anyone locks users of the realm pam out",
            )
        )
    return found
