"""`convert`: replace norms and transposed convolutions of a model in torch.nn by our ops; `revert`
undoes it."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from stylekernels.nn import ConvTranspose2d
from stylekernels.nn.conv_transpose2d import doubles_size
from stylekernels.nn.derived import origin
from stylekernels.nn.drop_ins import OPTIONS, OURS, added, base_of, ours, theirs
from stylekernels.nn.pairs import ACTIVATIONS, why_apart
from stylekernels.nn.successors import Apart, Position, Successors

_NORM_NAMES = frozenset(kind.__name__ for kind in OURS if kind is not nn.ConvTranspose2d)
_OTHER_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
)
_UPSAMPLING = (nn.ConvTranspose2d, nn.Upsample)
_ALREADY = "a stylekernels module already"
#: The most rows of a report for modules of one class that are left for one reason.
_MOST_ROWS = 3


class Entry(NamedTuple):
    """One line of a `Report`: a module's name in the model, its class before the conversion, what
    became of it and why, and the other names that the same module has."""

    name: str
    what: str
    why: str
    others: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        count = f" ({1 + len(self.others)} names)" if self.others else ""
        return (self.name or "(model)") + count


@dataclass
class Report:
    """Outcome of `convert` for each norm and upsampling module, or of `fuse_convolutions` for each
    convolution and norm, in the order of ``named_modules``: ``print(report)``.

    ``fused`` are norms that run as one op with the activation after them, ``alone`` those that were
    replaced without one, ``left`` the modules that stay PyTorch's. ``missed`` are those of them
    that ``strict=True`` refuses: an instance or group norm that stays PyTorch's, stays apart from
    an activation after it, or is called where it cannot be seen what follows. Of
    `fuse_convolutions` only, ``traced`` are the modules whose calls were found, and by which
    tracer, and ``untraced`` those whose calls were not, and why: modules in these were tried one by
    one.

    The text has one line for more than three modules of a class that are left for one reason.
    """

    untraced: list[Entry] = field(default_factory=list)
    traced: list[Entry] = field(default_factory=list)
    fused: list[Entry] = field(default_factory=list)
    alone: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    missed: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        tables = {"not traced": self.untraced, "traced": self.traced}
        tables = {title: entries for title, entries in tables.items() if entries}
        tables |= {"fused": self.fused, "replaced alone": self.alone, "left": self.left}
        rows = {
            title: [(entry.label, entry.what, entry.why) for entry in entries]
            for title, entries in tables.items()
        }
        rows["left"] = _in_groups(self.left)
        everything = [row for table in rows.values() for row in table]
        widths = [max((len(row[column]) for row in everything), default=0) for column in (0, 1)]
        lines = []
        for title, entries in tables.items():
            lines.append(f"{title}: {len(entries) or 'nothing'}")
            for label, what, why in rows[title]:
                lines.append(f"  {label:{widths[0]}}  {what:{widths[1]}}  {why}")
        return "\n".join(lines)


def _in_groups(entries: list[Entry]) -> list[tuple[str, str, str]]:
    """Return label, class and reason of entries, in one row for more than three of equal class and
    reason, where the first of them is."""
    groups = defaultdict(list)
    for entry in entries:
        groups[entry.what, entry.why].append(entry)
    rows = []
    for entry in entries:
        group = groups[entry.what, entry.why]
        if len(group) <= _MOST_ROWS:
            rows.append((entry.label, entry.what, entry.why))
        elif entry is group[0]:
            names = ", ".join(each.label for each in group[:_MOST_ROWS])
            label = f"({len(group)} modules)"
            rows.append((label, entry.what, f"{entry.why}: {names}, ..."))
    return rows


def _why_left(module: nn.Module) -> str | None:
    """Return why this module is left; None if it is replaced, or if no reader would expect it."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", "") in {name.__name__ for name in OURS}
        return "compiled by torch.jit; convert the model it was made from" if scripted else None
    if isinstance(module, ConvTranspose2d):
        return _ALREADY
    if isinstance(module, tuple(OURS.values())):
        return None if theirs(kind) and module.activation == "none" else _ALREADY
    base = base_of(kind)
    if base is not None:
        if parametrize.is_parametrized(module):
            return "its parameters are parametrized; remove the parametrizations, then convert"
        if names := added(kind, base):
            return f"a subclass of {base.__name__} that defines {', '.join(names)}"
        if "forward" in vars(module):
            return "its forward was replaced on the instance"
        if taken := [name for name in (*OPTIONS, "converted") if hasattr(module, name)]:
            return f"it has an attribute {taken[0]}, a name that ours uses; rename it"
        if base is nn.ConvTranspose2d and not doubles_size(module):
            return "no kernel of ours for this size, stride, padding, dilation or groups"
        return None
    if isinstance(module, _OTHER_NORMS):
        return "neither an instance norm nor a group norm"
    if isinstance(module, _UPSAMPLING):
        return "resampling stays PyTorch's; UpsampleBlock is for new networks"
    return None


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm of torch's that is replaced, or a plain one of ours."""
    base = theirs(type(module)) or base_of(type(module))
    return base is not None and not issubclass(base, nn.ConvTranspose2d) and not _why_left(module)


