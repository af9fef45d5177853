"""The native runner keeps the runner's contract: each format, and a model with everything."""

from plugserve.core.rows.host_runner import HostRunner
from plugserve.testing import RunnerConformance
from tests.backends.cpu.native_models import SPEC, SPECS, make_forward, needs_library


@needs_library
class TestNativeBfloat16(RunnerConformance):
    def make_runner(self):
        return HostRunner(make_forward(SPEC, "none", threads=2), num_rows=8)


@needs_library
class TestNativeInt8(RunnerConformance):
    def make_runner(self):
        return HostRunner(make_forward(SPEC, "int8"), num_rows=8)


@needs_library
class TestNativeInt4WithEverything(RunnerConformance):
    def make_runner(self):
        return HostRunner(make_forward(SPECS["windows, caps, norms"], "int4", threads=3), num_rows=8)
