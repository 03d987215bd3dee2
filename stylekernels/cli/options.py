"""Appearance of options in the help text and in messages."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

if TYPE_CHECKING:
    from stylekernels.training.config import RunConfig


def option(metavar: str | None = None, alias: str | None = None, hint: str | None = None) -> Any:
    """Describe an option. ``hint`` replaces tyro's note on the default."""
    return tyro.conf.arg(
        metavar=metavar, aliases=(alias,) if alias else None, help_behavior_hint=hint
    )


class Grouped:
    """Base of the dataclasses that have a verb's options in groups, one in each field."""

    verb: type

    def ungrouped(self) -> Any:
        """Return the verb with the values of all groups."""
        groups = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return self.verb(
            **{
                f.name: getattr(group, f.name)
                for group in groups
                for f in dataclasses.fields(group)
            }
        )


def described(verb: type, groups: Mapping[str, Sequence[str]] | None = None) -> type:
    """Return a dataclass for a verb's options with help texts for a terminal.

    Lines of a docstring are joined, literals lose one of their two quotes, and settings are named
    as options. An option that has no value by default needs no note on that.

    Args:
        verb: a dataclass.
        groups: names of all its fields, by the headings of the help text.

    Returns:
        A subclass of the verb, or with groups a subclass of `Grouped`.
    """
    texts: dict[str, str] = {}
    for base in reversed(verb.__mro__[:-1]):
        for entry in docstring_parser.parse_from_object(base).params:
            texts[entry.arg_name] = entry.description or ""
    hints = get_type_hints(verb, include_extras=True)
    fields = dataclasses.fields(verb)
    names = "|".join(field.name for field in fields)
    described = {}
    for field in fields:
        text = " ".join(texts[field.name].split())
        text = re.sub(rf"``({names})=(\w+)``", lambda m: f"`{_flag(m[1])} {m[2]}`", text)
        text = re.sub(rf"``({names})``", lambda m: f"`{_flag(m[1])}`", text)
        hint = hints[field.name]
        if get_origin(hint) is not Annotated and field.default is None:
            (kind,) = {*get_args(hint)} - {NoneType}
            hint = Annotated[hint, option(kind.__name__.upper(), hint="")]
        shown = Annotated[hint, tyro.conf.arg(help=text.replace("``", "`"))]
        described[field.name] = (field.name, shown, field)
    if groups is None:
        return dataclasses.make_dataclass(
            verb.__name__, described.values(), bases=(verb,), kw_only=True
        )
    members = []
    for title, chosen in groups.items():
        group = dataclasses.make_dataclass(
            verb.__name__, [described.pop(field) for field in chosen], kw_only=True
        )
        named = tyro.conf.arg(name=title, help="")
        members.append(
            (title.replace(" ", "_"), tyro.conf.OmitArgPrefixes[Annotated[group, named]])
        )
    if described:
        raise ValueError(f"groups: expected all fields of {verb.__name__}, without {[*described]}")
    return dataclasses.make_dataclass(
        verb.__name__, members, bases=(Grouped,), kw_only=True, namespace={"verb": verb}
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


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
        option = (positional or {}).get(name, _flag(name))
        first = option if first == name else first
        if "_" in name:  # others are words of the language too
            rest = re.sub(rf"\b{name}\b", option, rest)
    return first + colon + re.sub(r"\b(add|to|with) (resume|init|overwrite)\b", r"\1 --\2", rest)
