# SPDX-License-Identifier: Apache-2.0
"""Kernel settings and modules that harden a node and that nothing of Proxmox VE needs otherwise.

Never set: what bridges, routed guests, SDN, containers and passthrough need (the keys that the core ``sysctl`` watches), and what
cannot be taken back in a running kernel (``kexec_load_disabled``, ``unprivileged_bpf_disabled`` 1, ``modules_disabled``,
``ptrace_scope`` 3). sctp stays: the lock manager of shared LVM, GFS2 and OCFS2 (dlm) is built on it.

A value is only ever made stricter: what runs stricter stays so, and a file that sets a stricter one has its way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base import sysctl_files
from ..base.errors import PveguardError
from ..base.managed_file import FileSpec
from .change_parts import Around, Facts, Options, Work, file_states, is_on, same
from .looking import Looking, area, lines

NAME = "sysctl"
FILE = "/etc/sysctl.d/90-pveguard-hardening.conf"
MODPROBE = "/etc/modprobe.d/pveguard-hardening.conf"
#: The higher the value, the stricter.
LOCAL = {
    "fs.protected_fifos": 1,
    "fs.protected_hardlinks": 1,
    "fs.protected_regular": 1,
    "fs.protected_symlinks": 1,
    "kernel.dmesg_restrict": 1,
    "kernel.kptr_restrict": 1,
    "kernel.randomize_va_space": 2,
    "kernel.yama.ptrace_scope": 1,
}
#: Of what the node takes as a host. Nothing is routed otherwise by it: redirects only shorten a way that works without them.
ANSWERS = {
    "net.ipv4.icmp_echo_ignore_broadcasts": 1,
    "net.ipv4.icmp_ignore_bogus_error_responses": 1,
    "net.ipv4.tcp_syncookies": 1,
}
#: The lower the value, the stricter.
REDIRECTS = {
    f"net.{family}.conf.{which}.{key}": 0
    for family, keys in (
        ("ipv4", ("accept_redirects", "accept_source_route", "secure_redirects", "send_redirects")),
        ("ipv6", ("accept_redirects", "accept_source_route")),
    )
    for which in ("all", "default")
    for key in keys
}
KEYS = {**LOCAL, **ANSWERS, **REDIRECTS}
#: Network protocols that nothing of Proxmox VE or Debian's services uses.
MODULES = ("dccp", "rds", "tipc")
_HEAD = "# Managed by pveguard (node_hardening_sysctl): nothing that bridges, SDN, containers or passthrough need otherwise."


@area
def look(looking: Looking) -> dict[str, Any]:
    """``runtime`` ({key: value} of KEYS that the kernel has), ``stricter`` (keys that another file sets stricter), ``looser``
    (path, key, value of other files that would have the last word or are the administrator's), ``loaded`` (modules that are in
    use or wanted by somebody), ``files``.
    """
    runtime = {}
    for key in KEYS:
        value = looking.value(f"/proc/sys/{key.replace('.', '/')}")
        if value is not None and value.lstrip("-").isdigit():
            runtime[key] = int(value)
    if not runtime:
        looking.cannot("/proc/sys", "holds none of the settings")
    stricter, looser = _others(looking)
    return {
        "installed": True,
        "runtime": runtime,
        "stricter": stricter,
        "looser": looser,
        "loaded": _loaded(looking),
        "files": file_states([FILE, MODPROBE], looking.root),
    }


def is_stricter(key: str, value: str | int, than: int) -> bool:
    """Whether a value is at least as strict; what is no number is not."""
    text = str(value)
    if not text.lstrip("-").isdigit():
        return False
    return int(text) <= than if key in REDIRECTS else int(text) >= than


def _others(looking: Looking) -> tuple[list[str], list[dict[str, str]]]:
    for folder in sysctl_files.FOLDERS:
        for path in looking.names(folder, ".conf"):
            # What cannot be read is not known, and told by this.
            looking.text(path)
    main = looking.text("/etc/sysctl.conf")
    set_by = [
        line
        for line in sysctl_files.in_order(looking.root)
        # Debian 12 has a link to the main file there, which is told by its own name.
        if line.path != FILE
        and (main is None or looking.at(line.path).resolve() != looking.at("/etc/sysctl.conf").resolve())
    ]
    if main is not None:
        # Debian 13 does not read it at boot any more; `sysctl -p` and what Ansible writes still mean it.
        set_by += [sysctl_files.Line("/etc/sysctl.conf", *pair) for pair in sysctl_files.parse(main).items()]
    stricter, looser = [], []
    for path, key, value in set_by:
        if key not in KEYS or value == str(KEYS[key]):
            continue
        if is_stricter(key, value, KEYS[key]):
            stricter.append(key)
        elif not path.startswith("/usr/lib/") or path.rpartition("/")[2] > FILE.rpartition("/")[2]:
            looser.append({"path": path, "key": key, "value": value})
    return sorted(set(stricter)), looser


def _loaded(looking: Looking) -> list[str]:
    loaded = {line.split()[0] for line in (looking.text("/proc/modules") or "").split("\n") if line.strip()}
    wanted: set[str] = set()
    folders = (
        "/etc/modules-load.d",
        "/run/modules-load.d",
        "/usr/local/lib/modules-load.d",
        "/usr/lib/modules-load.d",
    )
    for _, text in [*looking.texts(folders, ".conf"), ("/etc/modules", looking.text("/etc/modules") or "")]:
        wanted.update(line.split()[0] for line in lines(text, "#;"))
    return [
        name
        for name in MODULES
        if any(each == name or each.startswith(f"{name}_") for each in loaded | wanted)
        or looking.exists(f"/sys/module/{name}")
    ]


def wanted(options: Options, facts: Facts) -> dict[str, int]:
    """What is set: keys that this kernel has and nobody sets stricter."""
    keys = {**LOCAL, **ANSWERS, **(REDIRECTS if is_on(options.get("redirects", True)) else {})}
    runtime, stricter = facts["runtime"], facts["stricter"]
    return {key: value for key, value in keys.items() if key in runtime and key not in stricter}


def owned(options: Options, facts: Facts, root: Path) -> list[FileSpec]:
    text = "".join(
        f"{line}\n"
        for line in [_HEAD, *(f"{key} = {value}" for key, value in wanted(options, facts).items())]
    )
    specs = [FileSpec(FILE, text)]
    modules = (
        [name for name in MODULES if name not in facts["loaded"]]
        if is_on(options.get("modules", True))
        else []
    )
    if modules:
        off = "".join(f"install {name} /bin/false\n" for name in modules)
        specs.append(FileSpec(MODPROBE, f"# Managed by pveguard (node_hardening_sysctl_modules).\n{off}"))
    return specs


def differs(options: Options, facts: Facts) -> list[str]:
    now = {key: facts["runtime"][key] for key in wanted(options, facts)}
    found = [
        f"set {key} from {value} to {KEYS[key]}"
        for key, value in now.items()
        if not is_stricter(key, value, KEYS[key])
    ]
    if not same(facts["files"], owned(options, facts, Path("/"))):
        found.append("keep kernel settings over a boot" if not found else "and over a boot")
    return found


def advice(options: Options, facts: Facts) -> list[str]:
    if not is_on(options.get("modules", True)):
        return []
    return [f"the kernel module {name} is in use, and stays" for name in facts["loaded"]]


def refuse(options: Options, facts: Facts, around: Around) -> None:
    keys = wanted(options, facts)
    told = [line for line in facts["looser"] if line["key"] in keys]
    if told:
        places = "; ".join(f"{line['path']} sets {line['key']} = {line['value']}" for line in told)
        raise PveguardError(
            f"{places}, which is looser than what {FILE} is to set, and somebody may need it: take the lines out there, or set "
            f"node_hardening_sysctl: false (node_hardening_sysctl_redirects: false for redirects alone)"
        )


def live(facts: Facts) -> dict[str, int]:
    return dict(facts["runtime"])


def activate(work: Work) -> None:
    if work.options is None:
        # What somebody has set since stays.
        was = {
            key: value
            for key, value in (work.was or {}).items()
            if work.facts["runtime"].get(key) == KEYS.get(key)
        }
        _set(work, was)
        return
    now = work.facts["runtime"]
    _set(
        work,
        {
            key: value
            for key, value in wanted(work.options, work.facts).items()
            if not is_stricter(key, now[key], value)
        },
    )


def _set(work: Work, values: dict[str, int]) -> None:
    for key, value in values.items():
        place = work.at(f"/proc/sys/{key.replace('.', '/')}")
        if place.exists() and place.read_text().strip() != str(value):
            place.write_text(f"{value}\n")
            work.done.append(f"{key} = {value}")
