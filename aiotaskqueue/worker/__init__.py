"""The handler's side of a task, whatever the web framework: which task is running, and may this request run it."""

from aiotaskqueue.worker._access import AccessCheck, Admission
from aiotaskqueue.worker._info import TaskInfo, current_task, running

__all__ = ["AccessCheck", "Admission", "TaskInfo", "current_task", "running"]
