"""A report on the loops of the compiled CPU kernels: ``cpu_report.py [build folder]`` disassembles
the object files of a build, by default that of an editable install, and finds innermost loops that
keep vectors in memory. It runs no kernel, so it checks capabilities that this CPU lacks.

GCC keeps the vectors of a loop on the stack if it does not inline a function that takes them, does
not split an array of them into registers, or has too few registers. That has cost up to 1.3 times
the time of a kernel. A loop is wrong if

- it stores a whole vector to the stack, or to an address that stays the same, for fewer than
  `ARITHMETIC_PER_STORE` instructions that compute with whole vectors, or
- it calls a function of its file that computes with whole vectors and has no loop.

The exit status is 1 if a loop is wrong that `KNOWN` does not list, or if there are no kernels to
check. Which vectors are in registers is up to the compiler: `KNOWN` is for GCC 12.
"""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parents[1]
#: The register of a whole vector. The other capabilities are for old CPUs and for tests.
VECTORS = {"avx2": "ymm", "avx512": "zmm", "avx512_bf16": "zmm", "amx": "zmm"}
ARITHMETIC = re.compile(r"v(fn?m(add|sub)\w*|mul|add|sub|div|dpbf16|max|min)p[sd]")
#: Lines of objdump.
INSTRUCTION = re.compile(r"\s+([0-9a-f]+):\t(?:(?:rep|lock|notrack|bnd) )?(\S+)\s*(.*)$")
RELOCATION = re.compile(r"\s+[0-9a-f]+: R_X86_64_P\w+32\t(\S+)")
#: Instructions between a jump and the next block, as objdump begins them.
PADDING = {"nop", "nopl", "nopw", "cs", "data16", "xchg"}
#: A store for more arithmetic instructions than these costs a few percent at most.
ARITHMETIC_PER_STORE = 12


@dataclass(frozen=True)
class Known:
    """Loops that may keep vectors in memory.

    Attributes:
        loops: a pattern of their capability and function, as the report prints them.
        stores: vectors that such a loop may store.
        reason: why it does no harm.
    """

    loops: str
    stores: int
    reason: str


KNOWN = (
    Known(
        r"norm_conv2d (run_band_of|transform_tiles|pack_weights)",
        48,
        "Winograd's transforms have 25 or 36 points, each a vector; weights are packed once",
    ),
    Known(
        r"norm_conv2d run_panel",
        55,
        "36 points, each a vector, become 16 outputs; as fast as with 48 stores in AVX2",
    ),
    Known(
        r"avx2 instance_norm\w* .*<[2-7], ",
        12,
        "16 registers for an activation's constants, with the coefficients of two vectors",
    ),
    Known(
        r"avx512\w* instance_norm\w* (write_rows|parallel_tasks).*<[367], ",
        9,
        "10 vectors of coefficients at each pixel, with tanh's or GELU's constants",
    ),
    Known(
        r"instance_norm lane_moments",
        6,
        "shifts of up to 256 rows, which are kept in an array",
    ),
    Known(
        r"avx2 gram_matrix .*<double",
        11,
        "float64 squares are transposed in memory; few features are float64",
    ),
    Known(
        r"instance_norm chunk_moments|gram_matrix finish_square",
        9,
        "merges sums that are in memory, once for many pixels",
    ),
)


@dataclass(frozen=True)
class Instruction:
    """An instruction as objdump prints it. ``target`` is the address that it jumps to, in its
    function, or the name of the function that it calls."""

    address: int
    name: str
    operands: tuple[str, ...]
    target: int | str | None = None

    @property
    def ends_path(self) -> bool:
        return self.name in ("jmp", "ret", "ud2", "hlt")


@dataclass
class Function:
    name: str
    instructions: list[Instruction]

    @cached_property
    def blocks(self) -> "Blocks":
        return Blocks(self.instructions)

    def computes_with(self, vector: str) -> bool:
        return any(computes(instruction, vector) for instruction in self.instructions)


