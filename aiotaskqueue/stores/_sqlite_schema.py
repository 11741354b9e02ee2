"""The schema: numbered scripts, forward only, run in one transaction; and whether what is there is ours and whole."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from importlib import resources

from aiotaskqueue.errors import SchemaTooNewError, StoreCorruptError, StoreForeignError

# sqlite_schema is as long as there are tables and indexes. Those that SQLite made for itself have no sql.
SELECT_OBJECTS = "SELECT name, sql FROM sqlite_master WHERE name LIKE 'taskqueue\\_%' ESCAPE '\\' AND sql IS NOT NULL"
# Very short tables.
SELECT_COLUMNS = "SELECT name FROM pragma_table_info('taskqueue_schema')"
SELECT_VERSION = "SELECT max(version) FROM taskqueue_schema"
INSERT_VERSION = "INSERT INTO taskqueue_schema (version, applied_usec) VALUES (?, ?)"


def migrate(connection: sqlite3.Connection, requests: Sequence[int]) -> list[int]:
    """Bring the schema up to date, inside of the transaction that runs this verb; a request is the time.

    Returns:
        The version that the schema has now, which is the newest that we know.

    Raises:
        SchemaTooNewError: A newer version of this package was here.
        StoreForeignError: There are tables with our prefix that are not ours.
        StoreCorruptError: A table or index of ours is missing or was altered.
    """
    scripts = _scripts()
    version = _stored_version(connection)
    check_version(version, max(scripts))
    for number, script in scripts.items():
        if number > version:
            _run(connection, script)
            connection.execute(INSERT_VERSION, (number, requests[0]))
    _check_objects(connection, scripts)
    return [max(scripts)]


def check_version(version: int, known: int) -> None:
    """Raise SchemaTooNewError if a newer version of this package has been here."""
    if version > known:
        raise SchemaTooNewError(f"The database has schema {version} and this version knows {known}; install a newer aiotaskqueue-embedded.")


def fetch_version(connection: sqlite3.Connection) -> int:
    """Return the version of a schema that is ours."""
    version: int = connection.execute(SELECT_VERSION).fetchone()[0]
    return version


def _stored_version(connection: sqlite3.Connection) -> int:
    names = _objects(connection)
    if not names:
        return 0
    columns = {name for (name,) in connection.execute(SELECT_COLUMNS)}
    version = connection.execute(SELECT_VERSION).fetchone()[0] if columns >= {"version", "applied_usec"} else None
    if not isinstance(version, int):
        raise StoreForeignError(
            f"The database has tables that are not ours: {', '.join(sorted(names))}; names that begin with 'taskqueue_' are reserved."
        )
    return version


def _check_objects(connection: sqlite3.Connection, scripts: Mapping[int, str]) -> None:
    """Compare with a new database: what somebody dropped or altered would be noticed much later, or never."""
    found = _objects(connection)
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as new:
        for script in scripts.values():
            _run(new, script)
        expected = _objects(new)
    for name, sql in expected.items():
        if found.get(name) != sql:
            what = "was altered" if name in found else "is missing"
            raise StoreCorruptError(f"{name!r} of the database {what}; restore a backup, nothing was changed.")


def _objects(connection: sqlite3.Connection) -> dict[str, str]:
    """Return our tables and indexes by name, each as the statement that made it."""
    return dict(connection.execute(SELECT_OBJECTS).fetchall())


def _scripts() -> Mapping[int, str]:
    """Return the scripts by number, in order."""
    folder = resources.files("aiotaskqueue.stores.migrations") / "sqlite"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return {int(file.name[:4]): file.read_text(encoding="utf-8") for file in files}


def _run(connection: sqlite3.Connection, script: str) -> None:
    """Run a script statement by statement; `executescript` would commit first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
