#include "base/maps.h"

#include <algorithm>

namespace deeplab_fast {
namespace {

// So many pixels of a channel are one cache line in a map whose pixels lie side by side.
constexpr int64_t kTogether = 16;

}  // namespace

void pack_row(const Maps& maps, int64_t n, int64_t h, int64_t first, int64_t count, int64_t stride, float* out) {
  by_element(maps, [&](const auto* data) {
    const auto* row = data + maps.at(n, first, h, 0);
    if (maps.stride_c == 1) {
      for (int64_t w = 0; w < maps.width; ++w)
        for (int64_t c = 0; c < count; ++c) out[w * stride + c] = to_float(row[w * maps.stride_w + c]);
      return;
    }
    for (int64_t begin = 0; begin < maps.width; begin += kTogether) {
      const int64_t end = std::min(begin + kTogether, maps.width);
      for (int64_t c = 0; c < count; ++c)
        for (int64_t w = begin; w < end; ++w)
          out[w * stride + c] = to_float(row[c * maps.stride_c + w * maps.stride_w]);
    }
  });
}

void unpack_row(const float* in, int64_t stride, int64_t n, int64_t h, int64_t first, int64_t count,
                const MutableMaps& maps) {
  by_element(maps, [&](auto* data) {
    auto* row = data + maps.at(n, first, h, 0);
    if (maps.stride_c == 1) {
      for (int64_t w = 0; w < maps.width; ++w)
        for (int64_t c = 0; c < count; ++c) from_float(in[w * stride + c], &row[w * maps.stride_w + c]);
      return;
    }
    for (int64_t begin = 0; begin < maps.width; begin += kTogether) {
      const int64_t end = std::min(begin + kTogether, maps.width);
      for (int64_t c = 0; c < count; ++c)
        for (int64_t w = begin; w < end; ++w)
          from_float(in[w * stride + c], &row[c * maps.stride_c + w * maps.stride_w]);
    }
  });
}

}  // namespace deeplab_fast
