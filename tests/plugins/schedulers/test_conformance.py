"""The built-in schedulers against the kit that plugin authors run."""

from plugserve.plugins.schedulers.fair import FairOptions, FairScheduler
from plugserve.plugins.schedulers.fcfs import FcfsScheduler
from plugserve.plugins.schedulers.priority import PriorityOptions, PriorityScheduler
from plugserve.testing.scheduler_conformance import SchedulerConformance


class TestFcfs(SchedulerConformance):
    def make_scheduler(self):
        return FcfsScheduler()


class TestPriority(SchedulerConformance):
    def make_scheduler(self):
        return PriorityScheduler(PriorityOptions())


class TestFair(SchedulerConformance):
    def make_scheduler(self):
        return FairScheduler(FairOptions())


class TestFairInSmallTurns(SchedulerConformance):
    def make_scheduler(self):
        return FairScheduler(FairOptions(quantum_tokens=1, preemption_debt=1))
