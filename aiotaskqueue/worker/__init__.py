"""The handler's side of a task, whatever the web framework: which task is running, may this request run it, and how long."""

from aiotaskqueue.worker._access import AccessCheck, Admission
from aiotaskqueue.worker._deadline import DeadlineExceededError, run_with_deadline
from aiotaskqueue.worker._info import TaskInfo, current_task, running

__all__ = ["AccessCheck", "Admission", "DeadlineExceededError", "TaskInfo", "current_task", "run_with_deadline", "running"]
