// The mean of every plane, more exact than its dtype.
#pragma once

#include "../tensors.h"

namespace stylekernels {

// (2, N, C): the mean of every plane of x (N, C, H, W) in the wide dtype, and its rounding error.
torch::stable::Tensor exact_mean(torch::stable::Tensor x);  // instance_norm.cpp

}  // namespace stylekernels
