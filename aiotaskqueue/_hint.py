"""What an answer that surprises most likely means, said in the log once for each URL."""

from __future__ import annotations

import logging

from aiotaskqueue._record import TaskRecord, default_url
from aiotaskqueue.delivery._base import SIGNATURE_REFUSED, Answer, NoAnswer

logger = logging.getLogger("aiotaskqueue")

# URLs about which something was said; then no more is said, so that they do not fill the memory (RELIABILITY P19).
MAX_REMEMBERED = 1000


class Hints:
    """Remembers what was said."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def give(self, record: TaskRecord, result: Answer | NoAnswer) -> None:
        """Say what is to be done about an attempt that failed, unless it was said before; most need nothing said."""
        if isinstance(result, NoAnswer) or len(self._said) >= MAX_REMEMBERED:
            return
        path = record.url.partition("?")[0]
        hint = _hint(record.queue_name, path, result)
        if hint is not None and (path, hint) not in self._said:
            self._said.add((path, hint))
            logger.warning("%s answered %d: %s", path, result.status, hint)


def _hint(queue_name: str, path: str, result: Answer) -> str | None:
    if 200 < result.status < 300:
        return "only 200 ends a task (or QueueConfig(success_statuses=...))."
    if result.status == 404 and path == default_url(queue_name):
        return f"queue {queue_name!r} needs a route at its default URL (default_url_path gives it), or its tasks a url=."
    if result.status == 403 and result.detail == SIGNATURE_REFUSED:
        return SIGNATURE_REFUSED
    return None
