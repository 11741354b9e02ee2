"""Storage trouble under load, made on purpose: full, locked, flapping, gone, replaced, read-only (S-1 to S-5, S-7).

The process is in storage_child.py, what is known of it in storage_load.py. ``STORAGE_LOCK_SECONDS`` (60) and
``STORAGE_FLAP_SECONDS`` (60) are environment variables. Figures of the event loop depend on what else the machine does: they are
held against those of the same process before the trouble where the bar alone is missed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storage_load import Load, end, loaded, machine, mount, names_in, tmpfs

LOCK_SECONDS = float(os.environ.get("STORAGE_LOCK_SECONDS", "60"))
FLAP_SECONDS = float(os.environ.get("STORAGE_FLAP_SECONDS", "60"))

# The bars of RELIABILITY 5.3.
ERROR_SECONDS, RECOVERY_SECONDS = 1.0, 2.0
LAG_SECONDS = 0.020
TIMEOUT_SLACK_SECONDS = 0.2
LEAST_SHARE = 0.30

# The time before and after the trouble.
CALM_SECONDS = 3.0
FULL_SECONDS = 10.0

# A process is told from outside when something begins, and its own check comes before its next commit.
CHECK_SECONDS = 0.05

NOBODY = 65534

pytestmark = [pytest.mark.crash, pytest.mark.promise("P2", "P3", "P17")]


def report(name: str, load: Load, **figures: object) -> None:
    """Print the figures of one test."""
    said = ", ".join(
        f"{key.replace('_', ' ')} {value:.2f} s" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
        for key, value in figures.items()
    )
    raised = ", ".join(f"{count} {kind}" for kind, count in load.kinds().most_common()) or "none"
    print(f"\n{name}: {len(load.acks)} accepted, {len(load.done)} done, errors of add: {raised}; {said} ({machine()})", flush=True)


def check_nothing_lost(load: Load, *databases: Path) -> None:
    """Every accepted task was delivered or is there, and none was delivered again after its success."""
    assert set() == load.lost(*databases)
    assert [] == load.repeats_after_success


# --- full ----------------------------------------------------------------------------------------------------------


def check_full(name: str, load: Load, database: Path, filled_at: float, freed_at: float) -> None:
    """What holds of every full disk, once the process has ended."""
    errors = load.refusals
    slowest = max(refusal.seconds for refusal in errors)
    first = min(refusal.ended for refusal in errors) - filled_at
    recovery, well = load.first_ack_begun_after(freed_at), load.well_after(freed_at)
    late = [refusal for refusal in errors if refusal.began > freed_at + RECOVERY_SECONDS]
    lost = load.lost(database)
    report(
        name,
        load,
        first_error_after=first,
        slowest_error=slowest,
        accepted_again_after=recovery,
        well_after=well,
        lost=len(lost),
        repeated=len(load.repeats_after_success),
    )

    assert {"StoreFullError"} == set(load.kinds())
    assert slowest <= ERROR_SECONDS
    assert recovery <= RECOVERY_SECONDS
    assert well <= RECOVERY_SECONDS
    assert [] == late
    check_nothing_lost(load, database)


@pytest.mark.row(96)
@pytest.mark.timeout(120)
def test_a_disk_that_fills_and_is_freed(tmp_path: Path) -> None:
    """S-1: on a file system of 1 MB that is full adds raise StoreFullError within a second, and succeed within two when there is room."""
    with tmpfs(tmp_path / "small", "1m") as folder:
        path = folder / "tasks.db"
        with loaded(path) as load:
            time.sleep(1.0)
            load.say("park")
            load.wait_for(lambda: load.refusals)
            filled_at = load.refusals[0].began
            time.sleep(FULL_SECONDS)
            freed_at = time.monotonic()
            assert "" == mount("-o", "remount,size=64m", str(folder))
            time.sleep(CALM_SECONDS)
            end(load)
        check_full("S-1, a disk of 1 MB", load, path, filled_at, freed_at)


def limit_files(load: Load, path: Path, is_full: bool) -> None:
    """Let the process write no file beyond half of what its WAL has now, or as far as it likes."""
    load.say("limit", os.stat(f"{path}-wal").st_size // 2 if is_full else -1)


def limit_pages(load: Load, path: Path, is_full: bool) -> None:
    """Let the database grow no more, or as far as it likes."""
    load.say("pages", 1 if is_full else 1_000_000)


@pytest.mark.row(96)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("limit", [limit_files, limit_pages])
def test_a_limit_that_is_reached_and_raised(tmp_path: Path, limit: Callable[[Load, Path, bool], None]) -> None:
    """S-2: the process's limit on file sizes, which SQLite reports as an I/O error, and its own on pages are a full disk as well."""
    path = tmp_path / "tasks.db"
    with loaded(path) as load:
        load.say("park")
        time.sleep(CALM_SECONDS)
        filled_at = time.monotonic()
        limit(load, path, True)
        load.wait_for(lambda: load.refusals)
        time.sleep(FULL_SECONDS)
        freed_at = time.monotonic()
        limit(load, path, False)
        time.sleep(CALM_SECONDS)
        end(load)
    check_full(f"S-2, {limit.__name__}", load, path, filled_at, freed_at)