class Blocks:
    """The basic blocks of a function, by number.

    Attributes:
        code: the instructions of each block.
        flow: the graph of the blocks that control passes through, from `START` on. Jumps through a
            register, those of a switch, are not followed: where they go to, `START` goes as well.
    """

    START = -1

    def __init__(self, instructions: list[Instruction]) -> None:
        index = {instruction.address: i for i, instruction in enumerate(instructions)}
        starts = {0, len(instructions)}
        for i, instruction in enumerate(instructions):
            if isinstance(instruction.target, int) and instruction.target in index:
                starts.add(index[instruction.target])
            if instruction.name[0] == "j" or instruction.ends_path:
                starts.add(i + 1)
        self.code = [instructions[a:b] for a, b in itertools.pairwise(sorted(starts))]
        number = {block[0].address: i for i, block in enumerate(self.code)}
        self.flow = networkx.DiGraph([(self.START, 0)])
        for i, block in enumerate(self.code):
            if not block[-1].ends_path and i + 1 < len(self.code):
                self.flow.add_edge(i, i + 1)
            if block[-1].name[0] == "j" and block[-1].target in number:
                self.flow.add_edge(i, number[block[-1].target])
        reached = networkx.descendants(self.flow, self.START)
        for i, block in enumerate(self.code):
            if i not in reached and not {line.name for line in block} <= PADDING:
                self.flow.add_edge(self.START, i)
                reached |= {i} | networkx.descendants(self.flow, i)
        self.flow = self.flow.subgraph({self.START} | reached)

    @cached_property
    def innermost_loops(self) -> list[list[int]]:
        """The blocks of every natural loop without another loop in it."""
        dominators = networkx.immediate_dominators(self.flow, self.START)
        loops: dict[int, set[int]] = {}
        for block, head in self.flow.edges:
            above = block
            while above not in (head, self.START):
                above = dominators[above]
            if above == head:
                body = loops.setdefault(head, {head})
                left = [block]
                while left:
                    inside = left.pop()
                    if inside not in body:
                        body.add(inside)
                        left += self.flow.pred[inside]
        return [
            sorted(body)
            for head, body in loops.items()
            if not any(other in loops for other in body - {head})
        ]

    @cached_property
    def stack_pointers(self) -> dict[int, set[str]]:
        """The registers that may hold an address on the stack where each block starts."""
        found = {block: {"rsp"} for block in self.flow}
        left = list(networkx.dfs_preorder_nodes(self.flow, self.START))
        while left:
            block = left.pop(0)
            pointers = set(found[block])
            for line in self.code[block] if block != self.START else []:
                follow_pointers(line, pointers)
            for after in self.flow.succ[block]:
                if not pointers <= found[after]:
                    found[after] |= pointers
                    left.append(after)
        return found


def follow_pointers(line: Instruction, pointers: set[str]) -> None:
    """Update the registers that hold an address on the stack."""
    written = written_register(line)
    if written is None or written == "rsp":
        return
    if line.name == "lea":
        derived = registers_of(line.operands[0])[:1] in [[pointer] for pointer in pointers]
    elif line.name == "mov":
        derived = whole_register(line.operands[0]) in pointers
    else:
        derived = line.name in ("add", "sub") and written in pointers
    (pointers.add if derived else pointers.discard)(written)


def whole_register(name: str) -> str:
    """Return the 64-bit register of a part of it."""
    name = name.lstrip("%")
    if match := re.fullmatch(r"(r\d+)[dwb]?", name):
        return match[1]
    if match := re.fullmatch(r"[re]?([abcd])[xlh]|[re]?(si|di|bp|sp)l?", name):
        return f"r{match[1]}x" if match[1] else f"r{match[2]}"
    return name


def registers_of(operand: str) -> list[str]:
    """Return the registers of an address."""
    match = re.search(r"\(([^)]*)\)", operand)
    return [whole_register(name) for name in re.findall(r"%\w+", match[1])] if match else []


def written_register(instruction: Instruction) -> str | None:
    """Return the general register that an instruction writes, if it does."""
    name, operands = instruction.name, instruction.operands
    if not operands or not re.fullmatch(r"%[a-z0-9]+", operands[-1]):
        return None
    if "mm" in operands[-1] or name.startswith(("cmp", "test", "push", "call", "j", "bt")):
        return None
    return whole_register(operands[-1])


def computes(instruction: Instruction, vector: str) -> bool:
    """Return whether it is arithmetic on whole vectors."""
    return bool(ARITHMETIC.match(instruction.name)) and any(
        vector in operand for operand in instruction.operands
    )


@dataclass(frozen=True)
class Loop:
    """An innermost loop that computes with whole vectors.

    Attributes:
        function: its function, as objdump names it.
        address: of its first instruction.
        length, arithmetic: numbers of instructions, and of those that compute with whole vectors.
        stores: whole vectors that it stores to the stack or to an address that stays the same.
        called: functions of its file that compute with whole vectors, and have no loop.
    """

    function: str
    address: int
    length: int
    arithmetic: int
    stores: int
    called: tuple[str, ...]

    @property
    def is_wrong(self) -> bool:
        return bool(self.called) or self.stores * ARITHMETIC_PER_STORE > self.arithmetic


def read_functions(disassembly: str) -> list[Function]:
    """Return the functions of ``objdump -dr --no-show-raw-insn``."""
    functions: list[Function] = []
    places: dict[tuple[str, int], str] = {}
    section = ""
    for line in disassembly.splitlines():
        if match := INSTRUCTION.match(line):
            address, name, rest = match.groups()
            target: int | str | None = None
            if name[0] == "j" and (jump := re.match(r"([0-9a-f]+) <", rest)):
                target = int(jump[1], 16)
            elif name == "call" and (call := re.search(r"<([^+>]+)>", rest)):
                target = call[1]
            operands = re.findall(r"(?:[^,(]|\([^)]*\))+", rest.split("#")[0].strip())
            functions[-1].instructions.append(
                Instruction(int(address, 16), name, tuple(operands), target)
            )
        elif match := RELOCATION.match(line):
            code = functions[-1].instructions
            if code[-1].name == "call":
                code[-1] = replace(code[-1], target=match[1])
        elif match := re.match(r"([0-9a-f]+) <(.+)>:$", line):
            functions.append(Function(match[2], []))
            places[section, int(match[1], 16)] = match[2]
        elif match := re.match(r"Disassembly of section (.+):$", line):
            section = match[1]
    for function in functions:
        for i, line in enumerate(function.instructions):
            # A function without a name for other files: its section, and its address less 4.
            if line.name == "call" and (match := re.match(r"(.+)([+-]0x\w+)$", str(line.target))):
                place = (match[1], int(match[2], 16) + 4)
                function.instructions[i] = replace(line, target=places.get(place, match[1]))
    return [function for function in functions if function.instructions]


