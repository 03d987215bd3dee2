"""Faults of the kernels of Gram matrices in the division of tiles among blocks, and in results."""

from tests.cuda_faults.fault import Fault, by_kind

SHARES = "gram_matrix.cuh"
PRODUCTS = "gram_matrix_products.cuh"
SUMS = "gram_matrix_forward.cuh"
GRADIENT = "gram_matrix_backward.cuh"
SYMMETRIC = "gram_matrix_symmetric.cuh"
SOURCE = "gram_matrix.cu"
FOUR = ("four stages",)
TWO = ("two stages",)
MANY = ("many parts",)

PARTS = {
    "step in the middle": Fault(
        PRODUCTS,
        "(cost + once + 1) / 2",
        "(cost + once) / 2",
        "layers",
        MANY,
    ),
    "block of a cost": Fault(
        SHARES,
        "(((unit + 1) * parts - 1) / cost)",
        "(unit * parts / cost)",
        "layers",
        FOUR,
    ),
    "last part of a tile": Fault(
        SUMS,
        "if (other <= last)",
        "if (other < last)",
        "many parts",
        FOUR,
    ),
    "slots of layers": Fault(
        PRODUCTS,
        "(int64_t(l_.first_tile) + number + block_index())",
        "(int64_t(number) + block_index())",
        "layers",
        FOUR,
    ),
    "slots of blocks": Fault(
        PRODUCTS,
        "(int64_t(l_.first_tile) + number + block_index())",
        "(int64_t(l_.first_tile) + number)",
        "float32",
        FOUR,
    ),
    "part of a tile that another block ends": Fault(
        PRODUCTS,
        "      store(number);\n",
        "      if (last == l_.steps) store(number);\n",
        "float32",
        FOUR,
    ),
    "sums of the next tile": Fault(
        PRODUCTS,
        "        sums_[i][j].clear();\n",
        "        if (tile.image == 0 && tile.row == 0) sums_[i][j].clear();\n",
        "float32",
        TWO,
    ),
    "ways of a sum": Fault(
        SUMS,
        "first + way; part <= last",
        "first; part <= last",
        "many parts",
        MANY,
    ),
    "ways of a layer": Fault(
        SUMS,
        "at[k * kGramThreads + other * kWarp]",
        "at[k * kGramThreads + (other - 1) * kWarp]",
        "many parts",
        FOUR,
    ),
    "turns of later layers": Fault(
        SUMS,
        "int(turn - l.first_turn)",
        "int(turn)",
        "layers",
        FOUR,
    ),
    "tile of an image": Fault(
        PRODUCTS,
        "image = (tile - layer.diagonal()) / each;",
        "image = 0;",
        "images of several tiles",
        FOUR,
    ),
    "columns of upper warps": Fault(
        PRODUCTS,
        "return column < 2 ? column + 2 : 3 - column;",
        "return column < 2 ? column + 2 : 2 - column;",
        "wide tiles",
        FOUR,
    ),
    "pixels of a tile of the gradient": Fault(
        GRADIENT,
        "int64_t(column % l_.columns)",
        "int64_t(column)",
        "images of several tiles",
        FOUR,
    ),
    "scratch memory of a layer's gradient": Fault(
        SOURCE,
        "    product += int64_t(layer.n) * layer.c * layer.stride;\n",
        "",
        "layers",
        FOUR,
    ),
}

NUMBERS = {
    "centre of another tile's channels": Fault(
        PRODUCTS,
        "read_centers(tile.image, tile.column,",
        "read_centers(tile.image, tile.row,",
        "centred",
        FOUR,
    ),
    "rounding error of a mean": Fault(
        SHARES,
        "return (value - mean) - error;",
        "return value - mean;",
        "centred",
        FOUR,
    ),
    "scale after the sum": Fault(
        PRODUCTS,
        "sums_[i][j].add(products[i][j], scale_);",
        "for (int k = 0; k < 8; ++k) {\n"
        "          W& sum = sums_[i][j].sums[k / 4][k % 4];\n"
        "          sum = (sum / scale_ + products[i][j].sums[k / 4][k % 4]) * scale_;\n"
        "        }",
        "huge float32",
        FOUR,
        message="not finite",
    ),
    "truncated sums of tensor cores": Fault(
        GRADIENT,
        "if constexpr (sizeof(O) == 4) {\n      Blocks",
        "if constexpr (sizeof(O) == 0) {\n      Blocks",
        "many channels",
        FOUR,
    ),
    "powers of two of float16": Fault(
        SYMMETRIC,
        "const float power = row_power(largest);",
        "const float power = 1;",
        "small gradients",
        FOUR,
    ),
    "powers of another row": Fault(
        SYMMETRIC,
        "l_.powers[image_ * l_.c + row_] = power;",
        "l_.powers[row_] = power;",
        "small gradients",
        FOUR,
    ),
    "power of a row of zeros": Fault(
        SYMMETRIC,
        "bits < low ? low : bits > high",
        "bits > high",
        "gradient of a row of zeros",
        FOUR,
    ),
    "gradient is symmetrised": Fault(
        SYMMETRIC,
        "(along[k] + across[k])",
        "(2 * along[k])",
        "float32",
        FOUR,
    ),
    "gradient of a layer's loss": Fault(
        SYMMETRIC,
        "static_cast<const W*>(a.grad_losses)[layer]",
        "static_cast<const W*>(a.grad_losses)[0]",
        "layers",
        FOUR,
    ),
}

LOSSES = {
    "target shared by images": Fault(
        SUMS,
        "+ image * l.target_stride;",
        "+ image * c * c;",
        "shared target",
        FOUR,
    ),
    "target above the diagonal": Fault(
        SUMS,
        "const double above = double(W(sum)) - double(target[there]);",
        "const double above = double(W(sum)) - double(target[here]);",
        "float32",
        FOUR,
    ),
    "gradients above and below": Fault(
        SUMS,
        "gram[there] = W(above * l.slope);",
        "gram[there] = W(below * l.slope);",
        "float32",
        FOUR,
    ),
    "slope of several images": Fault(
        SOURCE,
        "2 / (double(layer.n) * layer.c * layer.c)",
        "2 / (double(layer.c) * layer.c)",
        "shared target",
        FOUR,
    ),
    "diagonal counts twice": Fault(
        SUMS,
        "    if (i == j) return below * below;\n",
        "",
        "float32",
        FOUR,
    ),
    "counter of finished blocks": Fault(
        SUMS,
        "*a.finished = 0;",
        "*a.finished += 0;",
        "float32",
        FOUR,
    ),
    "squares of a layer without turns of the block": Fault(
        SUMS,
        "for (; layer < a_.count; ++layer, squares = 0) store_squares(layer, squares);",
        "store_squares(layer, squares);",
        "more layers than warps",
        FOUR,
    ),
    "first block instead of the last": Fault(
        SUMS,
        "== grid_blocks() - 1;",
        "== 0;",
        "many parts",
        FOUR,
    ),
    "squares of more blocks than lanes": Fault(
        SUMS,
        "block < grid_blocks(); block += kWarp)",
        "block < grid_blocks() && block < kWarp; block += kWarp)",
        "more blocks than lanes",
        FOUR,
    ),
    "losses of more layers than warps": Fault(
        SUMS,
        "layer < a.count; layer += kGramWarps",
        "layer < a.count && layer < kGramWarps; layer += kGramWarps",
        "more layers than warps",
        FOUR,
    ),
}

FAULTS = by_kind({"part": PARTS, "number": NUMBERS, "loss": LOSSES})
