"""The built-in schedulers pass the conformance cases."""

from plugserve.plugins.schedulers.fair import FairOptions, FairScheduler
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.plugins.schedulers.pace import Pace
from plugserve.plugins.schedulers.priority import PriorityOptions, PriorityScheduler
from plugserve.testing import PlainScheduler, SchedulerConformance
from plugserve.testing.contexts import scheduler_context


class TestFcfs(SchedulerConformance):
    def make_scheduler(self):
        return make_fcfs(scheduler_context())


class TestPriority(SchedulerConformance):
    def make_scheduler(self):
        return PriorityScheduler(PriorityOptions(), Pace())


class TestFair(SchedulerConformance):
    def make_scheduler(self):
        return FairScheduler(FairOptions(), Pace())


class TestKitsPlainOne(SchedulerConformance):
    def make_scheduler(self):
        return PlainScheduler()
