"""Loads any schema from YAML files and overrides; knows no schema itself.

A package states its options as a :class:`Spec`; :func:`load` makes a frozen value of it from defaults, what the file
`extends`, the file, and the command line, in this order. All that is wrong is told at once, in a :class:`UserError`.

Rules of merging: maps merge, lists and scalars replace; a later member of a schema's `exclusive` group replaces the
earlier one; and where a later layer changes a map's `kind`, what was written for the old kind stays if the new kind
knows it (a schedule's warm-up survives a change of the schedule) and goes if it does not.
"""

from shearling.config.editor import editor_schema, save_editor_schema
from shearling.config.load import Loaded, load, sections
from shearling.config.record import differences, dump, fingerprint, flatten
from shearling.config.spec import CHOICE, HARMLESS, Choice, CustomSpec, Spec, UserPath, at_home

__all__ = [
    "CHOICE",
    "HARMLESS",
    "Choice",
    "CustomSpec",
    "Loaded",
    "Spec",
    "UserPath",
    "at_home",
    "differences",
    "dump",
    "editor_schema",
    "fingerprint",
    "flatten",
    "load",
    "save_editor_schema",
    "sections",
]