def _become_ours(module: nn.Module) -> None:
    # The object stays and gets another class: hooks, optimizers and other attributes that refer to
    # the module remain valid.
    module.__class__ = ours(type(module))
    if not isinstance(module, ConvTranspose2d):
        vars(module).update(OPTIONS)
    module.converted = True  # what revert looks for


def _become_torchs(module: nn.Module) -> None:
    if not isinstance(module, ConvTranspose2d):
        for name in OPTIONS:
            delattr(module, name)
    del module.converted
    module.__class__ = theirs(type(module))


def _how_fused(together: list[Position], missed: list[str]) -> str:
    """Return the text of a report about a norm that is one op with its successors, but for calls
    that were missed."""
    names = dict.fromkeys(type(found.successor).__name__ for found in together)
    text = f"one op with the {' or '.join(names)} after it"
    dropouts = [dropout for found in together for dropout in found.dropouts]
    if dropouts:
        kinds = dict.fromkeys(f"{type(m).__name__}(p={m.p})" for m in dropouts)
        text += f"; in training {' or '.join(kinds)} is between"
    return "; elsewhere ".join([text, *missed])


def _plan(model: nn.Module, fuse: bool) -> tuple[Report, list[nn.Module], list[Position]]:
    """Return the report of a conversion, and the modules and the places to change for it."""
    names = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    successors = Successors(model, _is_norm)
    report, replaced, fused = Report(), [], []
    for module, (name, *others) in names.items():
        kind = type(module)
        what = getattr(module, "original_name", kind.__name__)  # torch.jit's name of the class

        def entry(why: str) -> Entry:
            return Entry(name, what, why, tuple(others))  # noqa: B023

        why_left = _why_left(module)
        base, already = base_of(kind), theirs(kind) is not None
        if why_left is not None:
            report.left.append(entry(why_left))
            is_norm = base not in (None, nn.ConvTranspose2d) or what in _NORM_NAMES
            if is_norm and not isinstance(module, tuple(OURS.values())):
                report.missed.append(entry(why_left))
            continue
        if base is None and not already:
            continue
        if base is nn.ConvTranspose2d:
            replaced.append(module)
            report.alone.append(entry("our kernel convolves where it is faster"))
            continue
        positions, apart = successors.of(module)
        positions = [p for p in positions if not (already and type(p.caller) is p.kind)]
        together = []
        for position in positions:
            why = why_apart(module, position.successor)
            if why is None:
                together.append(position)
            else:
                apart.append(Apart(why, missed=type(position.successor) in ACTIVATIONS))
        if not already:
            replaced.append(module)
        missed = list(dict.fromkeys(each.why for each in apart if each.missed))
        if fuse:
            fused += together
            report.missed += [entry("; ".join(missed))] if missed else []
        if fuse and together:
            report.fused.append(entry(_how_fused(together, missed)))
        elif already:
            report.left.append(entry(_ALREADY))
        else:
            reasons = missed or dict.fromkeys(each.why for each in apart)
            report.alone.append(entry("; ".join(reasons) if fuse else "fuse=False"))
    return report, replaced, fused


