"""TaskRecord: from the user's Task to what a store keeps, and back; generated names and uuids."""

from __future__ import annotations

import os
import re
import uuid
from datetime import UTC, datetime, timedelta

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiotaskqueue._record import NameGenerator, TaskRecord, TaskState, record_of, task_of
from aiotaskqueue._task import Task, TaskRetryOptions

NOW_USEC = 1_767_323_045_678_900
UUID = bytes(range(16))


def make_record(task: Task, queue_name: str = "default", name: str = "generated") -> TaskRecord:
    """Return the record of `task`, added now."""
    return record_of(task, queue_name=queue_name, name=name, uuid=UUID, now_usec=NOW_USEC)


def lease(record: TaskRecord, attempts: int) -> TaskRecord:
    """Return the record as a store leases it for a minute."""
    return attrs.evolve(record, state=TaskState.LEASED, attempts=attempts, lease_expires_usec=NOW_USEC + 60_000_000)


# --- record_of -----------------------------------------------------------------------------------------------------


def test_record_has_all_that_the_task_has() -> None:
    """A record has every argument of its task, in the form in which it is sent."""
    options = TaskRetryOptions(task_retry_limit=1)
    eta = datetime(2026, 1, 1, tzinfo=UTC)
    arguments = {"retry_options": options, "target": "mailer", "dispatch_deadline_seconds": 5.0}
    task = Task("é", name="n", url="/x", headers={"a": "b"}, eta=eta, **arguments)  # type: ignore[arg-type]
    expected = TaskRecord(
        uuid=UUID,
        queue_name="mail",
        name="n",
        is_named=True,
        method="POST",
        url="/x",
        headers=(("a", "b"), ("Content-Type", "text/plain; charset=utf-8")),
        payload="é".encode(),
        target="mailer",
        retry_options=options,
        dispatch_deadline_seconds=5.0,
        eta_usec=1_767_225_600_000_000,
        created_usec=NOW_USEC,
    )

    assert expected == make_record(task, "mail", "n")


def test_record_of_a_pull_task() -> None:
    """A PULL task has no URL, and keeps its tag."""
    record = make_record(Task(b"", method="PULL", tag="t"))

    assert ("PULL", "", b"", "t") == (record.method, record.url, record.payload, record.tag)


def test_empty_tag_is_no_tag() -> None:
    """An empty tag equals none (SPEC 1.1)."""
    assert make_record(Task("p", method="PULL", tag="")).tag is None


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Task(), "/_ah/queue/mail-1"),
        (Task(method="GET", params={"a": "b"}), "/_ah/queue/mail-1?a=b"),
        (Task(url="/x"), "/x"),
        (Task(url="/x?a=b", method="GET"), "/x?a=b"),
    ],
)
def test_default_url_is_that_of_the_queue(task: Task, expected: str) -> None:
    """A task without a URL goes to the one of its queue, with its params (SPEC 1.2, 1.4)."""
    assert expected == make_record(task, "mail-1").url


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Task(), NOW_USEC),
        (Task(countdown=1.5), NOW_USEC + 1_500_000),
        (Task(countdown=-1), NOW_USEC - 1_000_000),
        (Task(eta=datetime(1970, 1, 1, tzinfo=UTC)), 0),
    ],
)
def test_eta_is_fixed_by_the_add(task: Task, expected: int) -> None:
    """The ETA is the given one, else the time of the add plus the countdown (SPEC 1.6)."""
    assert expected == make_record(task).eta_usec


def test_generated_name_is_not_the_users() -> None:
    """A record knows whether its name was given, since only such a name leaves a tombstone (SPEC 3.5)."""
    assert (False, True) == (make_record(Task()).is_named, make_record(Task(name="n")).is_named)


# --- marking -------------------------------------------------------------------------------------------------------


def test_added_task_shows_what_the_add_decided() -> None:
    """Once added, a task has name, queue, URL and ETA (SPEC 3.4)."""
    task = Task(countdown=5)
    task._mark_enqueued(make_record(task, "mail"))
    eta = datetime(2026, 1, 2, 3, 4, 10, 678900, tzinfo=UTC)

    assert ("generated", "mail", "/_ah/queue/mail", eta, True) == (task.name, task.queue_name, task.url, task.eta, task.was_enqueued)


def test_deleted_task() -> None:
    """A task that a delete call removed says so (SPEC 3.7)."""
    task = Task(name="n")
    task._mark_deleted()

    assert (True, False) == (task.was_deleted, task.was_enqueued)


def test_lease_that_was_moved() -> None:
    """A task whose lease was modified has the new end as ETA (SPEC 3.10)."""
    task = task_of(make_record(Task("p", method="PULL")))
    task._mark_leased_until(NOW_USEC + 1)

    assert datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC) == task.eta


# --- task_of -------------------------------------------------------------------------------------------------------

SHOWN = [name for name, member in vars(Task).items() if isinstance(member, property)]


