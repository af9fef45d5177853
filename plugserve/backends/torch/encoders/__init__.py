"""Encoders through transformers: embedding models and cross-encoders."""
