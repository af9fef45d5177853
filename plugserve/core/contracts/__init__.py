"""The contracts between core and plugins: Protocols and frozen data, one file a contract, without base classes.

Standard library and msgspec only at run time (torch under TYPE_CHECKING), so that a scheduler is testable in a bare
interpreter. Each method's docstring names its caller and the time of the call; no method is called more than once a
step, except AttentionBackend.run (once a layer).
"""
