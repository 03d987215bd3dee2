// Mean of every plane on a GPU, to more digits than its dtype holds.
#pragma once

#include "../tensors.h"

namespace stylekernels::device {

// Returns (2, N, C): the mean of every plane of x (N, C, H, W) in the wide dtype, and its rounding
// error.
torch::stable::Tensor exact_mean(torch::stable::Tensor x);  // instance_norm.cu

}  // namespace stylekernels::device
