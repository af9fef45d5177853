"""The built-in schedulers keep the contract."""

from plugserve.core.contracts import PluginContext
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.testing import SchedulerConformance


class TestFcfs(SchedulerConformance):
    def make_scheduler(self):
        return make_fcfs(PluginContext(options=None, config=None))
