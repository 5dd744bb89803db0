// The CUDA kernels of upsampling on the host, as a library for tests/upsample/test_upsample_host.py. Few and small
// blocks, so that threads go around more than once.
#include "cuda_on_host.h"
// The kernels come after what they are made to run on.
#include "upsample/upsample.cuh"

using namespace deeplab_fast;

namespace {

constexpr unsigned kBlocks = 3, kBlockThreads = 64;

template <class Body>
void launch(Element type, Body&& body) {
  cuda_on_host::launch(kBlocks, kBlockThreads, [&] {
    if (type == Element::kFloat) return body(float{});
    if (type == Element::kHalf) return body(__half{});
    return body(__nv_bfloat16{});
  });
}

}  // namespace

extern "C" {

void argmax(const Maps* logits, int64_t height, int64_t width, int64_t* out) {
  const Axis rows = axis_of(logits->height, height), columns = axis_of(logits->width, width);
  launch(logits->element, [&](auto e) { upsample_argmax_kernel<decltype(e)>(*logits, rows, columns, out); });
}

void softmax(const Maps* logits, const MutableMaps* out, bool channels_last) {
  const Axis rows = axis_of(logits->height, out->height), columns = axis_of(logits->width, out->width);
  launch(logits->element, [&](auto e) {
    using Element = decltype(e);
    if (channels_last)
      upsample_softmax_channels_last_kernel<Element>(*logits, rows, columns, *out);
    else
      upsample_softmax_kernel<Element>(*logits, rows, columns, *out);
  });
}

// lanes: 0 for channels_last
void softmax_backward(const Maps* grad, const Maps* out, float* dots, const MutableMaps* to_logits, int lanes) {
  const Axis rows = axis_of(to_logits->height, out->height), columns = axis_of(to_logits->width, out->width);
  launch(grad->element, [&](auto e) {
    using Element = decltype(e);
    if (lanes == 0)
      upsample_softmax_dots_kernel<Element, kWarp>(*grad, *out, dots);
    else
      upsample_softmax_dots_kernel<Element, 1>(*grad, *out, dots);
  });
  launch(grad->element, [&](auto e) {
    using Element = decltype(e);
    if (lanes == 0)
      upsample_softmax_backward_channels_last_kernel<Element>(*grad, *out, dots, rows, columns, *to_logits);
    else if (lanes == 4)
      upsample_softmax_backward_kernel<Element, 4>(*grad, *out, dots, rows, columns, *to_logits);
    else if (lanes == 16)
      upsample_softmax_backward_kernel<Element, 16>(*grad, *out, dots, rows, columns, *to_logits);
    else
      upsample_softmax_backward_kernel<Element, 32>(*grad, *out, dots, rows, columns, *to_logits);
  });
}
}
