"""Searches: propose specs. One file each."""

from nestling.search.uniform import ladder

__all__ = ["ladder"]
