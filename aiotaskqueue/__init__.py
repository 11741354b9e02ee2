"""A durable task queue that lives inside of your asyncio web application: App Engine's Task Queue, reborn.

What applications use:

* this module: `TaskQueueService`, `Queue`, `Task`, `add` and the values around them
* `aiotaskqueue.errors`: every exception
* `aiotaskqueue.web.aiohttp`: `init_app` and the `task` decorator for handlers
* `aiotaskqueue.web.starlette`: the same for Starlette and FastAPI, and `lifespan`
* `aiotaskqueue.tasks`: what handlers call
* `aiotaskqueue.testing`: a clock and a delivery for tests

What extensions use: `aiotaskqueue.stores` and `aiotaskqueue.delivery`, the two seams.
"""

from aiotaskqueue import errors
from aiotaskqueue._config import QueueConfig
from aiotaskqueue._queue import Queue, QueueStatistics
from aiotaskqueue._record import AttemptRecord, StoredTask, TaskState
from aiotaskqueue._service import TaskQueueService, add
from aiotaskqueue._task import Task, TaskRetryOptions

__all__ = [
    "AttemptRecord",
    "Queue",
    "QueueConfig",
    "QueueStatistics",
    "StoredTask",
    "Task",
    "TaskQueueService",
    "TaskRetryOptions",
    "TaskState",
    "add",
    "errors",
]
