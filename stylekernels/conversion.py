"""Puts the fused ops under a model written with torch.nn, and says what it did."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from stylekernels.nn import InstanceNorm2d

_ACTIVATIONS = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_LAZY = (nn.LazyInstanceNorm1d, nn.LazyInstanceNorm2d, nn.LazyInstanceNorm3d)
_OTHER_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
_UPSAMPLING = (nn.ConvTranspose2d, nn.Upsample)


class Entry(NamedTuple):
    """One line of a `Report`: a module's name in the model, its class before the conversion, and
    what became of it or why nothing did."""

    name: str
    what: str
    why: str


@dataclass
class Report:
    """What `convert` replaced and what it left, each in the order of ``named_modules``."""

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


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _why_left(module: nn.Module) -> str | None:
    """Why this module stays as it is; None for those that are replaced and those that no reader
    would expect to be."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", "") in ("InstanceNorm2d", "LazyInstanceNorm2d")
        return "compiled by torch.jit; convert the model it was made from" if scripted else None
    if isinstance(module, InstanceNorm2d):
        return "a stylekernels module already"
    if isinstance(module, _LAZY):
        return "its number of channels is not known yet; run the model once, then convert"
    if isinstance(module, nn.InstanceNorm2d):
        if parametrize.is_parametrized(module):
            return "its parameters are parametrized; remove the parametrizations, then convert"
        if kind is not nn.InstanceNorm2d:
            return "a subclass of InstanceNorm2d, which may compute something else"
        if "forward" in vars(module):
            return "its forward was replaced on the instance"
        return None
    if isinstance(module, _INSTANCE_NORMS):
        return "the ops are for images, (N, C, H, W)"
    if isinstance(module, _OTHER_NORMS):
        return "not an instance norm"
    if isinstance(module, _UPSAMPLING):
        return "convolutions and resampling stay PyTorch's; UpsampleBlock is for new networks"
    return None


def _successors(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Sequential, str, nn.Module]]:
    """Each module whose output goes straight to another: it, their Sequential, and the other's
    name there and module."""
    for parent in model.modules():
        if not isinstance(parent, nn.Sequential):
            continue
        if type(parent).forward is not nn.Sequential.forward or "forward" in vars(parent):
            continue
        # Not named_children, which leaves out a module the second time it comes.
        for (_, module), (key, successor) in pairwise(parent._modules.items()):
            yield module, parent, key, successor


def _why_alone(norm: nn.Module, successor: nn.Module | None, places: int) -> str | None:
    """Why the norm can't take over what comes after it; None if it can."""
    if successor is None:
        return "nothing follows it in a Sequential"
    kind = type(successor)
    if kind not in _ACTIVATIONS:
        return f"{kind.__name__} follows it"
    if "forward" in vars(successor):
        return f"{kind.__name__} follows it, with a forward of its own"
    if places > 1:
        return f"it stands in {places} places"
    if _has_hooks(norm):
        return "it has hooks, which would see the activated output"
    if _has_hooks(successor):
        return f"the {kind.__name__} after it has hooks"
    return None


def _become_ours(norm: nn.Module, activation: nn.Module | None = None) -> None:
    # Another class for the same object: whoever holds the module, a hook, an optimizer or an
    # attribute of its parent's, goes on holding the one that runs.
    norm.__class__ = InstanceNorm2d
    norm.activation = "none" if activation is None else _ACTIVATIONS[type(activation)]
    norm.negative_slope = getattr(activation, "negative_slope", 0.01)
    norm.residual_first = False


def convert(model: nn.Module, *, fuse: bool = True) -> tuple[nn.Module, Report]:
    """Replace torch's instance norms in a model by the fused ops, and say what was done.

    Changes the model itself; pass ``copy.deepcopy(model)`` to keep the original. Every
    `torch.nn.InstanceNorm2d` becomes a `stylekernels.nn.InstanceNorm2d`, with the same Parameter
    objects (an optimizer keeps working), buffers, hooks and training mode; the state_dict has the
    same keys and the outputs are the same up to rounding. Where a ReLU, LeakyReLU, Tanh or Sigmoid
    follows the norm in a `torch.nn.Sequential`, the norm applies it, and an Identity takes its
    place, so that every index and key stays. What a ``forward`` calls by itself, such as
    ``F.relu(norm(x))``, is left to that code: only the norm is replaced.

    The result works with ``torch.compile`` and ``torch.export``. For formats that know no op of
    ours, such as ONNX, export inside ``with stylekernels.use_impl("reference"):``, where it is
    plain PyTorch. ``torch.jit.script`` and ``torch.fx.symbolic_trace`` need the original model.

    Args:
        model: the network; on any device, in any dtype.
        fuse: let norms take over the activations after them. False for code that reads
            intermediate results out of a Sequential by index: it would find the activated output
            at the norm's index.

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
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    successors = {module: following for module, *following in _successors(model)}
    for module, name in names.items():
        kind = type(module)
        why_left = _why_left(module)
        if why_left is not None:
            what = getattr(module, "original_name", kind.__name__)  # torch.jit's, of the class
            report.left.append(Entry(name, what, why_left))
        if why_left is not None or kind is not nn.InstanceNorm2d:
            continue
        parent, key, successor = successors.get(module, (None, None, None))
        why_alone = _why_alone(module, successor, places[module]) if fuse else "fuse=False"
        if why_alone is not None:
            _become_ours(module)
            report.replaced.append(Entry(name, kind.__name__, f"alone: {why_alone}"))
            continue
        _become_ours(module, successor)
        setattr(parent, key, nn.Identity().train(successor.training))
        parent_name = names[parent]
        slot = f"{parent_name}.{key}" if parent_name else key
        what = type(successor).__name__
        report.replaced.append(Entry(name, kind.__name__, f"one op with the {what} after it"))
        report.replaced.append(Entry(slot, what, f"an Identity now, {name} applies it"))
    return model, report
