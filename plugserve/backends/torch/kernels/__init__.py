"""Triton kernels that are not attention. Each has a plain torch form elsewhere, which its tests compare it with."""
