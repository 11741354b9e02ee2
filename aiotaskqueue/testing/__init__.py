"""For tests: a clock that only moves when told, a delivery that remembers and answers what it is told.

* `VirtualClock`: retry schedules of hours and rates of 2000 a day become tests of milliseconds.
* `RecordingDelivery`: no sockets, no handlers; the answers are yours.
"""

from aiotaskqueue.testing._clock import VirtualClock
from aiotaskqueue.testing._delivery import Delivered, RecordingDelivery

__all__ = ["Delivered", "RecordingDelivery", "VirtualClock"]
