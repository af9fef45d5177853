"""Settings of vLLM that plugserve has no setting for: translated, without effect, or refused by name.

Settings that both have, and vLLM's other names for plugserve's, are in the *_settings modules and old_names.
"""