def find_loops(functions: list[Function], vector: str) -> Iterator[Loop]:
    """Yield the innermost loops that compute with whole vectors or call what does. Loops that call
    functions of other files (those of libm) are left out: these keep no vector register."""
    names = {function.name for function in functions}
    small = {
        function.name
        for function in functions
        if function.computes_with(vector) and not function.blocks.innermost_loops
    }
    for function in functions:
        for body in function.blocks.innermost_loops:
            code = [line for block in body for line in function.blocks.code[block]]
            called = {str(line.target) for line in code if line.name == "call"}
            arithmetic = sum(computes(line, vector) for line in code)
            if called <= names and (arithmetic or called & small):
                stores = count_stores(function.blocks, body, vector)
                where = (function.name, code[0].address, len(code))
                yield Loop(*where, arithmetic, stores, tuple(sorted(called & small)))


def count_stores(blocks: Blocks, body: list[int], vector: str) -> int:
    """Return `Loop.stores`."""
    written = {written_register(line) for block in body for line in blocks.code[block]}
    stores = 0
    for block in body:
        pointers = set(blocks.stack_pointers[block])
        for line in blocks.code[block]:
            if line.name.startswith("vmov") and line.operands[0].startswith(f"%{vector}"):
                registers = registers_of(line.operands[-1])
                fixed = not any(register in written for register in registers)
                stores += bool(registers) and (fixed or registers[0] in pointers)
            follow_pointers(line, pointers)
    return stores


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return names of functions without namespaces and parameters."""
    names = sorted(set(names))
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    short = {}
    for name, full in zip(names, text.splitlines(), strict=True):
        full = re.sub(r"\(anonymous namespace\)::|\([\w:]*Activation\)|operator\(\)", "", full)
        full = re.sub(r"\b(stylekernels|baseline|amx\w*|avx\w+)::", "", full)
        while (stripped := re.sub(r"\([^()]*\)( const)?", "", full)) != full:
            full = stripped
        short[name] = re.sub(r"^(void|auto|Sums) ", "", full)
    return short


def read_loops(folder: Path) -> Iterator[tuple[str, Loop]]:
    """Yield the loops of a build, each with its capability, file, and function without namespaces.

    Raises:
        SystemExit: if there are no kernels.
    """
    found = False
    for capability, vector in VECTORS.items():
        for path in sorted(folder.glob(f"CMakeFiles/kernels_{capability}.dir/**/*.o")):
            found = True
            command = ["objdump", "-dr", "--no-show-raw-insn", path]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            loops = list(find_loops(read_functions(text), vector))
            names = short_names(name for loop in loops for name in (loop.function, *loop.called))
            for loop in loops:
                called = tuple(names[name] for name in loop.called)
                yield (
                    f"{capability} {path.name.partition('.')[0]} {names[loop.function]}",
                    replace(loop, called=called),
                )
    if not found:
        raise SystemExit(f"{folder}: expected object files of kernels for x86-64, found none")


def is_allowed(known: Known, name: str, loop: Loop) -> bool:
    """Return whether an entry of `KNOWN` is for a loop."""
    return (
        re.search(known.loops, name) is not None and loop.stores <= known.stores and not loop.called
    )


def main() -> int:
    default = ROOT / "build" / f"inplace-{sys.implementation.cache_tag}"
    loops = list(read_loops(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
    wrong = [(name, loop) for name, loop in loops if loop.is_wrong]
    new = [
        (name, loop)
        for name, loop in wrong
        if not any(is_allowed(known, name, loop) for known in KNOWN)
    ]
    for name, loop in new:
        calls = f", calls {', '.join(loop.called)}" if loop.called else ""
        print(
            f"{name} at {loop.address:x}: {loop.stores} vectors stored for {loop.arithmetic} "
            f"arithmetic instructions of {loop.length}{calls}"
        )
    failed = bool(new)
    for known in KNOWN:
        count = sum(is_allowed(known, name, loop) for name, loop in wrong)
        print(f"{count} known loops of {known.loops}: {known.reason}")
        if count == 0:
            print("  no loop is like that any more: remove the entry from KNOWN")
            failed = True
    print(f"cpu_report: {'FAIL' if failed else 'PASS'}: {len(loops)} loops")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
