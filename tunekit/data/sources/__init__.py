"""Rows and the place each came from: local files, data sets of the hub, or what a Python caller hands over."""

from tunekit.data.sources.find import find
from tunekit.data.sources.source import Item, Row, RowSource, first_problems

__all__ = ["Item", "Row", "RowSource", "find", "first_problems"]
