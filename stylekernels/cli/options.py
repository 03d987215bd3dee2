"""Appearance of options in the help text."""

from typing import Any

import tyro


def option(metavar: str | None = None, alias: str | None = None, hint: str | None = None) -> Any:
    """Describe an option. ``hint`` replaces tyro's note on the default."""
    return tyro.conf.arg(
        metavar=metavar, aliases=(alias,) if alias else None, help_behavior_hint=hint
    )
