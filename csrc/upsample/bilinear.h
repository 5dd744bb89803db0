// Where bilinear upsampling (align_corners=False) looks, and the arithmetic of argmax and softmax over what it finds.
// The one definition of this maths: the CPU kernels call it with vectors of pixels for `F`, the CUDA kernels with
// `float`. Pixels lie where torch.nn.functional.interpolate puts them (ATen's area_pixel_compute_source_index).
#pragma once

#include <cstdint>

#ifndef DEEPLAB_FAST_HD
#if defined(__CUDACC__)
#define DEEPLAB_FAST_HD __host__ __device__ inline
#else
#define DEEPLAB_FAST_HD inline __attribute__((always_inline))
#endif
#endif

namespace deeplab_fast {

// Height or width: `in` elements become `out`.
struct Axis {
  int64_t in, out;
  float scale;
  int64_t span;  // from an element to the other one it is mixed with: 1, or 0 where nothing is mixed
};
DEEPLAB_FAST_HD Axis axis_of(int64_t in, int64_t out) {
  return {in, out, static_cast<float>(in) / static_cast<float>(out), in == out ? 0 : 1};
}

// An output element is weight0 * in[index0] + weight1 * in[index1].
struct BilinearTap {
  int64_t index0, index1;
  float weight0, weight1;
};
DEEPLAB_FAST_HD BilinearTap tap_of(const Axis& axis, int64_t output) {
  if (axis.span == 0) return {output, output, 1.0f, 0.0f};
  const float centre = static_cast<float>(output) + 0.5f;
#if defined(__CUDA_ARCH__)
  float position = __fsub_rn(__fmul_rn(axis.scale, centre), 0.5f);  // never one instruction: as on the CPU
#else
  float position = axis.scale * centre - 0.5f;
#endif
  position = position > 0.0f ? position : 0.0f;
  const int64_t floor = static_cast<int64_t>(position);
  const int64_t index0 = floor < axis.in ? floor : axis.in - 1;
  const int64_t index1 = index0 + axis.span < axis.in ? index0 + axis.span : axis.in - 1;
  const float beyond = position - static_cast<float>(index0);
  const float weight1 = beyond < 1.0f ? beyond : 1.0f;
  return {index0, index1, 1.0f - weight1, weight1};
}

// The part of in[index] in an output element.
DEEPLAB_FAST_HD float weight_of(const BilinearTap& tap, int64_t index) {
  return (tap.index0 == index ? tap.weight0 : 0.0f) + (tap.index1 == index ? tap.weight1 : 0.0f);
}

// The first output element whose index0 is `index` or more; axis.out if there is none. index0 never falls, so the
// elements with index0 == i are the range first_output(i) .. first_output(i + 1).
DEEPLAB_FAST_HD int64_t first_output(const Axis& axis, int64_t index) {
  if (index <= 0) return 0;
  if (index >= axis.in) return axis.out;
  const float guess = (static_cast<float>(index) + 0.5f) / axis.scale - 0.5f;
  int64_t output = guess < static_cast<float>(axis.out) ? static_cast<int64_t>(guess) : axis.out;
  while (output > 0 && tap_of(axis, output - 1).index0 >= index) --output;
  while (output < axis.out && tap_of(axis, output).index0 < index) ++output;
  return output;
}

template <class F>
DEEPLAB_FAST_HD F mix(F a, F b, F weight_a, F weight_b) {
  return weight_a * a + weight_b * b;
}

// Whether a score takes the place of the largest so far, as in torch.argmax: NaN counts as the largest, and among
// equals the first one stays. A truth value, or a vector of them.
template <class F>
DEEPLAB_FAST_HD auto takes_over(F score, F largest) {
  return (score > largest) | ((score != score) & (largest == largest));
}

// Softmax of scores that come one after the other: sum is that of exp(score - largest).
// As torch.softmax, NaN and +inf make it NaN, -inf is probability 0, and nothing but -inf is NaN.
struct RunningSoftmax {
  float largest = -__builtin_inff();
  float sum = 0.0f;
  template <class Exp>
  DEEPLAB_FAST_HD void add(float score, Exp exp) {
    if (score == -__builtin_inff()) return;
    if (score > largest) {
      sum = sum * exp(largest - score) + exp(score - score);
      largest = score;
    } else {
      sum = sum + exp(score - largest);
    }
  }
  // Takes in the scores that another one has seen; in which of the two does not change the result.
  template <class Exp>
  DEEPLAB_FAST_HD void merge(const RunningSoftmax& other, Exp exp) {
    const bool other_larger = other.largest > largest;
    const float above = other_larger ? other.largest : largest, below = other_larger ? largest : other.largest;
    const float factor = above == below ? 1.0f : exp(below - above);
    sum = other_larger ? sum * factor + other.sum : sum + other.sum * factor;
    largest = above;
  }
};

// Gradient to a score, from that to its probability; dot is the sum over classes of probability * gradient.
template <class F>
DEEPLAB_FAST_HD F softmax_gradient(F probability, F gradient, F dot) {
  return probability * (gradient - dot);
}

}  // namespace deeplab_fast
