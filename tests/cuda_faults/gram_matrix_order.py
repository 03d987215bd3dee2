"""Faults of the kernels of Gram matrices in the order of threads and copies."""

from tests.cuda_faults.fault import Fault

SHARES = "gram_matrix.cuh"
PRODUCTS = "gram_matrix_products.cuh"
SUMS = "gram_matrix_forward.cuh"
GRADIENT = "gram_matrix_backward.cuh"
FOUR = ("four stages",)
TWO = ("two stages",)

BARRIERS = {
    "products: panels of a stage": Fault(
        PRODUCTS,
        "wait_for_stage(a_.stages);\n      block_barrier();",
        "wait_for_stage(a_.stages);",
        "float32",
        FOUR,
    ),
    "products: exchange of groups of warps": Fault(
        PRODUCTS,
        "      block_barrier();\n    }\n    if (group_ == 0)",
        "    }\n    if (group_ == 0)",
        "float32",
        FOUR,
    ),
    "products: stages of the next layer": Fault(
        PRODUCTS,
        "    block_barrier();  // before others use the stages\n",
        "",
        "wide layers",
        FOUR,
    ),
    "sums: products of all blocks": Fault(
        SUMS,
        "  grid_barrier();\n",
        "",
        "float32",
        FOUR,
    ),
    "sums: exchange before is read": Fault(
        SUMS,
        "      block_barrier();  // the sums before have been read\n",
        "",
        "many parts",
        FOUR,
    ),
    "sums: exchange of warps": Fault(
        SUMS,
        "= sums[k];\n      block_barrier();\n",
        "= sums[k];\n",
        "many parts",
        FOUR,
    ),
    "squares: exchange before is read": Fault(
        SUMS,
        "    block_barrier();\n    if (thread_index() % kWarp == 0) exchange",
        "    if (thread_index() % kWarp == 0) exchange",
        "more layers than warps",
        FOUR,
    ),
    "squares: exchange of warps": Fault(
        SUMS,
        "exchange[warp()] = squares;\n    block_barrier();\n",
        "exchange[warp()] = squares;\n",
        "float32",
        FOUR,
    ),
    "losses: last block": Fault(
        SUMS,
        "grid_blocks() - 1;\n  block_barrier();\n",
        "grid_blocks() - 1;\n",
        "float32",
        FOUR,
    ),
    "gradient: symmetric product": Fault(
        GRADIENT,
        "  grid_barrier();\n",
        "",
        "float32",
        FOUR,
    ),
    "gradient: panels of a stage": Fault(
        GRADIENT,
        "wait_for_stage(a_.stages);\n      block_barrier();",
        "wait_for_stage(a_.stages);",
        "float32",
        FOUR,
    ),
    "gradient: stages of the next layer": Fault(
        GRADIENT,
        "    block_barrier();  // before others use the stages\n",
        "",
        "more layers than warps",
        TWO,
    ),
    "gradient: results before are read": Fault(
        GRADIENT,
        "      warp_barrier();  // the results before have been read\n",
        "",
        "wide tiles",
        FOUR,
    ),
    "gradient: results of a warp": Fault(
        GRADIENT,
        "      warp_barrier();\n      for (int k",
        "      for (int k",
        "wide tiles",
        FOUR,
    ),
}

PIPELINES = {
    "wait: two stages": Fault(
        SHARES,
        "wait_for_copies<0>();",
        "wait_for_copies<1>();",
        "wide tiles",
        TWO,
    ),
    "wait: three stages": Fault(
        SHARES,
        "wait_for_copies<1>();",
        "wait_for_copies<2>();",
        "float32",
        TWO,
    ),
    "wait: four stages": Fault(
        SHARES,
        "wait_for_copies<kMostStages - 2>();",
        "wait_for_copies<kMostStages - 1>();",
        "wide tiles",
        FOUR,
    ),
    "products: slot of a load": Fault(
        PRODUCTS,
        "slot == 0 ? ahead : slot - 1;",
        "slot;",
        "wide tiles",
        FOUR,
    ),
    "products: commit of a step": Fault(
        PRODUCTS,
        "if (step + ahead < end) load(loaded, next);\n      commit_copies();",
        "if (step + ahead < end) load(loaded, next);",
        "wide tiles",
        FOUR,
    ),
    "products: commit without a load": Fault(
        PRODUCTS,
        "if (step + ahead < end) load(loaded, next);\n      commit_copies();",
        "if (step + ahead < end) {\n load(loaded, next);\n      commit_copies();}",
        "wide tiles",
        FOUR,
    ),
    "gradient: slot of a load": Fault(
        GRADIENT,
        "slot == 0 ? ahead : slot - 1;",
        "slot;",
        "float32",
        TWO,
    ),
    "gradient: commit of a step": Fault(
        GRADIENT,
        "if (i + ahead < count) load(loaded, next);\n      commit_copies();",
        "if (i + ahead < count) load(loaded, next);",
        "float32",
        FOUR,
    ),
}

FAULTS = {
    f"{kind}, {name}": fault
    for kind, faults in (
        ("barrier", BARRIERS),
        ("pipeline", PIPELINES),
    )
    for name, fault in faults.items()
}
