"""Rows as people write them, turned into the rows of `tunekit.data.rows`.

A source has one format, that of its first good row; a row that does not fit is rejected with its place and never a
guess. What is left out: images and other content that is no text.
"""

from tunekit.data.formats.catalogue import FORMATS
from tunekit.data.formats.convert import Found, convert

__all__ = ["FORMATS", "Found", "convert"]
