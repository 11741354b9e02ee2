"""The handler's side of a task, whatever the web framework: which task is running, may this request run it, and how long."""

from aiotaskqueue.worker._access import MAX_BODY_BYTES, AccessCheck, Admission
from aiotaskqueue.worker._deadline import DeadlineExceededError, run_with_deadline
from aiotaskqueue.worker._handlers import MARK, FatalTaskError, TaskAnswer, default_url_path, is_marked, name_of, run_handler
from aiotaskqueue.worker._info import TaskInfo, current_task, running

__all__ = [
    "MARK",
    "MAX_BODY_BYTES",
    "AccessCheck",
    "Admission",
    "DeadlineExceededError",
    "FatalTaskError",
    "TaskAnswer",
    "TaskInfo",
    "current_task",
    "default_url_path",
    "is_marked",
    "name_of",
    "run_handler",
    "run_with_deadline",
    "running",
]
