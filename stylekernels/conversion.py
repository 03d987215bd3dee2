"""`convert`: replace the instance and group norms of a model in torch.nn by the fused ops."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from stylekernels.nn import (
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from stylekernels.nn.sequential import fusing, runs_in_order, why_apart

#: What becomes of each class.
_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: GroupNorm,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    nn.LazyInstanceNorm1d: LazyInstanceNorm1d,
    nn.LazyInstanceNorm2d: LazyInstanceNorm2d,
    nn.LazyInstanceNorm3d: LazyInstanceNorm3d,
}
_OTHER_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
)
_UPSAMPLING = (nn.ConvTranspose2d, nn.Upsample)


class Entry(NamedTuple):
    """One line of a `Report`: a module's name in the model, its class before the conversion, and
    its replacement or the reason why it was left."""

    name: str
    what: str
    why: str


@dataclass
class Report:
    """The modules that `convert` replaced and left, each in the order of ``named_modules``."""

    replaced: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        entries = self.replaced + self.left
        name_width = max((len(entry.name or "(model)") for entry in entries), default=0)
        what_width = max((len(entry.what) for entry in entries), default=0)
        lines = []
        for title, entries in (("replaced", self.replaced), ("left", self.left)):
            lines.append(f"{title}: {len(entries) or 'nothing'}")
            for name, what, why in entries:
                lines.append(f"  {name or '(model)':{name_width}}  {what:{what_width}}  {why}")
        return "\n".join(lines)


def _why_left(module: nn.Module) -> str | None:
    """Return why this module is left; None if it is replaced, or if no reader would expect it."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", "") in {name.__name__ for name in _OURS}
        return "compiled by torch.jit; convert the model it was made from" if scripted else None
    if isinstance(module, tuple(_OURS.values())):
        return "a stylekernels module already"
    if isinstance(module, tuple(_OURS)):
        if parametrize.is_parametrized(module):
            return "its parameters are parametrized; remove the parametrizations, then convert"
        if kind not in _OURS:
            base = next(base.__name__ for base in kind.__mro__ if base in _OURS)
            return f"a subclass of {base}, which may compute something else"
        if "forward" in vars(module):
            return "its forward was replaced on the instance"
        return None
    if isinstance(module, _OTHER_NORMS):
        return "neither an instance norm nor a group norm"
    if isinstance(module, _UPSAMPLING):
        return "convolutions and resampling stay PyTorch's; UpsampleBlock is for new networks"
    return None


class _Position(NamedTuple):
    """A module's position in a Sequential: the parent, and the next module and its name, if any."""

    parent: nn.Sequential
    key: str | None
    successor: nn.Module | None


def _positions(model: nn.Module) -> dict[nn.Module, list[_Position]]:
    """Return the positions of each module in Sequentials; a module may have several."""
    positions = defaultdict(list)
    for parent in model.modules():
        if runs_in_order(parent):
            # Not named_children, which skips a module that occurs again.
            for (_, module), following in pairwise([*parent._modules.items(), (None, None)]):
                positions[module].append(_Position(parent, *following))
    return positions


def _become_ours(norm: nn.Module) -> None:
    # The object stays and gets another class: hooks, optimizers and other attributes that refer to
    # the module remain valid.
    norm.__class__ = _OURS[type(norm)]
    norm.activation, norm.negative_slope, norm.residual_first = "none", 0.01, False


def convert(model: nn.Module, *, fuse: bool = True) -> tuple[nn.Module, Report]:
    """Replace torch's instance and group norms in a model by fused ops, and report what was done.

    Changes the model itself; pass ``copy.deepcopy(model)`` to keep the original. Every
    `torch.nn.GroupNorm`, `torch.nn.InstanceNorm1d`, ``2d`` and ``3d``, also lazy ones, becomes the
    class of that name in `stylekernels.nn`, with the same Parameter objects (an optimizer keeps
    working), buffers, hooks and training mode; the state_dict has the same keys and the outputs are
    the same up to rounding. A `torch.nn.Sequential` in which a ReLU, LeakyReLU, Tanh, Sigmoid, SiLU
    or GELU follows such a norm becomes a subclass of its class that runs the two as one op. The
    modules in it do not change: code that calls them by index, from a list or in a slice gets the
    results of the unfused modules. Calls in a ``forward``, such as ``F.relu(norm(x))``, are not
    fused: only the norm is replaced.

    The result works with ``torch.compile`` and ``torch.export``. For formats without our ops, such
    as ONNX, export inside ``with stylekernels.use_impl("reference"):``, which runs plain PyTorch.
    ``torch.jit.script`` and ``torch.fx.symbolic_trace`` need the original model.

    Args:
        model: the network; on any device, in any dtype.
        fuse: run a norm and an activation in a Sequential as one op. False keeps its class.

    Returns:
        The model, and a `Report`: print it, or read its ``replaced`` and ``left``.

    Raises:
        TypeError: if model is not an eager `torch.nn.Module`.

    Example:
        >>> model, report = stylekernels.convert(model)
        >>> print(report)
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model: expected an eager torch.nn.Module, got {type(model).__name__}")
    report = Report()
    names = {module: name for name, module in model.named_modules()}
    positions = _positions(model)
    for module, name in names.items():
        kind = type(module)
        why_left = _why_left(module)
        if why_left is not None:
            what = getattr(module, "original_name", kind.__name__)  # torch.jit's name of the class
            report.left.append(Entry(name, what, why_left))
        if why_left is not None or kind not in _OURS:
            continue
        _become_ours(module)
        apart = {found: why_apart(module, found.successor) for found in positions[module]}
        together = [found for found, why in apart.items() if why is None] if fuse else []
        if not together:
            reasons = dict.fromkeys(apart.values()) or [why_apart(module, None)]
            why = "; ".join(reasons) if fuse else "fuse=False"
            report.replaced.append(Entry(name, kind.__name__, f"alone: {why}"))
            continue
        followers = dict.fromkeys(type(found.successor).__name__ for found in together)
        why = f"one op with the {' or '.join(followers)} after it"
        report.replaced.append(Entry(name, kind.__name__, why))
        for parent, key, successor in together:
            parent.__class__ = fusing(type(parent))
            slot = f"{names[parent]}.{key}" if names[parent] else key
            what = type(successor).__name__
            report.replaced.append(Entry(slot, what, f"one op with {name} before it"))
    return model, report
