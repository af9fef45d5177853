"""What plugins and core promise each other: Protocols and frozen data, one file a contract, no base class to inherit.

Standard library and msgspec only at run time (torch under TYPE_CHECKING), so that a scheduler is testable in a bare
interpreter. Who calls what, and when, is said at each method; nothing here is called more often than once a step,
except AttentionBackend.run (once a layer).
"""
