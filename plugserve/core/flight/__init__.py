"""The flight recorder's file: what an engine's last requests and steps were, kept in shared memory."""
