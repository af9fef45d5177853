"""Metrics: what plugins register, the values of a process in shared memory, and their text for Prometheus."""