def _check_eager(model: nn.Module) -> None:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model: expected an eager torch.nn.Module, got {type(model).__name__}")


def convert(
    model: nn.Module, *, fuse: bool = True, strict: bool = False
) -> tuple[nn.Module, Report]:
    """Replace norms and transposed convolutions of torch's by our ops, and report what was done.

    Changes the model itself; `revert` undoes it, and ``copy.deepcopy(model)`` keeps the original.
    Every `torch.nn.GroupNorm`, `torch.nn.InstanceNorm1d`, ``2d`` and ``3d``, also lazy ones, and
    every `torch.nn.ConvTranspose2d` that doubles an image's size, becomes the class of that name in
    `stylekernels.nn`, with the same Parameter objects (an optimizer keeps working), buffers, hooks
    and training mode, under each of its names; the state_dict has the same keys and the outputs are
    the same up to rounding. A subclass that adds nothing but an ``__init__`` is replaced too, and
    its objects stay instances of it.

    A norm and the ReLU, LeakyReLU, Tanh, Sigmoid, SiLU or GELU after it run as one op where a
    `torch.nn.Sequential` calls them, or a method of a module that calls them as in
    ``self.act(self.norm(x))``, ``F.relu(self.norm(x))`` or ``self.norm(x).relu()``, in one
    statement or in two in a row. The module that calls them becomes a subclass of its class for
    that. In a Sequential an Identity between the two, or a Dropout that drops nothing at the time
    of the call, does not keep them apart. The two themselves do not change: code that calls them by
    index, from a list or in a slice gets the results of the unfused modules.

    The result works with ``torch.compile`` and ``torch.export``. For formats without our ops, such
    as ONNX, export inside ``with stylekernels.use_impl("reference"):``, which runs plain PyTorch.
    ``torch.jit.script`` and ``torch.fx.symbolic_trace`` need the original model.

    Args:
        model: the network; on any device, in any dtype.
        fuse: run a norm and the activation after it as one op. False keeps the callers' classes.
        strict: refuse a model of which an instance or group norm cannot be replaced; or with
            ``fuse``, of which one cannot run as one op with such an activation that is called after
            it, or is called where it cannot be seen what follows, as from a ModuleList.

    Returns:
        The model, and a `Report`: print it, or read its ``fused``, ``alone`` and ``left``.

    Raises:
        TypeError: if model is not an eager `torch.nn.Module`.
        ValueError: if ``strict`` refuses the model, which is unchanged then.

    Example:
        >>> model, report = stylekernels.convert(model)
        >>> print(report)
    """
    _check_eager(model)
    report, replaced, fused = _plan(model, fuse)
    if strict and report.missed:
        missed = "\n".join(f"  {e.name or '(model)'}, {e.what}: {e.why}" for e in report.missed)
        raise ValueError(
            "model: strict=True expects every instance and group norm to be replaced, what follows "
            "it to be seen, and an activation to be one op with it. The model is unchanged; "
            f"strict=False converts all but\n{missed}"
        )
    for module in replaced:
        _become_ours(module)
    for position in fused:
        position.caller.__class__ = position.kind
    return model, report


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert`: give modules their classes of before, and keep parameters and buffers.

    Works on a copy of a converted model too, and on one that was saved and loaded. Modules of
    `stylekernels.nn` that the model was built with stay.

    Args:
        model: the network; changed itself.

    Returns:
        The model.

    Raises:
        TypeError: if model is not an eager `torch.nn.Module`.
    """
    _check_eager(model)
    for module in model.modules():
        if theirs(type(module)) and "converted" in vars(module):
            _become_torchs(module)
        else:
            module.__class__ = origin(type(module))
    return model
