"""`convert`: replace norms and transposed convolutions of a model in torch.nn by our ops; `revert`
undoes it."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from stylekernels.nn import (
    ConvTranspose2d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
    forward_calls,
    sequential,
)
from stylekernels.nn.conv_transpose2d import doubles_size
from stylekernels.nn.pairs import ACTIVATIONS, passes_on, why_apart

#: What becomes of each class.
_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.GroupNorm: GroupNorm,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    nn.LazyInstanceNorm1d: LazyInstanceNorm1d,
    nn.LazyInstanceNorm2d: LazyInstanceNorm2d,
    nn.LazyInstanceNorm3d: LazyInstanceNorm3d,
}
_TORCHS = {ours: theirs for theirs, ours in _OURS.items()}
_NORM_NAMES = frozenset(kind.__name__ for kind in _OURS if kind is not nn.ConvTranspose2d)
_OTHER_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
)
_UPSAMPLING = (nn.ConvTranspose2d, nn.Upsample)
_ALREADY = "a stylekernels module already"


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
    that ``strict=True`` refuses: an instance or group norm that stays PyTorch's, or stays apart
    from an activation after it. Of `fuse_convolutions` only, ``traced`` are the modules whose
    calls were found, and by which tracer, and ``untraced`` those whose calls were not, and why:
    modules in these were tried one by one.
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
        everything = [entry for entries in tables.values() for entry in entries]
        label_width = max((len(entry.label) for entry in everything), default=0)
        what_width = max((len(entry.what) for entry in everything), default=0)
        lines = []
        for title, entries in tables.items():
            lines.append(f"{title}: {len(entries) or 'nothing'}")
            for entry in entries:
                lines.append(
                    f"  {entry.label:{label_width}}  {entry.what:{what_width}}  {entry.why}"
                )
        return "\n".join(lines)


def _why_left(module: nn.Module) -> str | None:
    """Return why this module is left; None if it is replaced, or if no reader would expect it."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", "") in {name.__name__ for name in _OURS}
        return "compiled by torch.jit; convert the model it was made from" if scripted else None
    if isinstance(module, ConvTranspose2d):
        return _ALREADY
    if isinstance(module, tuple(_TORCHS)):
        plain = kind in _TORCHS and module.activation == "none"
        return None if plain else _ALREADY
    if isinstance(module, tuple(_OURS)):
        if parametrize.is_parametrized(module):
            return "its parameters are parametrized; remove the parametrizations, then convert"
        if kind not in _OURS:
            base = next(base.__name__ for base in kind.__mro__ if base in _OURS)
            return f"a subclass of {base}, which may compute something else"
        if "forward" in vars(module):
            return "its forward was replaced on the instance"
        if kind is nn.ConvTranspose2d and not doubles_size(module):
            return "no kernel of ours for this size, stride, padding, dilation or groups"
        return None
    if isinstance(module, _OTHER_NORMS):
        return "neither an instance norm nor a group norm"
    if isinstance(module, _UPSAMPLING):
        return "resampling stays PyTorch's; UpsampleBlock is for new networks"
    return None


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm of torch's that is replaced, or a plain one of ours."""
    kind = type(module)
    if kind in (nn.ConvTranspose2d, ConvTranspose2d):
        return False
    return kind in (*_OURS, *_TORCHS) and _why_left(module) is None


class _Position(NamedTuple):
    """A place in which a norm is called: the module that calls it, the class that this module needs
    for calling the norm and the next layer as one, that layer, if any, and the Dropouts between
    them that drop something in training."""

    caller: nn.Module
    kind: type[nn.Module]
    successor: nn.Module | None
    dropouts: tuple[nn.Module, ...] = ()


def _in_sequential(caller: nn.Sequential) -> Iterator[tuple[nn.Module, _Position]]:
    kind = sequential.fusing(type(caller))
    modules = list(caller._modules.values())  # not children, which skips one that occurs again
    for index, module in enumerate(modules):
        after = index + 1
        while after < len(modules) and passes_on(modules[after], in_evaluation=True):
            after += 1
        dropouts = tuple(m for m in modules[index + 1 : after] if getattr(m, "p", 0))
        successor = modules[after] if after < len(modules) else None
        yield module, _Position(caller, kind, successor, dropouts)


def _in_forward(caller: nn.Module) -> Iterator[tuple[nn.Module, _Position]]:
    norms = frozenset(name for name, module in caller._modules.items() if _is_norm(module))
    if norms and "forward" not in vars(caller):
        kind, pairs = forward_calls.fusing(type(caller), norms)
        for norm, successor in pairs:
            if isinstance(successor, str):
                successor = getattr(caller, successor, None)
            yield getattr(caller, norm), _Position(caller, kind, successor)


