"""The table of implementations: (op, type of device) -> implementations in order of preference.

``native``     C++ kernels, on a GPU CUDA C++, behind ``torch.ops.stylekernels``
``triton``     Triton kernels on a GPU, or on the CPU in Triton's interpreter
``reference``  plain PyTorch, on every device, which a compiler can inline; the last of every row

Each op registers its row beside its public function, with predicates that decline arguments.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from stylekernels import native
from stylekernels.ops.forcing import ENVIRONMENT, forced
from stylekernels.ops.transforms import transformed


def _triton_lacks() -> str | None:
    """Return why Triton's kernels can't be used on any device; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    # Triton compiles a launcher in C for each kernel.
    if not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))):
        return "Triton finds no C compiler (gcc or clang) for its launchers"
    return None


#: The reason why there are no Triton kernels, or None. The interpreter runs them on the CPU for
#: tests: it takes seconds for what takes microseconds on a GPU.
triton_missing: str | None = _triton_lacks()
interprets_triton: bool = triton_missing is None and os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Implementation:
    """An implementation of an op on a type of device.

    Attributes:
        name: ``native`` or ``triton``.
        declines: a predicate of the arguments of `choose`, or None to accept all. It returns the
            reason why the next implementation of the row is better for them, or None.
    """

    name: str
    declines: Callable[..., str | None] | None = None


NATIVE, TRITON = Implementation("native"), Implementation("triton")

#: Names of the public ops, as `explain` takes them.
OPS: list[str] = []
_table: dict[str, dict[str, tuple[Implementation, ...]]] = {}
_notes: dict[str, Callable[..., str]] = {}


def register(
    op: str,
    *,
    cpu: tuple[Implementation, ...] = (NATIVE, TRITON),
    cuda: tuple[Implementation, ...] = (TRITON,),
    note: Callable[..., str] | None = None,
    public: bool = True,
) -> None:
    """Put an op into the table.

    Args:
        op: name of the op.
        cpu, cuda: implementations in order of preference; the reference follows them.
        note: a function of the op's arguments that returns text for `explain` to add, or "".
        public: whether `explain` takes the op.
    """
    _table[op] = {"cpu": cpu, "cuda": cuda}
    if public:
        OPS.append(op)
    if note is not None:
        _notes[op] = note


def choose(op: str, device_type: str, *arguments: object) -> str:
    """Return the name of the implementation of an op on a type of device.

    Args:
        op: a name from the table.
        device_type: ``cpu`` or ``cuda``; all others have only the reference.
        arguments: the arguments of the row's predicates.

    Raises:
        RuntimeError: if the forced implementation is not available.
    """
    row = _table[op].get(device_type, ())
    name = forced()
    if name is None:
        for candidate in row:
            if (
                _missing(candidate.name, device_type) is None
                and not _is_interpreter(candidate.name, device_type)
                and (candidate.declines is None or candidate.declines(*arguments) is None)
            ):
                return candidate.name
        return "reference"
    if name == "reference":
        return name
    found = [candidate for candidate in row if candidate.name == name]
    missing = _missing(name, device_type) if found else _no_kernels(name, device_type)
    if missing is not None:
        raise RuntimeError(
            f"the implementation {name!r} was forced, but {missing}; "
            f"leave use_impl and {ENVIRONMENT} unset to use what is available"
        )
    declines = found[0].declines
    return name if declines is None or declines(*arguments) is None else "reference"


def use_reference(op: str, x: Tensor) -> bool:
    """Return whether an op on ``x`` runs its plain PyTorch formula instead of a kernel."""
    device_type = "cpu" if x.is_cpu else x.device.type  # device.type makes a string: 0.3 us
    return choose(op, device_type) == "reference" or transformed()


def reason_of(op: str, device_type: str, *arguments: object) -> str:
    """Return the reason for what `choose` returns, in words."""
    name = choose(op, device_type, *arguments)
    if name == forced():
        return f"forced by use_impl or {ENVIRONMENT}"
    row = {candidate.name: candidate for candidate in _table[op].get(device_type, ())}
    absent, declined = [], []
    for other in dict.fromkeys([*row, "native", "triton"]):
        if other == name:
            break
        if other not in row:
            absent.append(_no_kernels(other, device_type))
        elif (missing := _missing(other, device_type)) is not None:
            absent.append(missing)
        elif _is_interpreter(other, device_type) and forced() is None:
            absent.append("Triton's interpreter is only for tests")
        elif row[other].declines is not None:
            declined.append(row[other].declines(*arguments))
    if name != "reference":
        return "; ".join([*declined, f"there are {name} kernels for {device_type} tensors"])
    return "; ".join(declined or absent)


def _is_interpreter(name: str, device_type: str) -> bool:
    return (name, device_type) == ("triton", "cpu")


def _missing(name: str, device_type: str) -> str | None:
    """Return why an implementation of a row can't run here; None if it can."""
    if name == "native":
        on_cpu = device_type == "cpu"
        missing = native.cpu_missing if on_cpu else native.cuda_missing
        return (
            None if missing is None else f"the {'C++' if on_cpu else 'CUDA'} library is {missing}"
        )
    if triton_missing is not None:
        return triton_missing
    if device_type == "cpu" and not interprets_triton:
        hint = " (only in its interpreter: set TRITON_INTERPRET=1)"
        return _no_kernels(name, device_type) + hint
    return None


def _no_kernels(name: str, device_type: str) -> str:
    kernels = {"native": "native", "triton": "Triton"}[name]
    return f"there are no {kernels} kernels for {device_type} tensors"


def tensors_in(arguments: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors among an op's arguments, including those in lists."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from tensors_in(argument)


def explain(op: str, *args: object, **kwargs: object) -> str:
    """Say which implementation of ``op`` runs for these arguments, and why.

    Args:
        op: name of a public op, for example ``"gram_matrix"``.
        args, kwargs: the op's own arguments; the first tensor among them decides.

    Returns:
        One line of text: the op, shape, dtype, layout and device; the implementations for that
        device in order of preference; after a colon the one that runs, and the reason.

    Raises:
        ValueError: if op is not the name of a public op.
        TypeError: if there is no tensor among the arguments.
    """
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, got {op!r}")
    tensor = next(tensors_in((*args, *kwargs.values())), None)
    if tensor is None:
        raise TypeError(f"args: expected the arguments of {op}, a tensor among them, got none")
    device_type = tensor.device.type
    row = [candidate.name for candidate in _table[op].get(device_type, ())]
    reason = reason_of(op, device_type)
    if note := _notes[op](*args, **kwargs) if op in _notes else "":
        reason += f"; {note}"
    layout = "contiguous"
    if tensor.dim() > 2 and not tensor.is_contiguous():
        dense = tensor.movedim(1, -1).is_contiguous()
        layout = "channels_last" if dense else "strided (copied to contiguous first)"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return (
        f"{op} {tuple(tensor.shape)} {dtype} {layout} on {tensor.device} "
        f"({', '.join([*row, 'reference'])}): {choose(op, device_type)} ({reason})"
    )
