"""What can be wrong with the files of authorization."""

from __future__ import annotations


class AuthzFileError(Exception):
    """A model or policy file cannot be used; the text names file, line and what to do."""


class MatcherError(Exception):
    """The expression of a model cannot be used; whoever knows file and line adds them."""
