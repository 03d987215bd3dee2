"""Faults of the kernels of Gram matrices in operands: fragments of panels, and their ends."""

from tests.cuda_faults.fault import Fault

SHARES = "gram_matrix.cuh"
PRODUCTS = "gram_matrix_products.cuh"
SUMS = "gram_matrix_forward.cuh"
GRADIENT = "gram_matrix_backward.cuh"
FRAGMENT = "fragments.cuh"
PANELS = "panel_loads.cuh"
FOUR = ("four stages",)

FRAGMENTS = {
    "matrices of 16 bits: rows and depth": Fault(
        FRAGMENT,
        "load_matrices(panel + offset(row + second + line, depth + last))",
        "load_matrices(panel + offset(row + last + line, depth + second))",
        "wide tiles",
        FOUR,
    ),
    "transposed matrices: rows and depth": Fault(
        FRAGMENT,
        "load_matrices_transposed(panel + offset(row + second, depth + last + line))",
        "load_matrices_transposed(panel + offset(row + last, depth + second + line))",
        "channels_last",
        FOUR,
    ),
    "matrices are not transposed": Fault(
        FRAGMENT,
        "load_matrices_transposed(panel",
        "load_matrices(panel",
        "channels_last",
        FOUR,
    ),
    "words of a right operand": Fault(
        FRAGMENT,
        "words{all[half], all[half + 2]}",
        "words{all[2 * half], all[2 * half + 1]}",
        "wide tiles",
        FOUR,
    ),
    "halves of a right operand": Fault(
        FRAGMENT,
        "words{all[half], all[half + 2]}",
        "words{all[half ^ 1], all[(half ^ 1) + 2]}",
        "wide tiles",
        FOUR,
    ),
    "tf32: words": Fault(
        FRAGMENT,
        "result.set(i + 2 * j,",
        "result.set(2 * i + j,",
        "float32",
        FOUR,
    ),
    "tf32: row and depth of a centre": Fault(
        FRAGMENT,
        "value(widen(at[offset(i * 8, j * 4)]), i, j)",
        "value(widen(at[offset(i * 8, j * 4)]), j, i)",
        "centred",
        FOUR,
    ),
    "tf32: low part of the left": Fault(
        FRAGMENT,
        "    multiply_tf32(block.sums[half], left.low, Half(right.finite, half).words);\n",
        "",
        "float32",
        FOUR,
    ),
    "tf32: low part of the right": Fault(
        FRAGMENT,
        "    multiply_tf32(block.sums[half], left.finite, Half(right.low, half).words);\n",
        "",
        "float32",
        FOUR,
    ),
    "tf32: infinite high times low, right": Fault(
        FRAGMENT,
        "left.low, Half(right.finite, half).words",
        "left.low, Half(right.high, half).words",
        "infinite channels",
        FOUR,
    ),
    "tf32: infinite left": Fault(
        FRAGMENT,
        "left.high, Half(right.high",
        "left.finite, Half(right.high",
        "infinite channels",
        FOUR,
    ),
    "tf32: low part of infinity": Fault(
        FRAGMENT,
        "low[i] = to_tf32(is_finite ? value - rounded : 0);",
        "low[i] = to_tf32(value - rounded);",
        "infinite channels",
        FOUR,
    ),
    "float64: halves": Fault(
        FRAGMENT,
        "left.values[i], right.values[half]",
        "left.values[half], right.values[i]",
        "float64",
        FOUR,
    ),
    "pairs: lower rows": Fault(
        FRAGMENT,
        "i = lower ? 2 : 0;",
        "i = 0;",
        "float32",
        FOUR,
    ),
}

TAILS = {
    "panels: lines behind the last": Fault(
        PANELS,
        "line < from.lines ? from.length - first : 0",
        "from.length - first",
        "wide tiles",
        FOUR,
    ),
    "panels: bytes of a copy": Fault(
        PANELS,
        "elements * int(sizeof(T))",
        "16",
        "channels_last",
        FOUR,
    ),
    "centres: channels behind the last": Fault(
        SHARES,
        "if (channel >= c) return {};",
        "",
        "infinite mean",
        FOUR,
    ),
    "centred features: pixels behind the last": Fault(
        PRODUCTS,
        "return first + 4 * j < pixels ? centers[i](value) : W(0);",
        "return centers[i](value);",
        "centred",
        FOUR,
    ),
    "blocks: last rows": Fault(
        PRODUCTS,
        "return tile.row * Shape::kTile + row < l_.c",
        "return tile.row * Shape::kTile + row + kBlockRows <= l_.c",
        "wide tiles",
        FOUR,
    ),
    "blocks: on the diagonal": Fault(
        PRODUCTS,
        "column <= row);",
        "column < row);",
        "wide tiles",
        FOUR,
    ),
    "blocks: whether a warp has any": Fault(
        PRODUCTS,
        "any |= wanted(tile, i, 0);",
        "any |= wanted(tile, 0, 0);",
        "wide tiles",
        FOUR,
    ),
    "Gram matrix: mirror images above the diagonal": Fault(
        SUMS,
        "if (j + k <= i) squares",
        "if (j <= i) squares",
        "wide tiles",
        FOUR,
    ),
    "gradient: columns behind the last": Fault(
        GRADIENT,
        "l_.c - tile.channel, l_.c - depth, true",
        "l_.c - tile.channel, l_.stride - depth, true",
        "float32",
        FOUR,
    ),
    "gradient: vectors that reach over the end": Fault(
        GRADIENT,
        "if (l_.aligned && left >= kLanes)",
        "if (left >= kLanes)",
        "unaligned",
        FOUR,
    ),
}

FAULTS = {
    f"{kind}, {name}": fault
    for kind, faults in (
        ("fragment", FRAGMENTS),
        ("tail", TAILS),
    )
    for name, fault in faults.items()
}