@pytest.mark.parametrize(
    "task",
    [
        Task(),
        Task(method="GET", params={"a": "b"}),
        Task("p", url="/x", name="n", headers={"a": ["b", "c"]}, target="t", dispatch_deadline_seconds=2),
        Task("p", url="/x", retry_options=TaskRetryOptions(max_doublings=1), countdown=3),
        Task("p", method="PULL", tag="t"),
    ],
)
def test_stored_task_looks_like_the_added_one(task: Task) -> None:
    """A task that comes back from the store shows what the added one does, in every property."""
    record = make_record(task, name=task.name or "generated")
    stored = task_of(record)
    task._mark_enqueued(record)

    assert [getattr(task, name) for name in SHOWN] == [getattr(stored, name) for name in SHOWN]


def test_task_of_the_largest_size_comes_back() -> None:
    """What is stored is not checked again, so a leased task may be of any size (SPEC 3.9)."""
    record = attrs.evolve(make_record(Task(b"p", method="PULL")), payload=b"a" * 1_048_577)

    assert 1_048_577 + len("PULL") == task_of(record).size


def test_leased_pull_task() -> None:
    """A leased pull task has the end of its lease as ETA and counts the lease it is in (SPEC 3.9)."""
    task = task_of(lease(make_record(Task("p", method="PULL")), attempts=1))

    assert (1, datetime(2026, 1, 2, 3, 5, 5, 678900, tzinfo=UTC), "") == (task.retry_count, task.eta, task.url)


def test_push_task_in_flight() -> None:
    """A push task in flight keeps its ETA, and does not count the attempt it is in (SPEC 1.7)."""
    task = task_of(lease(make_record(Task()), attempts=3))

    assert (2, NOW_USEC / 1_000_000) == (task.retry_count, task.eta_posix)


def test_failed_push_task() -> None:
    """A push task that waits for its retry counts all of its attempts."""
    assert 3 == task_of(attrs.evolve(make_record(Task()), attempts=3)).retry_count


# --- NameGenerator -------------------------------------------------------------------------------------------------

# The 64 letters of names, in the order of ASCII.
ALPHABET = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"


def test_names_are_names() -> None:
    """A generated name has 22 characters, all of them allowed in a name (DESIGN 6)."""
    assert re.fullmatch(r"[a-zA-Z0-9_-]{22}", NameGenerator().name(NOW_USEC))


@given(st.integers(0, 2**54 - 1))
@settings(database=None)
def test_names_begin_with_the_time(now_usec: int) -> None:
    """The first 9 letters of a name are the microseconds, in an alphabet of ASCII order (DESIGN 6)."""
    value = 0
    for letter in NameGenerator(seed=1).name(now_usec)[:9]:
        value = value * 64 + ALPHABET.index(letter)

    assert now_usec == value


@given(st.lists(st.integers(0, 2**53), min_size=2))
@settings(database=None)
def test_names_sort_as_they_were_made(moments: list[int]) -> None:
    """A later name sorts later, also one of the same microsecond and after the clock was set back (DESIGN 6)."""
    generator = NameGenerator(seed=1)
    names = [generator.name(now_usec) for now_usec in moments]

    assert sorted(names) == names


def test_names_after_the_year_2540() -> None:
    """A time beyond 54 bits still gives a name."""
    assert 22 == len(NameGenerator().name(2**54 + 1))


def test_names_of_one_microsecond_differ() -> None:
    """Ten thousand names of one microsecond, from two generators, are all different."""
    generators = [NameGenerator(), NameGenerator()]

    assert 10_000 == len({generators[i % 2].name(NOW_USEC) for i in range(10_000)})


def test_random_part_uses_all_letters() -> None:
    """Each of the 13 random characters takes on all 64 letters (DESIGN 6)."""
    generator = NameGenerator(seed=1)
    names = [generator.name(NOW_USEC) for _ in range(2000)]

    assert [set(ALPHABET)] * 13 == [{name[i] for name in names} for i in range(9, 22)]


def test_seed_fixes_names_and_uuids() -> None:
    """Two generators of one seed give the same names and uuids; of another seed, others."""
    one, same, other = (NameGenerator(seed) for seed in (7, 7, 8))
    first, second, third = ((generator.name(NOW_USEC), generator.uuid()) for generator in (one, same, other))

    assert (True, False, False) == (first == second, first[0] == third[0], first[1] == third[1])


def test_uuid_is_random_and_of_version_4() -> None:
    """A uuid is a random one of RFC 9562, different each time."""
    generator = NameGenerator()
    uuids = [uuid.UUID(bytes=generator.uuid()) for _ in range(1000)]

    assert (1000, {4}, {uuid.RFC_4122}) == (len(set(uuids)), {u.version for u in uuids}, {u.variant for u in uuids})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_has_other_uuids() -> None:
    """A child that was forked after the generator was made does not repeat its parent's uuids."""
    generator = NameGenerator()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, generator.uuid())
        os._exit(0)
    os.waitpid(child, 0)
    of_child = os.read(reader, 16)
    os.close(reader)
    os.close(writer)

    assert (16, True) == (len(of_child), of_child != generator.uuid())


def test_time_of_the_record_is_that_of_the_add() -> None:
    """A record notes when it was made, whatever its ETA."""
    record = make_record(Task(countdown=timedelta(days=1)))

    assert (NOW_USEC, NOW_USEC + 86_400_000_000) == (record.created_usec, record.eta_usec)
