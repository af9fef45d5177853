"""The memory ledger as text, and the changes of settings that make a model fit."""
