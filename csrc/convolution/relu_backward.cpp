#include "convolution/relu_backward.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace deeplab_fast {
namespace {

// Rows whose sums are added up at once: sums of sums of sums, and the same ones for any number of threads. Gradients
// are often all but equal, and a long sum of such rounds the same way every time.
constexpr int64_t kRowsTogether = 8;

// The four ranges are apart, which lets the compiler use whole registers.
template <class From, class To>
void mask_channels(const From* __restrict grad, const From* __restrict out, int64_t channels, To* __restrict masked,
                   float* __restrict sums) {
  for (int64_t c = 0; c < channels; ++c) {
    const float kept = to_float(grad[c]);
    const float value = to_float(out[c]) > 0 ? kept : 0.0f;
    from_float(value, &masked[c]);
    sums[c] += value;
  }
}

template <class From, class To>
void mask_row(const Maps& grad, const From* from, const Maps& out, const From* result, const MutableMaps& masked,
              To* to, int64_t n, int64_t h, float* sums) {
  const auto one = [&](int64_t c, int64_t w) {
    const float value = to_float(result[out.at(n, c, h, w)]) > 0 ? to_float(from[grad.at(n, c, h, w)]) : 0.0f;
    from_float(value, &to[masked.at(n, c, h, w)]);
    sums[c] += value;
  };
  if (masked.stride_c == 1) {
    const From* from_row = from + grad.at(n, 0, h, 0);
    const From* result_row = result + out.at(n, 0, h, 0);
    To* to_row = to + masked.at(n, 0, h, 0);
    if (grad.stride_c == 1 && out.stride_c == 1) {
      for (int64_t w = 0; w < masked.width; ++w)
        mask_channels(from_row + w * grad.stride_w, result_row + w * out.stride_w, masked.channels,
                      to_row + w * masked.stride_w, sums);
      return;
    }
    for (int64_t w = 0; w < masked.width; ++w)
      for (int64_t c = 0; c < masked.channels; ++c) one(c, w);
    return;
  }
  for (int64_t c = 0; c < masked.channels; ++c)
    for (int64_t w = 0; w < masked.width; ++w) one(c, w);
}

}  // namespace

void relu_backward(const Maps& grad, const Maps& out, const MutableMaps& masked, float* sums, Parallel& parallel) {
  const int64_t rows = grad.batch * grad.height, pieces = (rows + kRowsTogether - 1) / kRowsTogether;
  std::vector<float> partial(static_cast<size_t>(pieces * grad.channels), 0.0f);
  parallel_for(parallel, pieces, [&](int64_t piece) {
    float* own = partial.data() + piece * grad.channels;
    std::vector<float> of_row(static_cast<size_t>(grad.channels));
    const int64_t end = std::min((piece + 1) * kRowsTogether, rows);
    for (int64_t row = piece * kRowsTogether; row < end; ++row) {
      std::fill(of_row.begin(), of_row.end(), 0.0f);
      by_element(grad, [&](const auto* from) {
        using Type = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
        mask_row(grad, from, out, static_cast<const Type*>(out.data), masked, static_cast<Type*>(masked.data),
                 row / grad.height, row % grad.height, of_row.data());
      });
      for (int64_t c = 0; c < grad.channels; ++c) own[c] += of_row[static_cast<size_t>(c)];
    }
  });
  for (int64_t c = 0; c < grad.channels; ++c) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += partial[static_cast<size_t>(piece * grad.channels + c)];
    sums[c] = static_cast<float>(sum);
  }
}

}  // namespace deeplab_fast
