# SPDX-License-Identifier: Apache-2.0
"""What is looked at and never changed: fail2ban, watchdog, time, umask, mounts, faillock, hidepid."""

from __future__ import annotations

import configparser
import ipaddress
import re

from ..base.mountinfo import mountinfo
from ..base.systemd import properties_of
from ..pmxcfs import members as members_file
from . import clocks, peers
from .looking import Facts, Looking, area, assignments, lines, settings, writer
from .sysctl import MODPROBE_FOLDERS

USUAL = "dev-sec or a CIS role"
#: Where package scripts, vzdump and hook scripts run what they have put there.
EXECUTED = ("/tmp", "/var", "/var/tmp")
#: Files of a login, or of what creates users, that may set a umask.
UMASK_FILES = (
    "/etc/login.defs",
    "/etc/profile",
    "/etc/bash.bashrc",
    "/root/.profile",
    "/root/.bashrc",
    "/root/.bash_profile",
)
PAM_SESSIONS = (
    "/etc/pam.d/common-session",
    "/etc/pam.d/common-session-noninteractive",
    "/etc/pam.d/login",
    "/etc/pam.d/sshd",
)
PAM_AUTH = (
    "/etc/pam.d/common-auth",
    "/etc/pam.d/common-account",
    "/etc/pam.d/sshd",
    "/etc/pam.d/login",
    "/etc/pam.d/proxmox-ve-auth",
)
TIME_UNITS = (
    "chrony.service",
    "systemd-timesyncd.service",
    "ntp.service",
    "ntpsec.service",
    "openntpd.service",
)
MEMBERS = "/etc/pve/.members"
#: Roles known here leave it alone.
WATCHDOG_USUAL = "hand, after a guide to watchdogs"
#: The device that watchdog-mux holds, /dev/watchdog, is the first one.
WATCHDOG_DEVICE = "/sys/class/watchdog/watchdog0"


@area
def look(looking: Looking) -> Facts:
    """A key each: ``fail2ban``, ``watchdog``, ``time``, ``clocks``, ``umask``, ``mounts``, ``faillock``, ``hidepid``."""
    units = _units(looking)
    own, members = _members(looking)
    return {
        "fail2ban": _fail2ban(looking, list(members.values())),
        "watchdog": _watchdog(looking),
        "time": _time(looking, units),
        "clocks": {
            **clocks.between(looking.root, {name: each for name, each in members.items() if name != own}),
            "ceph": looking.exists("/etc/pve/ceph.conf"),
        },
        "umask": _umask(looking),
        **_mounts(looking),
        "faillock": _faillock(looking),
    }


def _units(looking: Looking) -> dict[str, dict[str, str]]:
    try:
        told = properties_of(TIME_UNITS, ["ActiveState", "UnitFileState"], looking.run)
    except OSError:
        told = {}
    found = {unit: values for unit, values in told.items() if values.get("ActiveState")}
    if not found:
        looking.cannot("systemctl", "tells of no unit")
    return found


# fail2ban


def _fail2ban(looking: Looking, members: list[str]) -> Facts:
    """``installed``; ``jails`` that are on; ``ignored`` (addresses never banned; null where not understood); ``unguarded``
    (members
    that are not among them); ``old_backend`` (jails that read a log file that is not there)."""
    paths = [
        "/etc/fail2ban/jail.conf",
        *looking.names("/etc/fail2ban/jail.d", ".conf"),
        "/etc/fail2ban/jail.local",
    ]
    paths += looking.names("/etc/fail2ban/jail.d", ".local")
    texts = [(path, text) for path in paths if (text := looking.text(path)) is not None]
    if not texts:
        return {"installed": False}
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True, inline_comment_prefixes=("#",))
    for path, text in texts:
        try:
            parser.read_string(text)
        except configparser.Error as error:
            looking.cannot(path, f"not understood ({type(error).__name__})")
    jails = sorted(name for name in parser.sections() if _yes(parser.get(name, "enabled", fallback="false")))
    ignored = [each for each in re.split(r"[\s,]+", parser.defaults().get("ignoreip") or "") if each]
    unguarded = [address for address in members if jails and not _within(address, ignored)]
    gone = not looking.exists("/var/log/auth.log")
    old = [
        name
        for name in jails
        if gone
        and name == "sshd"
        and (parser.get(name, "backend", fallback="") or "auto") not in ("systemd", "%(sshd_backend)s")
    ]
    return {"installed": True, "jails": jails[:40], "unguarded": unguarded, "old_backend": old}


def _yes(value: str | None) -> bool:
    return (value or "").strip().lower() in ("true", "yes", "1", "on")


def _within(address: str, ignored: list[str]) -> bool:
    its = ipaddress.ip_address(address)
    for each in ignored:
        try:
            net = ipaddress.ip_network(each, strict=False)
        except ValueError:
            continue
        if its.version == net.version and its in net:
            return True
    return False


