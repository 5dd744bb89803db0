// Batches of maps as kernels see them: features or scores, any strides.
#pragma once

#include <cstdint>

#include "base/element.h"

namespace deeplab_fast {

// (N, C, H, W); strides in elements.
template <class Pointer>
struct MapsOf {
  Pointer data;
  Element element;
  int64_t batch, channels, height, width;
  int64_t stride_n, stride_c, stride_h, stride_w;
  int64_t pixels() const { return height * width; }
  int64_t at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return n * stride_n + c * stride_c + h * stride_h + w * stride_w;
  }
};
using Maps = MapsOf<const void*>;
using MutableMaps = MapsOf<void*>;

// Calls body(pointer of the element's type), of float32 or bfloat16: the convolution kernels take no others.
template <class Body>
void by_element(const Maps& maps, Body&& body) {
  if (maps.element == Element::kFloat)
    body(static_cast<const float*>(maps.data));
  else
    body(static_cast<const uint16_t*>(maps.data));
}
template <class Body>
void by_element(const MutableMaps& maps, Body&& body) {
  if (maps.element == Element::kFloat)
    body(static_cast<float*>(maps.data));
  else
    body(static_cast<uint16_t*>(maps.data));
}

// out[pixel][0..count): channels [first, first + count) of the pixels of row h of image n, `stride` floats a pixel.
void pack_row(const Maps& maps, int64_t n, int64_t h, int64_t first, int64_t count, int64_t stride, float* out);

// The reverse: maps(n, first.., h, w) = in[w][0..count) for the pixels w of a row.
void unpack_row(const float* in, int64_t stride, int64_t n, int64_t h, int64_t first, int64_t count,
                const MutableMaps& maps);

}  // namespace deeplab_fast
