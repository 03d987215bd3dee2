"""`fuse_convolutions`: convolutions of a network that normalise their input themselves."""

import torch
from torch import nn

from stylekernels.conversion import Entry, Report
from stylekernels.fusion.examples import Examples
from stylekernels.fusion.exporting import exported
from stylekernels.fusion.geometry import CONVOLUTIONS
from stylekernels.fusion.inputs import NORMS
from stylekernels.fusion.rewriting import Rewriting
from stylekernels.fusion.running import class_name, forget
from stylekernels.fusion.tracing import CannotTrace, Traced, copied, traced
from stylekernels.nn.pairs import has_hooks

_NOT_OF_IMAGES = (nn.Conv1d, nn.Conv3d, nn.InstanceNorm1d, nn.InstanceNorm3d)
_BY_NAME = 'pass the arguments by name of a call, as in {"scale": 2.0}'


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
    an example of a call, if one is given, and then the modules in it are tried. What cannot be
    traced stays as it is in the model, also as `convert` made it.

    The result shares parameters and buffers with the model, which does not change. Its class, its
    methods and the names in its state_dict are the model's. Only ``forward`` is fused: for a part
    that another method calls, as in ``vae.decode(z)``, fuse that part, ``vae.decoder``. Outputs are
    the same up to rounding, and as contiguous as the first argument. A call that no graph is for
    runs the model's own code, which is slower, with a `NotFusedWarning`. There are no gradients:
    call it under ``torch.no_grad()`` or ``torch.inference_mode()``. A network and images in
    channels_last are fastest: PyTorch converts the weights of the convolutions that are left at
    each call otherwise.

    Args:
        model: a network in evaluation mode, on any device, in any dtype; also one that `convert`
            changed.
        args: positional arguments of an example of a call, as for `torch.export.export`. A graph
            of an example is for tensors of its dtypes and devices, of any sizes with which the
            model's code would run in the same way; where one is 1 in the example, of size 1.
            Without it, a graph is for calls with the required arguments, all of them tensors.
        kwargs: arguments by name of that example.

    Returns:
        The network, and a `Report`: ``untraced`` has the modules whose calls were not found, and
        why, ``traced`` those whose calls were, and by what, ``fused`` the convolutions, ``alone``
        the norms that run without one, ``left`` the convolutions and norms that stay the model's,
        and why.

    Raises:
        TypeError: if model is not an eager `torch.nn.Module`, args not a tuple, or kwargs not a
            dict with strings as keys.
        ValueError: if the model is in training mode, or cannot be copied.

    Example:
        >>> fast, report = stylekernels.fuse_convolutions(model.eval())
        >>> with torch.inference_mode():
        ...     picture = fast(photo)
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"model: expected an eager torch.nn.Module, got {type(model).__name__}; pass the "
            "network itself, before torch.jit compiles it"
        )
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                "model: expected a network in evaluation mode, but "
                f"{name or type(module).__name__} is in training mode; call model.eval() first"
            )
    if args is not None and not isinstance(args, tuple):
        raise TypeError(
            f"args: expected a tuple, got {type(args).__name__}; pass the positional arguments of "
            "a call, as in (photo,)"
        )
    if kwargs is not None and not isinstance(kwargs, dict):
        raise TypeError(f"kwargs: expected a dict, got {type(kwargs).__name__}; {_BY_NAME}")
    for key in kwargs or ():
        if not isinstance(key, str):
            raise TypeError(f"kwargs: expected names as keys, got {key!r}; {_BY_NAME}")
    try:
        fused = copied(model)
    except RuntimeError as error:
        raise ValueError(
            f"model: expected a network that can be copied, but {error}; call "
            "torch.nn.utils.remove_weight_norm first where a weight is computed"
        ) from error
    forget(fused)
    report = Report()
    has_example = args is not None or kwargs is not None
    examples = Examples(fused, args or (), kwargs or {}) if has_example else None
    _fuse_in(fused, "", report, set(), examples)
    for name, module in model.named_modules():
        if isinstance(module, _NOT_OF_IMAGES):
            why = "not of images (N, C, H, W); `convert` runs such norms"
            report.left.append(Entry(name, type(module).__name__, why))
    names = model.named_modules(remove_duplicate=False)
    order = {name: index for index, (name, _) in enumerate(names)}
    for entries in (report.untraced, report.traced, report.fused, report.alone, report.left):
        entries.sort(key=lambda entry: order.get(entry.name, -1))
    return fused, report


def _trace(module: nn.Module, name: str, examples: Examples | None) -> Traced:
    """Return the graph of a module, by `torch.fx` or else, for calls like an example, by
    `torch.export`.

    Raises:
        CannotTrace: if neither can.
    """
    if "forward" in vars(module):
        raise CannotTrace("its forward was replaced on the instance; define it in a class")
    example = None if examples is None else examples.of(name)
    try:
        found = traced(module)
        if example is None or found.arguments.tensors(*example) is not None:
            return found
        raise CannotTrace(
            f"its graph would not be for the example: {found.arguments.difference(*example)}"
        )
    except CannotTrace as error:
        if examples is None:
            can_export = not any(map(has_hooks, module.modules()))
            advice = "; pass args, an example of a call, to try torch.export" if can_export else ""
            raise CannotTrace(f"{error}{advice}") from error
        if example is None:
            advice = "the example does not call it, pass one that does"
            raise CannotTrace(f"{error}; {advice}") from error
        try:
            found = exported(module, *example)
        except CannotTrace as another:
            examples.recorded()  # its own error, if the example is wrong
            same = str(error) == str(another)
            why = str(error) if same else f"torch.fx: {error}; torch.export: {another}"
            raise CannotTrace(why) from another
        return found._replace(how=f"{found.how}; not by torch.fx: {error}")


def _fuse_in(
    module: nn.Module,
    name: str,
    report: Report,
    known: set[nn.Module],
    examples: Examples | None,
    owner: str | None = None,
) -> None:
    """Fuse the layers of a module, or those of the modules in it, if it cannot be traced.

    Args:
        module: a module.
        name: its name in the network.
        report: receives what became of each layer.
        known: modules that were seen before.
        examples: arguments of a call by the name of the module, for `torch.export`.
        owner: the name of the module around it that cannot be traced, if any.
    """
    layers = *CONVOLUTIONS, *NORMS
    if module in known or not any(isinstance(each, layers) for each in module.modules()):
        return
    known.add(module)
    if isinstance(module, layers):
        why = "the network is this layer" if owner is None else f"in {owner}, which was not traced"
        if "converted" in vars(module):
            why += "; it runs as `convert` made it"
        report.left.append(Entry(name, type(module).__name__, why))
        return
    what = class_name(module)
    if type(module).forward is not nn.Module.forward:  # else a list or dictionary of modules
        try:
            found = _trace(module, name, examples)
        except CannotTrace as error:
            entry = Entry(name, what, str(error))
            report.untraced.append(entry)
            owner = entry.label
        else:
            report.traced.append(Entry(name, what, found.how))
            Rewriting(module, found, name, report).run()
            return
    for key, child in module.named_children():
        _fuse_in(child, f"{name}.{key}".strip("."), report, known, examples, owner)