# --- locked --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def other(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database like another program."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        yield connection


@pytest.mark.row(97)
@pytest.mark.timeout(120 + 2 * LOCK_SECONDS)
def test_a_lock_that_is_held_for_minutes(tmp_path: Path) -> None:
    """S-3: under a held lock the loop is not late, adds raise StoreBusyError at their own timeout, and all that is due runs afterwards."""
    path, patience = tmp_path / "tasks.db", 5.0
    with loaded(path, patience_seconds=patience) as load:
        time.sleep(CALM_SECONDS)
        with other(path) as holder:
            holder.execute("BEGIN IMMEDIATE")
            begin = time.monotonic()
            time.sleep(LOCK_SECONDS)
            holder.execute("ROLLBACK")
        free = time.monotonic()
        time.sleep(CALM_SECONDS)
        drained = end(load)
    lag, calm_lag = load.lag(begin, free), load.lag(begin - CALM_SECONDS, begin)
    waits = [refusal.seconds for refusal in load.refusals]
    reasons = [reason for at, found in load.health for reason in found if at < free]
    report(
        "S-3",
        load,
        lag_p99=f"{lag * 1000:.1f} ms",
        calm_lag_p99=f"{calm_lag * 1000:.1f} ms",
        shortest_wait=min(waits),
        longest_wait=max(waits),
        accepted_again_after=load.first_ack_after(free),
        drained_after=drained,
    )

    assert {"StoreBusyError"} == set(load.kinds())
    assert len(waits) >= 4 * int(LOCK_SECONDS / (patience + 1))
    assert lag < max(LAG_SECONDS, 1.5 * calm_lag)
    assert max(abs(wait - patience) for wait in waits) <= TIMEOUT_SLACK_SECONDS
    assert [] == load.acks_between(begin + CHECK_SECONDS, free)
    assert any("has held the lock" in reason for reason in reasons)
    assert load.first_ack_after(free) <= RECOVERY_SECONDS
    assert load.acks.keys() == load.done.keys()
    check_nothing_lost(load, path)


@pytest.mark.row(97)
@pytest.mark.timeout(120 + 2 * FLAP_SECONDS)
def test_a_lock_that_flaps(tmp_path: Path) -> None:
    """S-4: where another process has the lock half of the time, 50 ms on and 50 ms off, adds succeed at 30 % of their rate or more."""
    path, calm_seconds = tmp_path / "tasks.db", 10.0
    with loaded(path, adders=8, pause_seconds=0.0) as load:
        time.sleep(1.0)
        calm_begin = time.monotonic()
        time.sleep(calm_seconds)
        begin, held = time.monotonic(), list[float]()
        with other(path) as holder:
            while time.monotonic() < begin + FLAP_SECONDS:
                holder.execute("BEGIN IMMEDIATE")
                locked = time.monotonic()
                time.sleep(0.05)
                holder.execute("ROLLBACK")
                held.append(time.monotonic() - locked)
                time.sleep(0.05)
        free = time.monotonic()
        end(load)
    calm = len(load.acks_between(calm_begin, begin)) / (begin - calm_begin)
    flapping = len(load.acks_between(begin, free)) / (free - begin)
    report(
        "S-4",
        load,
        calm_adds_per_second=round(calm),
        flapping_adds_per_second=round(flapping),
        share=f"{flapping / calm:.0%}",
        times_locked=len(held),
        median_held=statistics.median(held),
        share_of_time_locked=f"{sum(held) / (free - begin):.0%}",
    )

    assert [] == load.refusals
    assert [] == [reasons for _, reasons in load.health if reasons]
    assert flapping >= LEAST_SHARE * calm
    check_nothing_lost(load, path)


