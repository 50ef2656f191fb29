"""KVM or TCG: a device node says little, so KVM counts only when a probe guest boots and works."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from . import layout
from .image import Image
from .initrd import PROBE_OK
from .progress import say
from .system import run, write_whole

TCG = ("-accel", "tcg,thread=multi", "-cpu", "max")
KVM = ("-accel", "kvm", "-cpu", "host")
PROBE_SECONDS = 10.0


def qemu_version() -> str:
    return run(["qemu-system-x86_64", "--version"], what="qemu-system-x86_64").splitlines()[0]


def probe_kvm(
    image: Image, device: Path = Path("/dev/kvm"), seconds: float = PROBE_SECONDS
) -> tuple[bool, str]:
    """Boot the real kernel under KVM to its user space; returns the verdict and the reason."""
    if not device.exists():
        return False, f"{device} is missing"
    if not os.access(device, os.R_OK | os.W_OK):
        return False, f"no permission for {device}"
    argv = ["qemu-system-x86_64", *KVM, "-nodefaults", "-no-user-config", "-display", "none", "-m", "256",
            "-no-reboot", "-serial", "stdio", "-kernel", str(image.kernel), "-initrd", str(image.initrd),
            "-append", "console=ttyS0 lab.probe=1 panic=-1"]  # fmt: skip
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
            text = output.decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return False, f"the probe guest was not up after {seconds:.0f} s"
    if PROBE_OK in text:
        return True, "the probe guest worked"
    lines = [line for line in text.splitlines() if "KVM" in line or "kvm" in line]
    return False, f"the probe guest failed{': ' + lines[0].strip() if lines else ''}"


def choose(image: Image) -> str:
    """``kvm`` or ``tcg``. ``PVEGUARD_LAB_ACCEL`` decides when set; else the cached verdict of one probe per boot."""
    forced = os.environ.get("PVEGUARD_LAB_ACCEL", "")
    if forced in ("kvm", "tcg"):
        return forced
    cache = layout.lab_root() / "accel.json"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = f"{boot} {qemu_version()}"
    try:
        known = json.loads(cache.read_text())
        if known.get("key") == key:
            return str(known["accel"])
    except (OSError, ValueError, KeyError):
        pass
    good, reason = probe_kvm(image)
    accel = "kvm" if good else "tcg"
    say(f"{'KVM' if good else 'emulation (TCG)'}: {reason}")
    write_whole(cache, json.dumps({"key": key, "accel": accel, "reason": reason}) + "\n")
    return accel


def arguments(accel: str) -> tuple[str, ...]:
    return KVM if accel == "kvm" else TCG
