"""Appearance of options in the help text and in messages."""

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from stylekernels.training.config import RunConfig


def option(metavar: str | None = None, alias: str | None = None, hint: str | None = None) -> Any:
    """Describe an option. ``hint`` replaces tyro's note on the default."""
    return tyro.conf.arg(
        metavar=metavar, aliases=(alias,) if alias else None, help_behavior_hint=hint
    )


def with_options(
    message: str, config: "RunConfig", positional: Mapping[str, str] | None = None
) -> str:
    """Return a message of a trainer, with its settings named as the options of the command.

    Args:
        message: one that begins with a setting's name and a colon.
        config: has the settings.
        positional: names of those in the command that are no options.
    """
    first, colon, rest = message.partition(": ")
    for name in (field.name for field in dataclasses.fields(config)):
        option = (positional or {}).get(name, "--" + name.replace("_", "-"))
        first = option if first == name else first
        if "_" in name:  # others are words of the language too
            rest = re.sub(rf"\b{name}\b", option, rest)
    return first + colon + re.sub(r"\b(add|to) (resume|init)\b", r"\1 --\2", rest)
