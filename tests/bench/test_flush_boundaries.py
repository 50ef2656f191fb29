# SPDX-License-Identifier: Apache-2.0
"""The log of dm-log-writes: read, replayed, and judged at every boundary."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import changes
import flush_boundaries as fb
import pytest

from .test_power_cuts import after, store

SECTOR = 512


def log(*parts: tuple[int, int, bytes], count: int | None = None, sector: int = SECTOR) -> bytes:
    """A log of (flags, sector, data) entries; the data of a discard only tells its length."""
    number = len(parts) if count is None else count
    made = fb.SUPER.pack(fb.MAGIC, 1, number, sector).ljust(sector, b"\0")
    for flags, start, data in parts:
        if flags & fb.MARK:
            made += (fb.ENTRY.pack(0, 0, flags, len(data)) + data).ljust(sector, b"\0")
            continue
        made += fb.ENTRY.pack(start, len(data) // sector, flags, 0).ljust(sector, b"\0")
        made += b"" if flags & fb.DISCARD else data
    return made


def block(letter: str, sectors: int = 1) -> bytes:
    return letter.encode() * SECTOR * sectors


def states(text: bytes) -> list[tuple[str, bytes]]:
    """What the device holds at each boundary, as letters."""
    image = io.BytesIO(b"." * SECTOR * 4)
    found = []
    for when, entry in fb.boundaries(io.BytesIO(text), image):
        held = (entry.mark or "").encode() if when == "mark" else image.getvalue()[::SECTOR]
        found.append((when, held))
    return found


def test_entries_are_read_back() -> None:
    text = log(
        (0, 3, block("a", 2)), (fb.FLUSH, 0, b""), (fb.MARK, 0, b"here"), (fb.DISCARD, 1, block("x", 2))
    )
    assert list(fb.entries(io.BytesIO(text))) == [
        fb.Entry(3 * SECTOR, 2 * SECTOR, 0, block("a", 2)),
        fb.Entry(0, 0, fb.FLUSH, b""),
        fb.Entry(0, 0, fb.MARK, b"here"),
        fb.Entry(SECTOR, 2 * SECTOR, fb.DISCARD, b""),
    ]


def test_other_sector_sizes() -> None:
    text = log((fb.FUA, 2, b"z" * 4096), sector=4096)
    assert list(fb.entries(io.BytesIO(text))) == [fb.Entry(2 * 4096, 4096, fb.FUA, b"z" * 4096)]


def test_a_write_without_a_flush_is_no_boundary() -> None:
    text = log((0, 0, block("a")), (0, 1, block("b")), (fb.FLUSH, 0, b""), (0, 2, block("c")))
    assert states(text) == [("before", b"ab..")]


def test_a_flush_with_data_is_two_boundaries_and_a_write_through_is_one() -> None:
    text = log((0, 0, block("a")), (fb.FLUSH | fb.FUA, 1, block("j")), (fb.FUA, 2, block("f")))
    assert states(text) == [("before", b"a..."), ("after", b"aj.."), ("after", b"ajf.")]


def test_a_discard_leaves_zeros_and_marks_come_in_order() -> None:
    text = log((0, 0, block("a", 4)), (fb.MARK, 0, b"m1"), (fb.DISCARD, 1, block("x", 2)), (fb.FLUSH, 0, b""))
    assert states(text) == [("mark", b"m1"), ("before", b"a\0\0a")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no superblock"),
        (b"\0" * 4096, "magic 0x0"),
        (log((0, 0, block("a")), count=2), "entry 1 of 2 is not there"),
        (log((0, 0, block("a", 2)))[:-SECTOR], "entry 0 of 1 has 512 bytes of 1024"),
        (log(sector=500), "sector size 500"),
    ],
)
def test_what_is_no_log_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(fb.BadLog, match=why):
        list(fb.entries(io.BytesIO(text)))


def device(folder: Path, state: changes.State, name: str) -> bytes:
    """An ext4 with the store of a state, as the bytes of its device."""
    copied = store(folder / name / "live/state", state)
    image = folder / f"{name}.img"
    subprocess.run(
        [
            "mkfs.ext4",
            "-q",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
            "-d",
            copied,
            image,
            f"{fb.DATA_MIB}M",
        ],
        check=True,
        env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
    )
    return image.read_bytes()


def writes(before: bytes, now: bytes, step: int = 1 << 20) -> list[tuple[int, int, bytes]]:
    """The writes that make one device the other."""
    places = [at for at in range(0, len(now), step) if before[at : at + step] != now[at : at + step]]
    return [(0, at // SECTOR, now[at : at + step]) for at in places]


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """Number of changes -> a device with the store after them."""
    folder = tmp_path_factory.mktemp("devices")
    return {number: device(folder, after("f", number), str(number)) for number in (20, 40)}


FLUSH = (fb.FLUSH, 0, b"")


def mark(text: str) -> tuple[int, int, bytes]:
    return (fb.MARK, 0, text.encode())


def checked(folder: Path, *parts: tuple[int, int, bytes]) -> fb.Totals:
    (folder / "log").write_bytes(log(*parts))
    return fb.check(folder / "log", "f", "pve1", 300, folder)


def test_good_boundaries(devices: dict[int, bytes], tmp_path: Path) -> None:
    empty = bytes(len(devices[20]))
    totals = checked(
        tmp_path,
        *(*writes(empty, devices[20]), FLUSH, mark("begin"), mark("saved-20"), FLUSH),
        *(
            *writes(devices[20], devices[40]),
            FLUSH,
            mark("saved-40"),
            FLUSH,
            mark("end"),
            (0, 0, block("?")),
            FLUSH,
        ),
    )
    assert totals.violations == []
    assert (totals.boundaries, totals.states, totals.kept, totals.marks) == (3, 2, 40, 2)


def test_a_change_that_is_not_durable_in_time(devices: dict[int, bytes], tmp_path: Path) -> None:
    empty = bytes(len(devices[20]))
    totals = checked(tmp_path, *writes(empty, devices[20]), mark("begin"), mark("saved-23"), FLUSH)
    assert len(totals.violations) == 1 and "23 had to be" in totals.violations[0]


def test_a_state_that_goes_back(devices: dict[int, bytes], tmp_path: Path) -> None:
    empty = bytes(len(devices[20]))
    totals = checked(
        tmp_path,
        *(*writes(empty, devices[40]), mark("begin"), FLUSH),
        *(*writes(devices[40], devices[20]), FLUSH),
    )
    assert len(totals.violations) == 1 and "20 changes are there" in totals.violations[0]


def test_a_torn_store(devices: dict[int, bytes], tmp_path: Path) -> None:
    """The log of the replica is not what it was: what a write in the wrong order would leave."""
    empty = bytes(len(devices[20]))
    found = devices[20].find(b"\x37\x7f\x06\x82")  # the head of a write-ahead log
    assert found > 0
    torn = (0, found // SECTOR, b"\0" * 4096)
    totals = checked(tmp_path, *writes(empty, devices[20]), FLUSH, mark("begin"), torn, FLUSH)
    assert totals.violations


def test_a_log_without_a_beginning_proves_nothing(devices: dict[int, bytes], tmp_path: Path) -> None:
    with pytest.raises(fb.BadLog, match="begin"):
        checked(tmp_path, *writes(bytes(len(devices[20])), devices[20]), FLUSH)
