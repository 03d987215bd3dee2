"""Layers that are called with the outputs of a model's norms."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn

from stylekernels.nn import forward_calls, sequential
from stylekernels.nn.pairs import ACTIVATIONS, NO_LAYER, NORMS, as_module, passes_on


class Position(NamedTuple):
    """A place in which a norm is called: the module that calls it, the class that this module needs
    for calling the norm and the next layer as one, that layer, and the Dropouts between them that
    drop something in training."""

    caller: nn.Module
    kind: type[nn.Module]
    successor: nn.Module
    dropouts: tuple[nn.Module, ...] = ()


class Apart(NamedTuple):
    """Something else that is done with a norm's output: the text for a report, and whether it is an
    activation that could be one op with the norm, or not known."""

    why: str
    missed: bool = False


class Successors:
    """Layers and operations that take the outputs of a model's norms.

    Args:
        model: the model.
        is_norm: tells a norm that can be one op with an activation.
    """

    def __init__(self, model: nn.Module, is_norm: Callable[[nn.Module], bool]) -> None:
        self._is_norm = is_norm
        self._owners: dict[nn.Module, list[tuple[nn.Module, int, str]]] = defaultdict(list)
        for owner in model.modules():
            for index, (name, module) in enumerate(owner._modules.items()):
                if module is not None:
                    self._owners[module].append((owner, index, name))

    def _fusion(self, owner: nn.Module) -> forward_calls.Fusion:
        norms = (name for name, module in owner._modules.items() if self._is_norm(module))
        return forward_calls.fusing(type(owner), frozenset(norms))

    def of(self, norm: nn.Module) -> tuple[list[Position], list[Apart]]:
        """Return the places in which a norm is called before a layer, and what else is done with
        its output."""
        found = list(dict.fromkeys(self._of(norm, set())))
        positions = [each for each in found if isinstance(each, Position)]
        return positions, [each for each in found if isinstance(each, Apart)]

    def _of(
        self, module: nn.Module, seen: set[nn.Module], via: str = ""
    ) -> Iterator[Position | Apart]:
        """Yield what is done with the output of a module: a norm, or a module that returns the
        norm's output, whose class is ``via``."""
        if module in seen:
            return
        seen.add(module)
        if not self._owners[module]:
            yield Apart(f"{via} returns its output" if via else NO_LAYER)
        called, uncalled = [], []
        for owner, index, name in self._owners[module]:
            if isinstance(owner, nn.ModuleList | nn.ModuleDict):
                found, kind = [], type(owner).__name__
                why = (
                    f"calls from a {kind} cannot be seen; make it an attribute or use a Sequential"
                )
            elif sequential.runs_in_order(owner):
                found, why = list(self._in_sequential(owner, index, seen, via)), NO_LAYER
            else:
                found = list(self._in_methods(owner, name, seen, via))
                why = "" if found else self._fusion(owner).uses.why_none(name)
            called += found
            if not found:
                uncalled.append(_unknown(why, via))
        yield from called or uncalled

    def _in_sequential(
        self, owner: nn.Sequential, index: int, seen: set[nn.Module], via: str
    ) -> Iterator[Position | Apart]:
        following = list(owner._modules.values())[index + 1 :]
        after = _first_active(following)
        if after == len(following):
            yield from self._of(owner, seen, type(owner).__name__)
            return
        dropouts = tuple(m for m in following[:after] if getattr(m, "p", 0))
        kind = sequential.fusing(type(owner))
        yield from _together(Position(owner, kind, following[after], dropouts), via)

    def _in_methods(
        self, owner: nn.Module, name: str, seen: set[nn.Module], via: str
    ) -> Iterator[Position | Apart]:
        kind = type(owner)
        if "forward" in vars(owner):
            why = f"the forward of {kind.__name__} was replaced on the instance"
            yield _unknown(why, via)
            return
        fusion = self._fusion(owner)
        layers = [pair.activation for pair in fusion.pairs if pair.norm == name]
        torchs = not via and not isinstance(owner._modules[name], NORMS)
        uses = fusion.uses.of(name, paired=bool(layers), one_input=torchs)
        found: list[Position | Apart] = []
        for layer in layers:
            successor = _layer(owner, layer)
            if isinstance(successor, nn.Module):
                found += _together(Position(owner, fusion.kind, successor), via)
            else:
                found += _apart(successor, layer, "", via)
        for use in uses:
            if use.returned:
                found += self._of(owner, seen, kind.__name__)
            elif use.layer is not None:
                why = f"but outside of {via}" if via else use.text
                found += _apart(_layer(owner, use.layer), use.layer, why, via)
            else:
                found.append(Apart(use.text) if use.seen else _unknown(use.text, via))
        if found or not (layers or uses):
            yield from found
        else:
            yield Apart(NO_LAYER)


def _layer(owner: nn.Module, layer: str | nn.Module) -> object:
    """Return what an attribute calls, as a module if it is a function that computes the same."""
    return as_module(getattr(owner, layer, None) if isinstance(layer, str) else layer)


def _first_active(layers: list[nn.Module]) -> int:
    """Return the index of the first layer that does not only pass its input on."""
    index = 0
    while index < len(layers) and passes_on(layers[index], in_evaluation=True):
        index += 1
    return index


def _together(position: Position, via: str) -> Iterator[Position | Apart]:
    """Yield a position, or why its layer is apart from the norm: the norm is inside of another
    module, ``via``, or the layer is."""
    first = position.successor
    while sequential.runs_in_order(first):
        layers = list(first._modules.values())
        index = _first_active(layers)
        if index == len(layers):
            break
        first = layers[index]
    if via:
        yield from _apart(first, "", f"but outside of {via}", via)
    elif first is not position.successor and type(first) in ACTIVATIONS:
        kind = type(position.successor).__name__
        yield Apart(f"{type(first).__name__} follows it, but inside of {kind}", missed=True)
    else:
        yield position


def _apart(layer: object, name: str, why: str, via: str) -> Iterator[Apart]:
    """Yield what a layer that is called with the output is, unless the attribute is None and cannot
    be called."""
    kind = type(layer)
    if layer is not None and not isinstance(layer, nn.Module):
        yield _unknown(f"`self.{name}(...)` follows it, and what it computes is not known", via)
    elif kind in ACTIVATIONS:
        yield Apart(f"{kind.__name__} follows it, {why}", missed=True)
    elif layer is not None:
        yield Apart(f"{kind.__name__} follows it")


def _unknown(why: str, via: str) -> Apart:
    return Apart(f"{via} returns its output, and {why}" if via else why, missed=True)
