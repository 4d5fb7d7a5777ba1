"""Nestling: one network, every size."""
