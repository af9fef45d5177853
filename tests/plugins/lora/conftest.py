"""The conformance cases count live objects, as tests/testing says."""

from tests.testing.conftest import small_heap

__all__ = ["small_heap"]
