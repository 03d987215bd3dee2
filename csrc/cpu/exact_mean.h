// Mean of every plane, to more digits than its dtype holds.
#pragma once

#include "../tensors.h"

namespace stylekernels {

// Returns (2, N, C): the mean of every plane of x (N, C, H, W) in the wide dtype, and its rounding
// error.
torch::stable::Tensor exact_mean(torch::stable::Tensor x);  // instance_norm.cpp

}  // namespace stylekernels