def _members(looking: Looking) -> tuple[str, dict[str, str]]:
    """The name of this node, and the addresses of all members by their names."""
    text = looking.text(MEMBERS)
    if text is None or not looking.exists("/etc/pve/corosync.conf"):
        return "", {}
    try:
        said = members_file.parse(text)
        found = {name: str(ipaddress.ip_address(each)) for name, each in peers.addresses(said).items()}
        return str(said.get("nodename") or ""), found
    except (ValueError, AttributeError):
        looking.cannot(MEMBERS, "no list of members with their addresses")
        return "", {}


# The watchdog


def _watchdog(looking: Looking) -> Facts:
    """``module``, ``understood`` (the file that names it), ``nowayout`` (it is in force; null where no watchdog is loaded or
    nothing tells), ``nowayout_set`` (files that set it for the module: path, by), ``nmi`` (it is on), ``systemd`` (files that let
    systemd hold the device), ``daemon`` (the package watchdog is set up)."""
    said = assignments(looking.text("/etc/default/pve-ha-manager") or "")
    module = said.values.get("WATCHDOG_MODULE") or "softdog"
    module = module if re.fullmatch(r"[\w-]+", module) else ""
    held: list[str] = []
    for path in ("/etc/systemd/system.conf", *looking.names("/etc/systemd/system.conf.d", ".conf")):
        for line in lines(looking.text(path) or "", "#;"):
            if match := re.match(r"RuntimeWatchdogSec\s*=\s*(\S+)", line):
                held = [each for each in held if each != path]
                if match[1] not in ("0", "off", "infinity", "default"):
                    held.append(path)
    name = module.replace("-", "_")
    return {
        "module": module,
        "understood": not said.strange,
        "nowayout": _nowayout(looking, name),
        "nowayout_set": _nowayout_set(looking, name) if name else [],
        "nmi": looking.value("/proc/sys/kernel/nmi_watchdog") == "1",
        "systemd": held,
        "daemon": looking.exists("/usr/sbin/watchdog"),
    }


def _nowayout(looking: Looking, name: str) -> bool | None:
    """Most drivers hide their parameter and tell it of the device; ipmi_watchdog has no device in the class."""
    places = [f"{WATCHDOG_DEVICE}/nowayout"]
    if name:
        places.append(f"/sys/module/{name}/parameters/nowayout")
    before = len(looking.unread)
    told: list[bool] = []
    for path in places:
        if (value := looking.value(path)) is None:
            continue
        if value in ("1", "Y", "0", "N"):
            told.append(value in ("1", "Y"))
        else:
            looking.cannot(path, "neither on nor off")
    loaded = ("/dev/watchdog", WATCHDOG_DEVICE, *([f"/sys/module/{name}"] if name else []))
    if not told and len(looking.unread) == before and any(looking.exists(path) for path in loaded):
        looking.cannot(places[0], "nothing tells whether the watchdog has nowayout")
    # One that could not be read may be the one that is on.
    return True if any(told) else False if told and len(looking.unread) == before else None


def _nowayout_set(looking: Looking, name: str) -> list[dict[str, str]]:
    """Nothing where what comes last switches it off."""
    found: list[tuple[str, str, bool]] = []
    for path, text in looking.texts(MODPROBE_FOLDERS, ".conf"):
        for line in lines(text.replace("\\\n", " ")):
            match line.split():
                case ["options", module, *options] if module.replace("-", "_") == name:
                    by = writer(path, text, WATCHDOG_USUAL)
                    found += [(path, by, on) for each in options if (on := _switches_on(each)) is not None]
    boot = ("/proc/cmdline", "/etc/kernel/cmdline", *looking.names("/etc/default/grub.d", ".cfg"), "/etc/default/grub")
    for path in boot:
        for word in re.split(r"[\s\"']+", "\n".join(lines(looking.text(path) or ""))):
            module, _, option = word.partition(".")
            if module.replace("-", "_") == name and (on := _switches_on(option)) is not None:
                found.append((path, f"usually {WATCHDOG_USUAL}", on))
    if not found or not found[-1][2]:
        return []
    return [{"path": path, "by": by} for path, by in dict.fromkeys((path, by) for path, by, on in found if on)]


def _switches_on(option: str) -> bool | None:
    """None for another option; without a value the kernel takes it for on."""
    key, equals, value = option.partition("=")
    if key != "nowayout":
        return None
    return not equals or value[:1] in ("y", "Y", "t", "T", "1") or value.lower() == "on"


# Time


