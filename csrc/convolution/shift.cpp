#include <type_traits>

#include "convolution/tap_list.h"
#include "convolution/taps.h"

namespace deeplab_fast {
namespace {

template <class T>
void sum_row(const std::vector<Tap>& taps, const T* products, const float* bias, int64_t n, int64_t h,
             const MutableMaps& out, float* sums) {
  const int64_t classes = out.channels, row = static_cast<int64_t>(taps.size()) * classes;
  for (int64_t w = 0; w < out.width; ++w)
    for (int64_t k = 0; k < classes; ++k) sums[w * classes + k] = bias != nullptr ? bias[k] : 0.0f;
  for (size_t t = 0; t < taps.size(); ++t) {
    const Reach to = reach(taps[t], out.height, out.width);
    if (h < to.top || h >= to.bottom) continue;
    for (int64_t w = to.left; w < to.right; ++w) {
      const int64_t source = (n * out.height + h + taps[t].dy) * out.width + w + taps[t].dx;
      const T* from = products + source * row + static_cast<int64_t>(t) * classes;
      for (int64_t k = 0; k < classes; ++k) sums[w * classes + k] += to_float(from[k]);
    }
  }
}

}  // namespace

void aspp_shift_sum(const std::vector<Branch>& branches, const void* products, Element element, const float* bias,
                    const MutableMaps& out, Parallel& parallel) {
  const std::vector<Tap> taps = make_taps(branches);
  const Maps typed{products, element, 0, 0, 0, 0, 0, 0, 0, 0};
  parallel_for(parallel, out.batch * out.height, [&](int64_t i) {
    const int64_t n = i / out.height, h = i % out.height;
    std::vector<float> sums(static_cast<size_t>(out.width * out.channels));
    by_element(typed, [&](const auto* data) { sum_row(taps, data, bias, n, h, out, sums.data()); });
    unpack_row(sums.data(), out.channels, n, h, 0, out.channels, out);
  });
}

void aspp_shift_gather(const std::vector<Branch>& branches, const Maps& grad, void* columns, Parallel& parallel) {
  const std::vector<Tap> taps = make_taps(branches);
  const int64_t classes = grad.channels, row = static_cast<int64_t>(taps.size()) * classes;
  parallel_for(parallel, grad.batch * grad.height, [&](int64_t i) {
    const int64_t n = i / grad.height, h = i % grad.height;
    by_element(grad, [&](const auto* data) {
      auto* out = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(data)>>*>(
                      static_cast<decltype(data)>(columns)) +
                  i * grad.width * row;
      for (int64_t w = 0; w < grad.width; ++w)
        for (const Tap& tap : taps) {
          const int64_t from_h = h - tap.dy, from_w = w - tap.dx;
          const bool inside = from_h >= 0 && from_h < grad.height && from_w >= 0 && from_w < grad.width;
          const auto* from = data + (inside ? grad.at(n, 0, from_h, from_w) : 0);
          for (int64_t k = 0; k < classes; ++k) *out++ = inside ? from[k * grad.stride_c] : 0;
        }
    });
  });
}

}  // namespace deeplab_fast
