"""What keeps the store from working, and what is only worth a warning: what `health()` tells.

Theory of operation. Trouble comes as the typed error of a write, or of a look around. It is over when a write succeeds;
while nobody writes the watcher tries. Three kinds never pass by themselves, since what a further write would do is not
known: damage, a newer schema, a disk that failed at a commit. After these nothing is written until the next start. A
file that was deleted or replaced is looked for before each write, so that putting it back is enough.
"""

from __future__ import annotations

import logging

from aiotaskqueue.errors import SchemaTooNewError, StoreCorruptError, StoreError
from aiotaskqueue.stores._sqlite_errors import DiskFailedError

logger = logging.getLogger("aiotaskqueue")

_LASTING = (StoreCorruptError, SchemaTooNewError, DiskFailedError)


class Trouble:
    """The state of one store."""

    def __init__(self) -> None:
        self.current: StoreError | None = None
        """Why the last write failed; None: it succeeded."""
        self.is_lasting = False
        """Only a new start can help."""
        self._warnings: dict[str, str] = {}

    def note(self, error: StoreError) -> None:
        """A write or a look has failed, and not by its own fault."""
        if self.is_lasting:
            return
        self.is_lasting = isinstance(error, _LASTING)
        if isinstance(error, DiskFailedError):
            # That commit's outcome is unknown; that of the later ones is not.
            error = StoreError(f"{error} Nothing more is written until the service is started again.")
        self.current = error

    def clear(self) -> None:
        """A write has succeeded."""
        if not self.is_lasting:
            self.current = None

    def refuse(self) -> None:
        """Raise what is the matter, if only a new start can help."""
        if self.is_lasting and self.current is not None:
            # A new object for each caller, or its traceback would grow with each of them.
            raise type(self.current)(str(self.current)) from self.current

    @property
    def may_pass(self) -> bool:
        """Whether there is trouble that a write may find gone."""
        return self.current is not None and not self.is_lasting

    @property
    def warnings(self) -> tuple[str, ...]:
        """What deserves attention, a sentence each."""
        return tuple(self._warnings.values())

    def warn(self, topic: str, sentence: str) -> None:
        """Log a warning, once for each topic, and keep it until `unwarn`."""
        if topic not in self._warnings:
            logger.warning("%s", sentence)
        self._warnings[topic] = sentence

    def unwarn(self, topic: str) -> None:
        """The cause is gone."""
        self._warnings.pop(topic, None)
