"""The commands of `plugserve`, one file each: `run(words, environ)` returns the exit code."""
