"""The cases of plugserve's conformance kit for schedulers."""

from plugserve_sjf.options import SjfOptions
from plugserve_sjf.scheduler import SjfScheduler

from plugserve.testing import SchedulerConformance


class TestSjf(SchedulerConformance):
    def make_scheduler(self):
        return SjfScheduler(SjfOptions())
