"""Calls of fused modules: they run the graph, or the module's own code where the graph is for other
calls."""

import functools
import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from stylekernels.nn.derived import origin


class NotFusedWarning(UserWarning):
    """A module of a fused network runs its own code, since its graph is not for such a call. As
    usual, Python shows each text once for each place of a call.
    ``warnings.simplefilter("error", NotFusedWarning)`` makes it an error, before the module runs
    and at each such call."""


class Arguments(Protocol):
    """The arguments of the calls of a module that its graph is for."""

    def tensors(self, args: tuple, options: dict) -> Sequence[Tensor] | None:
        """Return the arguments of the graph; None if a call is another one."""

    def difference(self, args: tuple, options: dict) -> str:
        """Return in what a call differs for which there are none."""

    def result(self, values: object) -> object:
        """Return what the module returns, for what the graph does."""


class Required:
    """Calls with the required arguments only, all of them tensors: the graph has the branches for
    tensors, not for None.

    Args:
        names: those of the arguments.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def tensors(self, args: tuple, options: dict) -> tuple[Tensor, ...] | None:
        """Return the arguments of the graph; None if a call is another one."""
        named = self._names[len(args) :]
        if len(args) > len(self._names) or options.keys() != set(named):
            return None
        given = *args, *(options[name] for name in named)
        return given if all(isinstance(each, Tensor) for each in given) else None

    def difference(self, args: tuple, options: dict) -> str:
        """Return in what a call differs for which there are none."""
        graphs = f"the graph is for calls with {', '.join(self._names)}"
        if len(args) > len(self._names):
            return f"the call has {len(args)} arguments by position, and {graphs}"
        named = self._names[len(args) :]
        for name in options:
            if name not in named:
                return f"the call has the argument {name}, and {graphs}"
        for name in named:
            if name not in options:
                return f"the call lacks the argument {name}"
        given = dict(zip(self._names, args, strict=False)) | options
        name = next(name for name in self._names if not isinstance(given[name], Tensor))
        return f"argument {name} is of type {type(given[name]).__name__}, not a tensor"

    def result(self, values: object) -> object:
        """Return what the module returns, for what the graph does: the same."""
        return values


def class_name(module: nn.Module) -> str:
    """Return the name of a module's class, as before `convert`."""
    return origin(type(module)).__name__


def _warn(module: nn.Module, name: str, arguments: Arguments, args: tuple, options: dict) -> None:
    """Warn of a call that runs a module's own code, at the place of the call."""
    why = "it is in training mode. Call eval()"
    if not module.training:
        why = arguments.difference(args, options)
        why += ". To fuse such calls, pass one of them to fuse_convolutions as the example"
    what = f"{name or 'the network'} ({class_name(module)})"
    warnings.warn(
        f"{what} runs the model's own code, not the fused graph: {why}",
        NotFusedWarning,
        stacklevel=5,  # past _run and the two functions of nn.Module that call it
    )


def _run(
    module: nn.Module,
    graph: fx.GraphModule,
    arguments: Arguments,
    attributes: Sequence[Sequence[str]],
    name: str,
    /,
    *args,
    **options,
):
    """Run the graph for the calls that it is for, else the module's own forward."""
    tensors = None if module.training else arguments.tensors(args, options)
    if tensors is None:
        if not torch.compiler.is_compiling():
            _warn(module, name, arguments, args, options)
        return type(module).forward(module, *args, **options)
    return arguments.result(
        graph(*tensors, *(functools.reduce(getattr, path, module) for path in attributes))
    )


def let_run(
    module: nn.Module,
    graph: fx.GraphModule,
    arguments: Arguments,
    attributes: Sequence[str],
    name: str,
) -> None:
    """Replace a module's forward by a graph. Its class, names and other methods stay.

    Args:
        module: the module.
        graph: runs for the calls that it is for.
        arguments: those of these calls.
        attributes: the parameters and buffers that the graph takes behind them.
        name: the module's name in the network, for warnings.
    """
    # Past the module's __setattr__, which would give the parameters of the graph new names.
    paths = [attribute.split(".") for attribute in attributes]
    forward = functools.partial(_run, module, graph, arguments, paths, name)
    object.__setattr__(module, "forward", forward)


def forget(model: nn.Module) -> None:
    """Undo `let_run` for each module of a network."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, functools.partial) and forward.func is _run:
            del module.forward