def _positions(model: nn.Module) -> dict[nn.Module, list[_Position]]:
    """Return the places in which each norm is called with a known successor."""
    positions = defaultdict(list)
    for caller in model.modules():
        found = _in_sequential if sequential.runs_in_order(caller) else _in_forward
        for module, position in found(caller):
            positions[module].append(position)
    return positions


def _become_ours(module: nn.Module) -> None:
    # The object stays and gets another class: hooks, optimizers and other attributes that refer to
    # the module remain valid.
    module.__class__ = _OURS[type(module)]
    if not isinstance(module, ConvTranspose2d):
        module.activation, module.negative_slope, module.residual_first = "none", 0.01, False
    module.converted = True  # what revert looks for


def _become_torchs(module: nn.Module) -> None:
    if not isinstance(module, ConvTranspose2d):
        del module.activation, module.negative_slope, module.residual_first
    del module.converted
    module.__class__ = _TORCHS[type(module)]


def _how_fused(together: list[_Position]) -> str:
    """Return the text of a report about a norm that is one op with its successors."""
    names = dict.fromkeys(type(found.successor).__name__ for found in together)
    text = f"one op with the {' or '.join(names)} after it"
    dropouts = [dropout for found in together for dropout in found.dropouts]
    if dropouts:
        kinds = dict.fromkeys(f"{type(m).__name__}(p={m.p})" for m in dropouts)
        text += f"; in training {' or '.join(kinds)} is between"
    return text


def _plan(model: nn.Module, fuse: bool) -> tuple[Report, list[nn.Module], list[_Position]]:
    """Return the report of a conversion, and the modules and the places to change for it."""
    names = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    positions = _positions(model)
    report, replaced, fused = Report(), [], []
    for module, (name, *others) in names.items():
        kind = type(module)
        what = getattr(module, "original_name", kind.__name__)  # torch.jit's name of the class

        def entry(why: str) -> Entry:
            return Entry(name, what, why, tuple(others))  # noqa: B023

        why_left = _why_left(module)
        if why_left is not None:
            report.left.append(entry(why_left))
            is_norm = what in _NORM_NAMES or isinstance(module, tuple(_OURS))
            if is_norm and not isinstance(module, (*_UPSAMPLING, *_TORCHS)):
                report.missed.append(entry(why_left))
            continue
        if kind not in _OURS and kind not in _TORCHS:
            continue
        if kind is nn.ConvTranspose2d:
            replaced.append(module)
            report.alone.append(entry("our kernel convolves where it is faster"))
            continue
        already = kind in _TORCHS
        found = [p for p in positions[module] if not (already and type(p.caller) is p.kind)]
        apart = [why_apart(module, position.successor) for position in found]
        together = [p for p, why in zip(found, apart, strict=True) if fuse and why is None]
        fused += together
        if not already:
            replaced.append(module)
        if together:
            report.fused.append(entry(_how_fused(together)))
        elif already:
            report.left.append(entry(_ALREADY))
        else:
            reasons = dict.fromkeys(apart) or [why_apart(module, None)]
            report.alone.append(entry("; ".join(reasons) if fuse else "fuse=False"))
        if fuse:
            missed = [
                why
                for position, why in zip(found, apart, strict=True)
                if why is not None and type(position.successor) in ACTIVATIONS
            ]
            report.missed += map(entry, dict.fromkeys(missed))
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
    the same up to rounding.

    A norm and the ReLU, LeakyReLU, Tanh, Sigmoid, SiLU or GELU after it run as one op where a
    `torch.nn.Sequential` calls them, or a ``forward`` that calls them as in
    ``self.act(self.norm(x))`` or ``F.relu(self.norm(x))``, in one statement or in two in a row. The
    module that calls them becomes a subclass of its class for that. In a Sequential an Identity
    between the two, or a Dropout that drops nothing at the time of the call, does not keep them
    apart. The two themselves do not change: code that calls them by index, from a list or in a
    slice gets the results of the unfused modules.

    The result works with ``torch.compile`` and ``torch.export``. For formats without our ops, such
    as ONNX, export inside ``with stylekernels.use_impl("reference"):``, which runs plain PyTorch.
    ``torch.jit.script`` and ``torch.fx.symbolic_trace`` need the original model.

    Args:
        model: the network; on any device, in any dtype.
        fuse: run a norm and the activation after it as one op. False keeps the callers' classes.
        strict: refuse a model of which an instance or group norm cannot be replaced, or with
            ``fuse`` cannot run as one op with such an activation that is called after it.

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
        missed = "; ".join(f"{e.name or '(model)'}, {e.what}: {e.why}" for e in report.missed)
        raise ValueError(
            "model: strict=True expects every instance and group norm to be replaced, and fused "
            f"with an activation after it, but {missed}. The model is unchanged; strict=False "
            "converts the rest"
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
        if type(module) in _TORCHS and "converted" in vars(module):
            _become_torchs(module)
        elif hasattr(type(module), "unfused"):
            module.__class__ = type(module).unfused
    return model
