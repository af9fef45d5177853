"""`plugserve replay`: what an engine recorded before it died, in words, and again on an engine."""
