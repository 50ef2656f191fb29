"""The part of an image build that needs root: unpack, install, settle, make the file systems.

Started by :mod:`lab.image` as ``python3 -m lab.image_root SPEC`` inside namespaces of its own; SPEC is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import initrd
from .packages.build import COMPONENT, ORIGIN
from .system import telling

# Nothing may write to the dedicated disk, or burn CPU, on an idle node; and what is not needed does not boot.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "logrotate.timer", "man-db.timer", "systemd-tmpfiles-clean.timer",
    "systemd-random-seed.service", "systemd-pstore.service", "systemd-rfkill.socket", "systemd-rfkill.service",
    "systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "systemd-update-done.service",
    "systemd-boot-random-seed.service", "ldconfig.service", "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service", "systemd-binfmt.service", "systemd-machine-id-commit.service",
    "getty@tty1.service", "serial-getty@ttyS0.service", "getty-static.service", "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path", "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount", "nvmefc-boot-connections.service", "nvmf-autoconnect.service",
    "nvmf-connect-nbft.service", "systemd-network-generator.service", "systemd-udev-load-credentials.service",
    "systemd-networkd-wait-online.service", "smartmontools.service", "smartd.service", "corosync-notifyd.service",
    "modprobe@drm.service", "modprobe@efi_pstore.service",
)  # fmt: skip
# There for what a role or a test switches on: until then they cost no time at boot and write nothing.
OFF = (
    "auditd.service", "audit-rules.service", "chrony.service", "chronyd.service", "nftables.service",
    "unattended-upgrades.service",
)  # fmt: skip
# Run at each boot and each reload of systemd, a second under emulation, and make nothing of these guests.
GENERATORS = (
    "systemd-debug-generator", "systemd-getty-generator", "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator", "systemd-rc-local-generator", "systemd-run-generator",
    "systemd-ssh-generator", "systemd-system-update-generator", "systemd-tpm2-generator",
)  # fmt: skip
#: Where the doubles are in the repository of a URL.
DOUBLES_AT = "doubles"
ENABLED = ("ssh.service", "lab-identity.service", "lab-network.service", "lab-agent.service")


class Failed(Exception):
    """A command failed; the text says which and what it said."""


def command(*argv: str | os.PathLike[str]) -> None:
    """Run it, with its output in the log. Raises Failed."""
    environment = dict(
        os.environ,
        LC_ALL="C.UTF-8",
        DEBIAN_FRONTEND="noninteractive",
        PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    )
    words = [os.fspath(word) for word in argv]
    print("+", *words, flush=True)
    done = subprocess.run(
        words,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        shown = words[2:] if words[0] == "chroot" else words
        raise Failed(f"'{' '.join(shown)}' failed with status {done.returncode}: {telling(done.stdout)}")


def overlay(source: Path, root: Path) -> None:
    """Copy the lab's own files into the tree, root-owned, executable only where the original is."""
    for path in sorted(source.rglob("*")):
        target = root / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            shutil.copyfile(path, target)
            target.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def apt_settings(repository: dict[str, Any], release: str, at: str = "/srv/pve-repo") -> tuple[str, str]:
    """The .sources file and the preferences for a build: what the URL of a repository has comes before any double."""

    def source(uri: str, components: Sequence[str], key: str) -> str:
        listed = " ".join(components)
        return f"Types: deb\nURIs: {uri}\nSuites: {release}\nComponents: {listed}\nSigned-By: {key}\n"

    text = source(repository["url"] or f"file:{at}", repository["components"], f"{at}/key.asc")
    if not repository["url"]:
        return text, ""
    doubles = f"{at}/{DOUBLES_AT}"
    text += "\n" + source(f"file:{doubles}", [COMPONENT], f"{doubles}/key.asc")
    return text, f"Package: *\nPin: release o={ORIGIN}\nPin-Priority: 50\n"


