"""Faults of the kernels of Gram matrices in operands: fragments of panels, and their ends."""

from tests.cuda_faults.fault import Fault, by_kind

SHARES = "gram_matrix.cuh"
PRODUCTS = "gram_matrix_products.cuh"
SUMS = "gram_matrix_forward.cuh"
GRADIENT = "gram_matrix_backward.cuh"
SYMMETRIC = "gram_matrix_symmetric.cuh"
FRAGMENT = "fragments.cuh"
PANELS = "pipeline.cuh"
FOUR = ("four stages",)

FRAGMENTS = {
    "matrices of 16 bits: rows and depth": Fault(
        FRAGMENT,
        "load_matrices(panel + offset(row + line, depth))",
        "load_matrices(panel + offset(row, depth + line))",
        "wide tiles",
        FOUR,
    ),
    "transposed matrices: rows and depth": Fault(
        FRAGMENT,
        "load_matrices_transposed(panel + offset(row, depth + line))",
        "load_matrices_transposed(panel + offset(row + line, depth))",
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
    "words of a left operand": Fault(
        FRAGMENT,
        "{{words.words[0], words.words[1], words.words[2], words.words[3]}}",
        "{{words.words[0], words.words[2], words.words[1], words.words[3]}}",
        "wide tiles",
        FOUR,
    ),
    "words of a right operand": Fault(
        FRAGMENT,
        "matrices(panel, row + lane / 16 * 8, depth + lane / 8 % 2 * 8)",
        "matrices(panel, row + lane / 8 % 2 * 8, depth + lane / 16 * 8 + 0)",
        "wide tiles",
        FOUR,
    ),
    "halves of a right operand": Fault(
        FRAGMENT,
        "multiply<O>(block.sums[half], left.words, right.words[half]);",
        "multiply<O>(block.sums[half], left.words, right.words[1 - half]);",
        "wide tiles",
        FOUR,
    ),
    "tf32: words of a left operand": Fault(
        FRAGMENT,
        "    high[i + 2 * j] = parts.high;",
        "    high[2 * i + j] = parts.high;",
        "float32",
        FOUR,
    ),
    "tf32: words of a right operand": Fault(
        FRAGMENT,
        "    low[i][j] = parts.low;",
        "    low[j][i] = parts.low;",
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
        "    multiply_tf32(block.sums[half], left.low, right.finite[half]);\n",
        "",
        "float32",
        FOUR,
    ),
    "tf32: low part of the right": Fault(
        FRAGMENT,
        "    multiply_tf32(block.sums[half], left.finite, right.low[half]);\n",
        "",
        "float32",
        FOUR,
    ),
    "tf32: infinite high times low, right": Fault(
        FRAGMENT,
        "left.low, right.finite[half]",
        "left.low, right.high[half]",
        "infinite channels",
        FOUR,
    ),
    "tf32: infinite left": Fault(
        FRAGMENT,
        "left.high, right.high[half]",
        "left.finite, right.high[half]",
        "infinite channels",
        FOUR,
    ),
    "tf32: low part of infinity": Fault(
        FRAGMENT,
        "low = to_tf32(is_infinite ? 0 : value - rounded);",
        "low = to_tf32(value - rounded);",
        "infinite channels",
        FOUR,
    ),
    "tf32: numbers next to the largest": Fault(
        FRAGMENT,
        "(size < 0x7F7FF000 ? 0x1000 : 0)",
        "0x1000",
        "largest numbers",
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
        "own + line < lines && elements > 0 ? 16 : 0",
        "elements > 0 ? 16 : 0",
        "wide tiles",
        FOUR,
    ),
    "panels: vectors behind the last": Fault(
        PANELS,
        "own + line < lines && elements > 0 ? 16 : 0",
        "own + line < lines ? 16 : 0",
        "wide tiles",
        FOUR,
    ),
    "panels: unaligned lines behind the last": Fault(
        PANELS,
        "if (own + line < lines && lane < elements)",
        "if (lane < elements)",
        "unaligned",
        FOUR,
    ),
    "panels: unaligned elements behind the last": Fault(
        PANELS,
        "if (own + line < lines && lane < elements)",
        "if (own + line < lines)",
        "unaligned",
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
        "if (tile.row * Shape::kTile + row < l_.c",
        "if (tile.row * Shape::kTile + row + kBlockRows <= l_.c",
        "wide tiles",
        FOUR,
    ),
    "blocks: on the diagonal": Fault(
        PRODUCTS,
        "column <= row))",
        "column < row))",
        "wide tiles",
        FOUR,
    ),
    "blocks: bits": Fault(
        PRODUCTS,
        "1u << (i * kRight + j)",
        "1u << (i * kLeft + j)",
        "wide tiles",
        FOUR,
    ),
    "stored side of a tile": Fault(
        PRODUCTS,
        "first >= l_.side || column >= l_.side",
        "first + kBlockRows >= l_.side || column >= l_.side",
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
    "gradient: zeros behind a row of S": Fault(
        SYMMETRIC,
        "if (end > l_.stride) end = l_.stride;",
        "if (end > l_.c) end = l_.c;",
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

FAULTS = by_kind({"fragment": FRAGMENTS, "tail": TAILS})
