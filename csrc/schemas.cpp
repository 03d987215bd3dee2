// Schemas of all ops, for every device: the same text as SCHEMAS in stylekernels/ops/<op>.py (a
// test holds them equal). The kernels of a device are registered in its folder.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(stylekernels, m) {
  // instance_norm
  m.def("instance_norm_stats(Tensor x) -> (Tensor mean, Tensor var)");
  m.def(
      "instance_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mean, "
      "Tensor? var, str activation, float negative_slope, bool residual_first, float eps, "
      "bool own_stats, int group) -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "instance_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, "
      "Tensor? residual, Tensor mean, Tensor rstd, str activation, float negative_slope, "
      "bool own_stats, bool want_residual, bool sum_images, int group) "
      "-> (Tensor grad_x, Tensor grad_residual, Tensor sum_grad, Tensor sum_grad_normalized)");

  // gram_matrix
  m.def("gram_matrix(Tensor x, float? scale, bool center) -> (Tensor gram, Tensor mean)");
  m.def(
      "gram_matrix_backward(Tensor grad, Tensor x, Tensor? mean, float? scale) "
      "-> Tensor grad_x");
  m.def(
      "gram_loss(Tensor x, Tensor target, float? scale, bool center) "
      "-> (Tensor loss, Tensor grad_gram, Tensor mean)");
  m.def(
      "gram_losses(Tensor[] features, Tensor[] targets, float[]? scales, bool center) "
      "-> (Tensor losses, Tensor[] grad_grams, Tensor[] means)");
  m.def(
      "gram_losses_backward(Tensor[] features, Tensor[] grad_grams, Tensor[] means, Tensor grad, "
      "float[]? scales) -> Tensor[] grad_features");

  // norm_conv2d
  m.def(
      "norm_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? scale_shift, str activation, "
      "float negative_slope, Tensor? residual, bool return_input, int stride, int padding, "
      "str padding_mode, str upsample, bool return_stats) "
      "-> (Tensor y, Tensor mean, Tensor var, Tensor input)");
  m.def(
      "norm_conv2d_pack(Tensor weight, int stride, int padding, str padding_mode, str upsample) "
      "-> Tensor");
  m.def(
      "norm_conv2d_workspace(Tensor weight, int n, int h, int w, int stride, int padding, "
      "str padding_mode, str upsample) -> int");
  m.def(
      "norm_conv2d_out(Tensor x, Tensor weight, Tensor packed, Tensor? bias, Tensor? scale_shift, "
      "str activation, float negative_slope, Tensor? residual, int stride, int padding, "
      "str padding_mode, str upsample, Tensor? norm_weight, Tensor? norm_bias, float eps, "
      "Tensor(a!) y, Tensor(b!)? input, Tensor(c!)? next_scale_shift, Tensor(d!) workspace) "
      "-> ()");

  // upsample_block: its kernels are Triton's, and Python's over norm_conv2d
  m.def("upsampled_image(Tensor x, int border, str padding_mode) -> Tensor");
  m.def(
      "upsample_conv2d(Tensor x, Tensor weight, Tensor? bias, str upsample, str padding_mode, "
      "bool stats) -> (Tensor y, Tensor mean, Tensor var)");
}
