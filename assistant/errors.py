"""The kinds of error this program raises on purpose.

A message says what was expected, what was found, and what to do. Anything else that is raised is a fault: it is
logged with its traceback under a reference, and the reader sees the reference.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the reader can act on; the message is shown to them as it is."""


class Forbidden(UserError):
    """The caller may not do this, or the thing is not theirs (which must look the same as "does not exist")."""


class PluginError(Exception):
    """The plugin's author must mend this; raised while loading, names class and argument."""


class ModelMissing(UserError):
    """A model that is asked for is not in place; the message names the command that puts it there."""


class ArtifactRejected(UserError):
    """A file that would be loaded does not match its manifest, or could run code."""
