"""`fuse_convolutions`: convolutions of a network that normalise their input themselves."""

import torch
from torch import nn

from stylekernels.conversion import Entry, Report, revert
from stylekernels.fusion.exporting import examples_of, exported
from stylekernels.fusion.geometry import CONVOLUTIONS
from stylekernels.fusion.inputs import NORMS
from stylekernels.fusion.rewriting import Rewriting
from stylekernels.fusion.tracing import CannotTrace, Traced, copied, traced

Examples = dict[str, tuple[tuple, dict]]

_NOT_OF_IMAGES = (nn.Conv1d, nn.Conv3d, nn.InstanceNorm1d, nn.InstanceNorm3d)


def fuse_convolutions(
    model: nn.Module, args: tuple | None = None, kwargs: dict[str, object] | None = None
) -> tuple[nn.Module, Report]:
    """Return a network for inference whose convolutions normalise, activate and pad their input.

    Each `torch.nn.Conv2d`, and each `torch.nn.ConvTranspose2d` that doubles the size, becomes a
    `norm_conv2d`, together with what stands before it: an instance norm with statistics of its
    input or with running ones, a group or batch norm, an activation, an addition, nearest
    upsampling by two, and padding. It also takes the statistics for the instance norm after it.
    Norms that stand before other layers run as `instance_norm` or `group_norm`, with the activation
    and the addition after them. Convolutions that PyTorch runs as fast stay PyTorch's.

    The calls are found by `torch.fx`. Where it cannot follow a module, `torch.export` tries it with
    an example of a call, if ``args`` is given, and then the modules in it are tried.
    The result shares parameters and buffers with the model, which does not change. Its class, its
    methods and the names in its state_dict are the model's. Outputs are the same up to rounding,
    and as contiguous as the first argument; a call with other arguments than the required ones runs
    the model as it was. There are no gradients: call it under ``torch.no_grad()`` or
    ``torch.inference_mode()``. A network and images in channels_last are fastest: PyTorch converts
    the weights of the convolutions that are left at each call otherwise.

    Args:
        model: a network in evaluation mode, on any device, in any dtype; also one that `convert`
            changed.
        args: positional arguments of an example of a call, as for `torch.export.export`. A graph
            of an example is for tensors of its dtypes and devices, of any sizes with which the
            model's code would run in the same way; where one is 1 in the example, of size 1. Other
            calls run the model as it was.
        kwargs: arguments by name of that example.

    Returns:
        The network, and a `Report`: ``traced`` has the modules whose calls were found, and by what,
        ``fused`` the convolutions, ``alone`` the norms that run without one, ``left`` the
        convolutions and norms that stay PyTorch's, and why.

    Raises:
        TypeError: if model is not an eager `torch.nn.Module`, or args not a tuple.
        ValueError: if it is in training mode.

    Example:
        >>> fast, report = stylekernels.fuse_convolutions(model.eval())
        >>> with torch.inference_mode():
        ...     picture = fast(photo)
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model: expected an eager torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                "model: expected a network in evaluation mode, but "
                f"{name or type(module).__name__} is in training mode; call model.eval() first"
            )
    if args is None and kwargs is not None:
        args = ()
    if args is not None and not isinstance(args, tuple):
        raise TypeError(
            "args: expected a tuple, the positional arguments of a call, as in (photo,), got "
            f"{type(args).__name__}"
        )
    try:
        fused = revert(copied(model))
    except RuntimeError as error:
        raise ValueError(
            f"model: expected a network that can be copied, but {error}; call "
            "torch.nn.utils.remove_weight_norm first where a weight is computed"
        ) from error
    report = Report()
    examples = None if args is None else examples_of(fused, args, kwargs or {})
    _fuse_in(fused, "", report, set(), examples)
    if not report.fused and not report.alone:  # nothing runs by ours that `convert` had changed
        fused = copied(model)
    for name, module in model.named_modules():
        if isinstance(module, _NOT_OF_IMAGES):
            why = "not of images (N, C, H, W); `convert` runs such norms"
            report.left.append(Entry(name, type(module).__name__, why))
    names = model.named_modules(remove_duplicate=False)
    order = {name: index for index, (name, _) in enumerate(names)}
    for entries in (report.traced, report.fused, report.alone, report.left):
        entries.sort(key=lambda entry: order.get(entry.name, -1))
    return fused, report


def _trace(module: nn.Module, name: str, examples: Examples | None) -> Traced:
    """Return the graph of a module, by `torch.fx` or else, for calls like an example, by
    `torch.export`.

    Raises:
        CannotTrace: if neither can.
    """
    example = None if examples is None else examples.get(name)
    try:
        found = traced(module)
        if example is None or found.arguments.tensors(*example) is not None:
            return found
        raise CannotTrace(
            "the example has more than the required arguments, or others than tensors"
        )
    except CannotTrace as error:
        if examples is None:
            raise CannotTrace(f"{error}; torch.export needs args, an example of a call") from error
        if example is None:
            raise CannotTrace(f"{error}; the example does not call it") from error
        try:
            found = exported(module, *example)
        except CannotTrace as another:
            raise CannotTrace(f"torch.fx: {error}; torch.export: {another}") from another
        return found._replace(how=f"{found.how}; not by torch.fx: {error}")


def _fuse_in(
    module: nn.Module,
    name: str,
    report: Report,
    known: set[nn.Module],
    examples: Examples | None,
    why: str = "it is the network itself",
) -> None:
    """Fuse the layers of a module, or those of the modules in it, if it cannot be traced.

    Args:
        module: a module.
        name: its name in the network.
        report: receives what became of each layer.
        known: modules that were seen before.
        examples: arguments of a call by the name of the module, for `torch.export`.
        why: the reason why its owner cannot be traced.
    """
    layers = *CONVOLUTIONS, *NORMS
    if module in known or not any(isinstance(each, layers) for each in module.modules()):
        return
    known.add(module)
    if isinstance(module, layers):
        what = type(module).__name__
        report.left.append(Entry(name, what, f"its caller cannot be traced: {why}"))
        return
    try:
        found = _trace(module, name, examples)
    except CannotTrace as error:
        for key, child in module.named_children():
            _fuse_in(child, f"{name}.{key}".strip("."), report, known, examples, str(error))
    else:
        report.traced.append(Entry(name, type(module).__name__, found.how))
        Rewriting(module, found, name, report).run()
