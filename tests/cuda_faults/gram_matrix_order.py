"""Faults of the kernels of Gram matrices in the order of threads and copies."""

from tests.cuda_faults.fault import Fault, by_kind

PIPELINE = "pipeline.cuh"
PRODUCTS = "gram_matrix_products.cuh"
SUMS = "gram_matrix_forward.cuh"
GRADIENT = "gram_matrix_backward.cuh"
FOUR = ("four stages",)
TWO = ("two stages",)

BARRIERS = {
    "panels of a stage": Fault(
        PIPELINE,
        "    block_barrier();\n    load(",
        "    load(",
        "float32",
        FOUR,
    ),
    "products: exchange of groups of warps": Fault(
        PRODUCTS,
        "    block_barrier();\n    if (group_ == 0)",
        "    if (group_ == 0)",
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
        "many turns",
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
        "    block_barrier();  // what is there has been read\n    if (lane_index() == 0) exchange",
        "    if (lane_index() == 0) exchange",
        "more layers than warps",
        FOUR,
    ),
    "squares: exchange of warps": Fault(
        SUMS,
        "exchange()[warp_index()] = squares;\n    block_barrier();\n",
        "exchange()[warp_index()] = squares;\n",
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
        PIPELINE,
        "wait_for_copies<0>();",
        "wait_for_copies<1>();",
        "wide tiles",
        TWO,
    ),
    "wait: three stages": Fault(
        PIPELINE,
        "wait_for_copies<1>();",
        "wait_for_copies<2>();",
        "float32",
        TWO,
    ),
    "wait: four stages": Fault(
        PIPELINE,
        "wait_for_copies<kMostStages - 2>();",
        "wait_for_copies<kMostStages - 1>();",
        "wide tiles",
        FOUR,
    ),
    "stage of a load": Fault(
        PIPELINE,
        "load(stage == 0 ? last_ : stage - 1);",
        "load(stage);",
        "wide tiles",
        TWO,
    ),
    "first commits": Fault(
        PIPELINE,
        "      load(stage);\n      commit_copies();",
        "      load(stage);",
        "wide tiles",
        FOUR,
    ),
    "commit of a step": Fault(
        PIPELINE,
        "    commit_copies();\n    stage_",
        "    stage_",
        "wide tiles",
        FOUR,
    ),
    "products: loads behind the last step": Fault(
        PRODUCTS,
        "if (++loaded_step < l_.steps || unloaded == 0) return;",
        "if (++loaded_step <= l_.steps || unloaded == 0) return;",
        "float32",
        FOUR,
    ),
    "gradient: tiles of loads": Fault(
        GRADIENT,
        "loaded = tile_of(++loaded_tile);",
        "++loaded_tile;",
        "wide layers",
        FOUR,
    ),
}

FAULTS = by_kind({"barrier": BARRIERS, "pipeline": PIPELINES})
