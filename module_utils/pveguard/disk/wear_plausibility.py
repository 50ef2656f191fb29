"""Does a drive's count of what was written to it agree with what else is known of the drive?

A count in the wrong unit, one that wrapped and one that was never kept look like any other. What they cannot do is agree with
the hours the drive ran, its size, its wear and the erasures of its blocks. The bounds are wide: each is of what no drive can
do, or of what no drive in use does, so that a count within them is not proved, and one beyond them is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..base.units import bytes_text, number_text

MIB = 1 << 20
GIB = 1 << 30

#: Bytes a second that the fastest interface of a kind carries: PCIe 5.0 x4, SATA 6 Gbit/s, two ports of SAS 24 Gbit/s.
INTERFACE = {"nvme": 16e9, "sata": 6e8, "sas": 4.8e9}
#: More hours than any solid-state drive can have been on; counts beyond it are in other units (or wrapped).
MAX_HOURS = 250_000
#: Full writes of a drive in its first hour, after which it says 1.
FIRST_HOUR_WRITES = 4
#: What a drive in use is written to in an hour of its first thousand, and in one of the others; an idle system with a
#: journal writes some ten times as much. Drives that have been on for less than MIN_HOURS may not have been used yet.
MIN_HOURS = 100
FIRST_HOURS, FIRST_RATE, LATER_RATE = 1000, MIB, 64 * 1024
#: The kernel's count since boot may run ahead of the drive's, which some update hourly.
BOOT_SLACK = 10 * GIB
#: Full writes of the drive in its rated life: less than one at an amplification of a hundred is no flash that was ever
#: sold, more than so many neither (100 drive writes a day for five years).
MAX_LIFE_WRITES = 200_000
#: Bytes programmed by bytes of the host. Above only a drive that is told to write single bytes; below 1 it compresses.
MAX_AMPLIFICATION, MIN_AMPLIFICATION = 100, 0.05
#: Flash beyond the size of the drive (spare), and bytes of the host in a block that is compressed, in one factor.
MAX_PER_ERASE = 6
#: A block that was erased this often or more was not only tested in the factory.
FACTORY_ERASES = 3
#: Times that a rating is exceeded before the drive's own percentage would have to say so.
MAX_OVER_RATING = 20
#: Bytes of one write command, least and most; a drive that says it had fewer commands does not count them.
MIN_COMMAND, MAX_COMMAND = 256, 64 * MIB
MIN_COMMANDS = 10_000


@dataclass(frozen=True)
class Drive:
    """What a count is compared with; None where it is not known. Sizes in bytes.

    ``kind``: nvme, sata, sas or unknown. ``percentage_used``: by the drive's own count. ``erases_low`` and
    ``erases_high``: erasures of its average block, at least and at most. ``since_boot``: what the kernel wrote to it
    since it booted. ``commands``: write commands in its life. ``rated``: the maker's endurance. ``link``: what the
    interface of this drive carries in a second.
    """

    kind: str = "unknown"
    size: int | None = None
    hours: int | None = None
    percentage_used: int | None = None
    erases_low: int | None = None
    erases_high: int | None = None
    since_boot: int | None = None
    commands: int | None = None
    rated: int | None = None
    link: int | None = None


def contradictions(written: int, drive: Drive) -> list[str]:
    """What speaks against ``written`` bytes in the life of ``drive``, a clause each; empty when nothing does."""
    return [*_by_time(written, drive), *_by_counts(written, drive), *_by_wear(written, drive)]


def flash_contradictions(nand: int, written: int | None, drive: Drive) -> list[str]:
    """The same for ``nand`` bytes that were programmed into the flash of ``drive``, for ``written`` bytes of the host."""
    if written and not MIN_AMPLIFICATION * written <= nand <= MAX_AMPLIFICATION * written:
        return [f"the host wrote {bytes_text(written)}"]
    # What is inside a drive is as fast as the fastest interface, or it would have been given that.
    return [*_by_time(nand, Drive(hours=drive.hours)), *_by_wear(nand, Drive(size=drive.size))]


def _by_time(written: int, drive: Drive) -> list[str]:
    found = []
    speed = drive.link or INTERFACE.get(drive.kind, max(INTERFACE.values()))
    hours = MAX_HOURS if drive.hours is None else drive.hours
    if written > (hours + 1) * 3600 * speed:
        on = "in any drive's life" if drive.hours is None else f"in {number_text(hours)} power-on hours"
        found.append(f"more than its interface can carry {on}")
    elif drive.hours == 0 and drive.size and written > FIRST_HOUR_WRITES * drive.size:
        found.append(f"{number_text(written / drive.size)} times its size in less than one power-on hour")
    if drive.hours is not None and drive.hours >= MIN_HOURS:
        first = min(drive.hours, FIRST_HOURS)
        if written < first * FIRST_RATE + (drive.hours - first) * LATER_RATE:
            found.append(f"too little for {number_text(drive.hours)} power-on hours")
    return found


def _by_counts(written: int, drive: Drive) -> list[str]:
    found = []
    if drive.since_boot is not None and drive.since_boot > 2 * written + BOOT_SLACK:
        found.append(f"the kernel has written {bytes_text(drive.since_boot)} to it since it booted")
    commands = drive.commands if drive.commands and drive.commands >= MIN_COMMANDS else None
    if commands and written >= GIB:
        each = written / commands
        if not MIN_COMMAND <= each <= MAX_COMMAND:
            found.append(f"that is {bytes_text(each)} in each of its {number_text(commands)} write commands")
    elif commands and commands * MIN_COMMAND > max(written, GIB):
        found.append(f"it took {number_text(commands)} write commands")
    return found


def _by_wear(written: int, drive: Drive) -> list[str]:
    found = []
    used, size = drive.percentage_used, drive.size
    if size and written > max(1, ((used or 0) + 1) / 100) * size * MAX_LIFE_WRITES:
        found.append(f"{number_text(written / size)} times its size, more than any drive endures")
    elif used is not None and size:
        if written < max(0, min(used, 100) - 1) / 100 * size:
            found.append(f"{used} % of its rated life is used, and it holds {bytes_text(size)}")
        if written > (used + 1) / 100 * size * MAX_LIFE_WRITES:
            found.append(
                f"{number_text(written / size)} times its size, and only {used} % of its rated life are used"
            )
    if used is not None and drive.rated and written > MAX_OVER_RATING * drive.rated * (used + 1) / 100:
        found.append(f"it is rated for {bytes_text(drive.rated)}, and only {used} % of its life are used")
    if drive.erases_low and size:
        tested = drive.erases_low < FACTORY_ERASES and (drive.hours or 0) < FIRST_HOURS
        if not tested and drive.erases_low * size > MAX_AMPLIFICATION * written:
            found.append(f"its blocks were erased {_times(drive.erases_low)}, and it holds {bytes_text(size)}")
    if drive.erases_high is not None and size and written > MAX_PER_ERASE * (drive.erases_high + 1) * size:
        found.append(f"its blocks were erased only {_times(drive.erases_high)}, and it holds {bytes_text(size)}")
    return found


def _times(count: int) -> str:
    return "once" if count == 1 else f"{number_text(count)} times"