# --- gone, replaced ------------------------------------------------------------------------------------------------


def unlink(path: Path, backup: Path) -> None:
    """Delete the database."""
    path.unlink()


def unlink_all(path: Path, backup: Path) -> None:
    """Delete the database and what lies beside it."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def rename_over(path: Path, backup: Path) -> None:
    """Put an empty file in its place."""
    empty = path.with_name("empty")
    empty.touch(0o600)
    empty.rename(path)


def restore(path: Path, backup: Path) -> None:
    """Put an older backup in its place, as one should not while a process has it open."""
    backup.rename(path)


@pytest.mark.row(94)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("event", [unlink, unlink_all, rename_over, restore])
def test_a_file_that_goes_away(tmp_path: Path, event: Callable[[Path, Path], None]) -> None:
    """S-5: when the file is deleted or replaced under load no add succeeds any more, and at most one batch is left in doubt."""
    folder = tmp_path / "data"
    folder.mkdir(0o700)
    path, backup, kept = folder / "tasks.db", tmp_path / "backup.db", tmp_path / "kept.db"
    with loaded(path, gives_up=True) as load:
        load.say("park")
        time.sleep(CALM_SECONDS / 2)
        with other(path) as source:
            source.execute("VACUUM INTO ?", (str(backup),))
        time.sleep(CALM_SECONDS / 2)
        # What was in it before stays to be looked at, and most of it is in the WAL: nobody copies that into a file that has gone.
        for suffix in ("", "-wal"):
            os.link(f"{path}{suffix}", f"{kept}{suffix}")
        at = time.monotonic()
        event(path, backup)
        done_at = time.monotonic()
        load.wait_for(lambda: load.refusals)
        time.sleep(CALM_SECONDS)
        reasons = load.health[-1][1]
        end(load)
    with loaded(path) as again:
        time.sleep(0.5)
        end(again)
    doubtful = [refusal for refusal in load.refusals if "OutcomeUnknownError" in refusal.classes]
    late = [load.acks[name][1] - done_at for name in load.acks_between(done_at, float("inf"))]
    report(
        f"S-5, {event.__name__}",
        load,
        first_error_after=min(refusal.ended for refusal in load.refusals) - at,
        in_doubt=len(doubtful),
        accepted_after_it=len(late),
        last_of_them=max(late, default=0.0),
        lost=len(load.lost(kept)),
    )

    assert all("StoreReplacedError" in refusal.classes for refusal in load.refusals)
    assert any("deleted or replaced" in reason for reason in reasons)
    assert [] == [seconds for seconds in late if seconds > CHECK_SECONDS]
    assert len(doubtful) <= 4
    # What is there now is sound, and used by the next start.
    check_nothing_lost(again, path)
    # The file that went away has all that was accepted before, so nothing is lost but by whoever took it away.
    check_nothing_lost(load, kept)


@pytest.mark.timeout(120)
@pytest.mark.row(94)
def test_a_backup_is_restored_between_two_processes(tmp_path: Path) -> None:
    """After the restore of an older backup, with the service stopped, the next start takes it for what it is."""
    path, backup = tmp_path / "tasks.db", tmp_path / "backup.db"
    with loaded(path) as load:
        load.say("park")
        time.sleep(CALM_SECONDS / 2)
        with other(path) as source:
            source.execute("VACUUM INTO ?", (str(backup),))
        copied_at = time.monotonic()
        time.sleep(CALM_SECONDS / 2)
        end(load)
    parked = names_in(backup)
    backup.rename(path)
    with loaded(path) as again:
        time.sleep(1.0)
        end(again)
    report("S-5, restored while stopped", again, tasks_in_the_backup=len(parked))

    assert {*load.acks_between(0.0, copied_at - 1.0)} <= load.done.keys() | parked
    assert [] == again.refusals
    assert set() == parked - names_in(path) - again.done.keys()


# --- read-only -----------------------------------------------------------------------------------------------------


@pytest.fixture
def immutable(tmp_path: Path) -> Iterator[Callable[[Path, bool], None]]:
    """Return what makes the files of a database immutable, as a disk does that went read-only, and the reverse."""

    def change(path: Path, is_immutable: bool) -> None:
        files = [str(path), f"{path}-wal"]
        subprocess.run(["chattr", "+i" if is_immutable else "-i", *files], check=True, capture_output=True)

    probe = tmp_path / "probe"
    probe.touch()
    (tmp_path / "probe-wal").touch()
    try:
        change(probe, True)
        change(probe, False)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("Files cannot be made immutable here: that needs root and a file system such as ext4.")
    yield change
    for file in tmp_path.glob("tasks.db*"):
        subprocess.run(["chattr", "-i", str(file)], check=False, capture_output=True)


@pytest.mark.row(95)
@pytest.mark.timeout(120)
def test_a_file_that_becomes_read_only(tmp_path: Path, immutable: Callable[[Path, bool], None]) -> None:
    """S-7: a file that cannot be written any more under load is a StoreReadOnlyError within a second, and used again when it can."""
    path = tmp_path / "tasks.db"
    with loaded(path) as load:
        time.sleep(CALM_SECONDS)
        closed_at = time.monotonic()
        immutable(path, True)
        time.sleep(FULL_SECONDS / 2)
        opened_at = time.monotonic()
        immutable(path, False)
        time.sleep(CALM_SECONDS)
        end(load)
    slowest = max(refusal.seconds for refusal in load.refusals)
    recovery, well = load.first_ack_begun_after(opened_at), load.well_after(opened_at)
    report(
        "S-7, immutable",
        load,
        first_error_after=min(refusal.ended for refusal in load.refusals) - closed_at,
        slowest_error=slowest,
        accepted_again_after=recovery,
        well_after=well,
    )

    assert {"StoreReadOnlyError"} == set(load.kinds())
    assert slowest <= ERROR_SECONDS
    assert recovery <= RECOVERY_SECONDS
    assert well <= RECOVERY_SECONDS
    check_nothing_lost(load, path)


@pytest.mark.row(95)
@pytest.mark.timeout(60)
def test_a_mount_that_is_read_only_at_the_start(tmp_path: Path) -> None:
    """S-7: on a file system that is mounted read-only the service does not start and says why; mounted for writing it does."""
    with tmpfs(tmp_path / "mounted", "16m") as folder:
        path = folder / "tasks.db"
        with loaded(path) as load:
            time.sleep(0.5)
            end(load)
        assert "" == mount("-o", "remount,ro", str(folder))
        with loaded(path) as refused:
            assert refused.child.wait(10) == 0
        assert "" == mount("-o", "remount,rw", str(folder))
        with loaded(path) as again:
            time.sleep(0.5)
            end(again)
        print(f"\nS-7, mounted read-only: {refused.refused} ({machine()})")
        check_nothing_lost(load, path)

    assert refused.refused is not None
    assert "StoreReadOnlyError" == refused.refused[0][0]
    assert "mounted read-only" in refused.refused[1]
    assert again.acks


@pytest.mark.row(95)
@pytest.mark.timeout(60)
@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can start a process as another user.")
def test_a_file_of_mode_0444(tmp_path: Path) -> None:
    """S-7: a file that its user may not write is refused at the start with mode and owner; who has it open already goes on."""
    folder = Path("/tmp") / f"storage-{os.getpid()}"
    folder.mkdir(0o700)
    path = folder / "tasks.db"
    path.touch()
    try:
        for file, mode in ((folder, 0o700), (path, 0o444)):
            os.chown(file, NOBODY, NOBODY)
            file.chmod(mode)
        with loaded(path, uid=NOBODY) as refused:
            assert refused.child.wait(10) == 0
        path.chmod(0o600)
        with loaded(path, uid=NOBODY) as load:
            time.sleep(0.5)
            for file in folder.glob("tasks.db*"):
                file.chmod(0o444)
            time.sleep(0.5)
            end(load)
    finally:
        shutil.rmtree(folder)
    print(f"\nS-7, mode 0444: {refused.refused} ({machine()})")

    assert refused.refused is not None
    assert "StoreReadOnlyError" == refused.refused[0][0]
    assert "mode 0444" in refused.refused[1]
    assert load.acks
    assert [] == load.refusals
