// The convolutions' part of core_check: the ASPP in both directions, ReLU's backward and the checksum. Everything that
// is allocated to be written starts as NaN.
#include "core_check_convolution.h"

#include <cmath>
#include <random>
#include <vector>

#include "base/buffer.h"
#include "base/content_hash.h"
#include "base/thread_pool.h"
#include "convolution/relu_backward.h"
#include "convolution/taps.h"

using namespace deeplab_fast;

namespace {

struct Shape {
  int64_t batch, channels, classes, height, width;
  bool channels_last;
};

template <class Pointer>
MapsOf<Pointer> maps(Pointer data, const Shape& shape, int64_t channels) {
  const int64_t pixels = shape.height * shape.width;
  if (shape.channels_last)
    return {data, Element::kFloat,        shape.batch, channels, shape.height, shape.width, pixels * channels,
            1,    shape.width * channels, channels};
  return {data,        Element::kFloat,   shape.batch, channels,    shape.height,
          shape.width, pixels * channels, pixels,      shape.width, 1};
}

std::vector<float> random_floats(int64_t count) {
  static std::mt19937 generator(3);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(generator);
  return values;
}

struct Problem {
  Shape shape;
  std::vector<Branch> branches;
  std::vector<float> x, grad, bias;
  std::vector<std::vector<float>> weights;

  Problem(const Shape& s, const std::vector<int64_t>& rates) : shape(s) {
    const int64_t pixels = s.batch * s.height * s.width;
    for (int64_t rate : rates) {
      branches.push_back({3, 3, rate, rate + 1});
      weights.push_back(random_floats(s.classes * s.channels * 9));
    }
    x = random_floats(pixels * s.channels);
    grad = random_floats(pixels * s.classes);
    bias = random_floats(s.classes);
  }

  // All results one after the other: the sum, its gradients, the packed sum through shifts.
  std::vector<float> solve(int threads) const {
    ThreadPool pool(threads);
    const int64_t pixels = shape.batch * shape.height * shape.width, size = shape.classes * shape.channels * 9;
    std::vector<BranchWeight> views;
    for (const auto& weight : weights) views.push_back({weight.data(), Element::kFloat, shape.channels * 9, 9, 3, 1});
    std::vector<float> packed(static_cast<size_t>(aspp_packed_size(branches, shape.classes, shape.channels)), NAN);
    aspp_pack(branches, views, shape.classes, shape.channels, packed.data(), pool);

    std::vector<float> out(static_cast<size_t>(pixels * shape.classes), NAN);
    std::vector<float> to_x(static_cast<size_t>(pixels * shape.channels), NAN);
    std::vector<float> to_weights(static_cast<size_t>(size) * branches.size(), NAN);
    const Maps input = maps<const void*>(x.data(), shape, shape.channels);
    const Maps gradient = maps<const void*>(grad.data(), shape, shape.classes);
    aspp_forward(branches, input, packed.data(), bias.data(), maps<void*>(out.data(), shape, shape.classes), pool);
    aspp_backward_x(branches, views, gradient, maps<void*>(to_x.data(), shape, shape.channels), pool);
    std::vector<float*> pointers;
    for (size_t b = 0; b < branches.size(); ++b) pointers.push_back(to_weights.data() + b * static_cast<size_t>(size));
    aspp_backward_weights(branches, gradient, input, pointers, pool);

    const int64_t row = aspp_tap_count(branches) * shape.classes;
    std::vector<float> columns(static_cast<size_t>(pixels * row), NAN);
    std::vector<float> shifted(out.size(), NAN), masked(out.size(), NAN), sums(static_cast<size_t>(shape.classes), NAN);
    aspp_shift_gather(branches, gradient, columns.data(), pool);
    aspp_shift_sum(branches, columns.data(), Element::kFloat, nullptr,
                   maps<void*>(shifted.data(), shape, shape.classes), pool);
    relu_backward(gradient, maps<const void*>(out.data(), shape, shape.classes),
                  maps<void*>(masked.data(), shape, shape.classes), sums.data(), pool);
    for (const auto* more : {&to_x, &to_weights, &columns, &shifted, &masked, &sums})
      out.insert(out.end(), more->begin(), more->end());
    return out;
  }
};

}  // namespace

void check_convolutions(void (*require)(bool, const char*)) {
  const std::vector<int64_t> rates{1, 3, 40};
  for (const Shape& shape : {Shape{2, 37, 5, 9, 7, true}, Shape{1, 16, 21, 1, 13, false}, Shape{1, 3, 50, 6, 1, true},
                             Shape{3, 1100, 2, 3, 3, false}, Shape{1, 70, 38, 40, 31, true}}) {
    const Problem problem(shape, rates);
    const std::vector<float> once = problem.solve(1);
    for (float value : once) require(std::isfinite(value), "an element was not written");
    for (int threads : {2, 3, 8}) require(problem.solve(threads) == once, "another number of threads, other bits");
  }
  ThreadPool pool(3);
  std::vector<float> memory = random_floats(200003);
  const uint64_t before = checksum(memory.data(), 200003 * 4, pool);
  require(checksum(memory.data(), 200003 * 4, pool) == before, "a checksum changes by itself");
  memory.back() += 1;
  require(checksum(memory.data(), 200003 * 4, pool) != before, "a checksum does not see a change");
}