def install(root: Path, spec: dict[str, Any]) -> None:
    """Install the Proxmox packages from the repository disk's content, as an installer would: nothing is started."""
    repository = spec["repository"]
    sources = root / "etc/apt/sources.list.d/lab-build.sources"
    pins = root / "etc/apt/preferences.d/lab-build"
    for path, text in zip((sources, pins), apt_settings(repository, spec["release"]), strict=True):
        path.write_text(text)
    mount = root / "srv/pve-repo"
    command("mount", "--bind", repository["served"], mount)
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    debian = root / "etc/apt/sources.list"
    if spec["from_mirror"]:  # real packages depend on more than the image holds
        shutil.copyfile(root / "etc/apt/lab-mirror.list", debian)
        shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    apt = ("chroot", root, "apt-get", "-q", "-y", "-o", "APT::Sandbox::User=root", "--no-install-recommends")
    command(*apt, "update")
    command(*apt, "install", *spec["packages"])
    command("umount", mount)
    policy.unlink()
    sources.unlink()
    pins.unlink()
    debian.unlink(missing_ok=True)


def switch_off(root: Path) -> None:
    """By hand: systemctl refuses a unit that a release does not have."""
    units = root / "etc/systemd/system"
    for folder in (units, *units.glob("*.wants"), *units.glob("*.requires")):
        for unit in OFF:  # not by glob: it passes over links that lead nowhere, as these do outside the tree
            (folder / unit).unlink(missing_ok=True)


def settle(root: Path, spec: dict[str, Any]) -> None:
    """Units, apt sources and leftovers."""

    def systemctl(verb: str, *units: str) -> None:
        command("chroot", root, "systemctl", verb, *units)

    for unit in MASKED:  # by hand: systemctl refuses some names that one release has and the other has not
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    generators = root / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for generator in GENERATORS:
        (generators / generator).symlink_to("/dev/null")
    systemctl("enable", *ENABLED)
    systemctl("set-default", "multi-user.target")
    if spec["kind"] == "pve":
        # Proxmox's corosync brings no configuration; Debian's example would be imported into the cluster's database.
        (root / "etc/corosync/corosync.conf").unlink(missing_ok=True)
        systemctl("enable", "corosync.service")
    else:
        # There for what a role installs.
        systemctl("disable", "corosync.service", "rrdcached.service")
    switch_off(root)
    for name in ("etc/hostname", "etc/resolv.conf"):
        (root / name).unlink(missing_ok=True)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/machine-id").write_text("")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for directory in ("var/lib/apt/lists", "var/cache/apt", "var/log/journal"):
        shutil.rmtree(root / directory, ignore_errors=True)
        (root / directory).mkdir(parents=True)
    (root / "var/lib/apt/lists/partial").mkdir()


def build(spec: dict[str, Any]) -> None:
    out = Path(spec["out"])
    root = out / "tree"
    root.mkdir()
    command("tar", "-C", root, "--numeric-owner", "--exclude=./dev/*", "-xf", spec["base"])
    shutil.move(root / "etc/apt/sources.list", root / "etc/apt/lab-mirror.list")
    (root / "srv/pve-repo").mkdir(parents=True)
    overlay(Path(spec["guest"]), root)
    command("mount", "--make-rprivate", "/")
    command("mount", "-t", "proc", "proc", root / "proc")
    command("mount", "--rbind", "/dev", root / "dev")
    try:
        if spec["packages"]:
            install(root, spec)
        settle(root, spec)
    finally:
        command("umount", "-l", root / "dev")
        command("umount", root / "proc")
    (root / "etc/apt/lab-mirror.list").unlink()

    kernel = next(iter((root / "boot").glob("vmlinuz-*")))
    shutil.copyfile(kernel, out / "vmlinuz")
    (out / "initrd").write_bytes(initrd.build(root))
    shutil.rmtree(root / "boot")
    (root / "boot").mkdir()
    # Inode tables are written here and not by the guest's kernel later: an idle disk must be silent.
    eager = ("-E", "lazy_itable_init=0,lazy_journal_init=0", "-N", "65536", "-m", "1")
    command(
        "mkfs.ext4",
        "-q",
        "-L",
        "lab-var",
        *eager,
        "-d",
        root / "var/lib",
        out / "var.img",
        f"{spec['var_mib']}M",
    )
    shutil.rmtree(root / "var/lib")
    (root / "var/lib").mkdir()
    command("mkfs.ext4", "-q", "-L", "lab-root", *eager, "-d", root, out / "root.img", f"{spec['root_mib']}M")
    shutil.rmtree(root)
    for path in out.iterdir():
        path.chmod(0o644)


def main() -> int:
    try:
        build(json.loads(sys.argv[1]))
    except (Failed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
