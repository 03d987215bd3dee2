"""Examples of calls: the calls of modules in one, and which other calls are like it."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree


class Examples:
    """Arguments of a call of each module in a network, from those of a call of the network.

    Args:
        model: the network.
        args, kwargs: positional arguments, and those by name.
    """

    def __init__(self, model: nn.Module, args: tuple, kwargs: dict[str, object]) -> None:
        shared = {id(parameter): parameter for parameter in model.parameters()}
        self._model = copy.deepcopy(model, shared)
        self._given = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
        self._found: dict[str, tuple[tuple, dict]] | None = None

    def of(self, name: str) -> tuple[tuple, dict] | None:
        """Return the arguments of the first call of a module around others; None if it is not
        called. The network's name is empty."""
        if not name:
            return self._given
        return self.recorded().get(name)

    def recorded(self) -> dict[str, tuple[tuple, dict]]:
        """Return these arguments by the names of the modules. The first time, this runs a copy of
        the network, which raises its own errors if the example is wrong."""
        if self._found is not None:
            return self._found
        self._found = found = {}
        for name, module in self._model.named_modules():
            if list(module.children()):

                def record(_, args: tuple, kwargs: dict, name: str = name) -> None:
                    found.setdefault(name, (args, kwargs))

                module.register_forward_pre_hook(record, with_kwargs=True)
        args, kwargs = self._given
        with torch.no_grad():
            self._model(*args, **kwargs)
        return found


class LikeExample:
    """Calls for which the graph of an example is right: the same nesting of arguments, the same
    numbers, strings and so on in it, and tensors of the same dtypes on the same devices, whose
    sizes meet the conditions that the module's code had on them.

    Args:
        leaves: tensors and other values of the example.
        nesting: that of positional arguments and those by name.
        names: those of the latter, in the order of leaves.
        results: the nesting of what the module returns.
        conditions: computes from leaves whether each condition on sizes is met.
    """

    def __init__(
        self,
        leaves: list,
        nesting: pytree.TreeSpec,
        names: list[str],
        results: pytree.TreeSpec,
        conditions: fx.GraphModule,
    ) -> None:
        self._facts = [_facts(leaf) for leaf in leaves]
        self._nesting, self._names, self._results = nesting, names, results
        self._conditions = conditions

    def tensors(self, args: tuple, options: dict) -> list[Tensor] | None:
        """Return the arguments of the graph; None if a call is another one."""
        if options.keys() != set(self._names):
            return None
        options = {name: options[name] for name in self._names}
        leaves, nesting = pytree.tree_flatten((args, options))
        if nesting != self._nesting or [_facts(leaf) for leaf in leaves] != self._facts:
            return None
        if not all(self._conditions(*leaves)):
            return None
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def difference(self, args: tuple, options: dict) -> str:
        """Return in what a call differs for which there are none."""
        if options.keys() != set(self._names):
            return f"the call has {_named(options)}, the example {_named(self._names)}"
        of_example, _ = pytree.tree_unflatten(range(len(self._facts)), self._nesting)
        counts = len(args), len(of_example)
        if counts[0] != counts[1]:
            return "the call has {} arguments by position, the example {}".format(*counts)
        options = {name: options[name] for name in self._names}
        if pytree.tree_structure((args, options)) != self._nesting:
            return "the arguments are nested in another way than the example's"
        facts = iter(self._facts)
        for name, argument in (*enumerate(args), *options.items()):
            for leaf in pytree.tree_leaves(argument):
                difference = _difference(_facts(leaf), next(facts))
                if difference is not None:
                    inside = "" if leaf is argument else "a value in "
                    return f"{inside}argument {name} {difference}"
        return "its sizes take other branches of the code than the example's"

    def result(self, values: tuple) -> object:
        """Return what the module returns."""
        return pytree.tree_unflatten(values, self._results)

    def __getstate__(self) -> dict[str, object]:
        """Keep the nesting in files and copies as values in it: PyTorch warns of its own class."""
        nested = {
            name: pytree.tree_unflatten(range(spec.num_leaves), spec)
            for name, spec in vars(self).items()
            if isinstance(spec, pytree.TreeSpec)
        }
        return vars(self) | nested

    def __setstate__(self, state: dict[str, object]) -> None:
        nested = {name: pytree.tree_structure(state[name]) for name in ("_nesting", "_results")}
        vars(self).update(state | nested)


def _facts(leaf: object) -> tuple:
    """Return what a graph takes for granted about an argument, besides conditions on sizes. A size
    of 1 stays 1, and the graph for a larger one is not for 1, since `torch.export` decides such
    comparisons silently."""
    if isinstance(leaf, Tensor):
        return Tensor, leaf.dtype, leaf.device, tuple(min(size, 2) for size in leaf.shape)
    return type(leaf), leaf


def _named(names: Iterable[str]) -> str:
    return f"the arguments by name {', '.join(names)}" if names else "no arguments by name"


def _difference(facts: tuple, of_example: tuple) -> str | None:
    """Return in what two arguments differ, given their facts; None if in nothing."""
    if facts == of_example:
        return None
    kinds = facts[0], of_example[0]
    if kinds[0] is not kinds[1]:
        return "is of type {}, the example's of type {}".format(*(kind.__name__ for kind in kinds))
    if kinds[0] is not Tensor:
        return f"is not {of_example[1]!r}, as the example's"
    for now, before in zip(facts[1:3], of_example[1:3], strict=True):  # dtype and device
        if now != before:
            return f"is a tensor of {now}, the example's of {before}"
    sizes, sizes_before = facts[3], of_example[3]
    if len(sizes) != len(sizes_before):
        return f"has {len(sizes)} dimensions, the example's {len(sizes_before)}"
    pairs = enumerate(zip(sizes, sizes_before, strict=True))
    axis, sizes = next(each for each in pairs if each[1][0] != each[1][1])
    words = [("0", "1", "more than 1")[size] for size in sizes]
    return f"has a size of {words[0]} at dimension {axis}, the example's {words[1]}"