def _time(looking: Looking, units: dict[str, dict[str, str]]) -> Facts:
    """``services`` that run, null where systemd does not tell; ``offset`` of this clock in seconds and
    ``synchronised``, null where nothing tells them."""
    running = sorted(
        name.removesuffix(".service")
        for name in TIME_UNITS
        if units.get(name, {}).get("ActiveState") == "active"
    )
    offset: float | None = None
    synchronised: bool | None = None
    if "chrony" in running:
        fields = (looking.output(["chronyc", "-c", "tracking"]) or "").strip().split(",")
        # Reference, its address, stratum, its time, the clock's offset; the last one is the leap status.
        try:
            offset, synchronised = float(fields[4]), fields[-1] != "Not synchronised" and fields[2] != "0"
        except (ValueError, IndexError):
            looking.cannot("chronyc", "its answer is not understood")
    elif running:
        said = (looking.output(["timedatectl", "show", "-p", "NTPSynchronized", "--value"]) or "").strip()
        synchronised = {"yes": True, "no": False}.get(said)
        if synchronised is None:
            looking.cannot("timedatectl", "does not tell whether the clock is synchronised")
    return {"services": running if units else None, "offset": offset, "synchronised": synchronised}


# umask


def _umask(looking: Looking) -> list[Facts]:
    """Places that set a umask that takes rights from others: path, value, by."""
    found = []
    for path in [
        *UMASK_FILES,
        *looking.names("/etc/profile.d", ".sh"),
        *PAM_SESSIONS,
        *looking.names("/etc/login.defs.d"),
    ]:
        text = looking.text(path) or ""
        for line in lines(text):
            match = re.match(r"(?:umask\s+|UMASK\s+)([0-7]{1,4})\b", line) or re.search(
                r"pam_umask\.so.*\bumask=([0-7]{1,4})\b", line
            )
            # 5: others may read and enter.
            if match and int(match[1], 8) & 0o005:
                found.append({"path": path, "value": match[1], "by": writer(path, text, USUAL)})
    return found


# Mounts and hidepid


def _mounts(looking: Looking) -> Facts:
    """``noexec`` and ``hidepid``: where (``running`` or a file), the mount point, the option."""
    noexec: list[dict[str, str]] = []
    hidden: list[dict[str, str]] = []
    mounts = mountinfo(str(looking.root))
    if not mounts:
        looking.cannot("/proc/self/mountinfo", "no mounts")
    # What was mounted last at a place is what is seen there.
    for point, mount in {each["mount_point"]: each for each in mounts}.items():
        if point in EXECUTED and "noexec" in mount["mount_options"].split(","):
            noexec.append({"where": "running", "point": point, "option": "noexec"})
        if point == "/proc" and (
            option := hidepid(f"{mount['mount_options']},{mount['filesystem_options']}")
        ):
            hidden.append({"where": "running", "point": point, "option": option})
    for line in lines(looking.text("/etc/fstab") or ""):
        fields = line.split()
        if len(fields) < 4:
            continue
        point = fields[1].rstrip("/") or "/"
        if point in EXECUTED and "noexec" in fields[3].split(","):
            noexec.append({"where": "/etc/fstab", "point": point, "option": "noexec"})
        if point == "/proc" and (option := hidepid(fields[3])):
            hidden.append({"where": "/etc/fstab", "point": point, "option": option})
    for path in ["/etc/systemd/system/tmp.mount", *looking.names("/etc/systemd/system/tmp.mount.d", ".conf")]:
        for line in lines(looking.text(path) or "", "#;"):
            if re.match(r"Options\s*=.*\bnoexec\b", line):
                noexec.append({"where": path, "point": "/tmp", "option": "noexec"})
    return {"mounts": noexec, "hidepid": hidden}


def hidepid(options: str) -> str:
    """The option where it hides processes, else empty."""
    for each in options.split(","):
        name, _, value = each.partition("=")
        if name == "hidepid" and value not in ("0", "off", ""):
            return f"hidepid={value[:20]}"
    return ""


# faillock


def _faillock(looking: Looking) -> Facts:
    """``active`` (files of PAM that use it), ``root`` (files in which it locks root), ``deny`` (the lowest number, null:
    default),
    ``by``, ``conf``."""
    conf = "/etc/security/faillock.conf"
    text = looking.text(conf) or ""
    values = settings(text)
    active, root = [], []
    deny = [int(values["deny"])] if values.get("deny", "").isdigit() else []
    for path in PAM_AUTH:
        for line in lines(looking.text(path) or ""):
            if "pam_faillock.so" in line or "pam_tally2.so" in line:
                active.append(path)
                if "even_deny_root" in line.split():
                    root.append(path)
                deny += [int(each) for each in re.findall(r"\bdeny=([0-9]{1,6})\b", line)]
    if "even_deny_root" in values:
        root.append(conf)
    return {
        "active": sorted(set(active)),
        "root": sorted(set(root)),
        "deny": min(deny) if deny else None,
        "by": writer(conf, text, USUAL),
        "conf": conf,
    }
