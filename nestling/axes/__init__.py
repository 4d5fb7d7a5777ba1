"""Axis algebra: find what can shrink in any model, and prove it."""
