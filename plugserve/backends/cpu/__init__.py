"""The native CPU backend: quantised forward passes in C++."""
