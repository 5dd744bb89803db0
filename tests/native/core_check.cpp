// Runs the compute core through its paths on small random problems, for AddressSanitizer, UndefinedBehaviorSanitizer,
// ThreadSanitizer or valgrind to watch (`make sanitize`). Results are checked only for what must hold of any of them:
// probabilities that sum to one, and the same bits for any number of threads. Agreement is tested from Python.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/thread_pool.h"
#include "convolution/winograd.h"
#include "core_check_convolution.h"
#include "crf/dense_crf.h"
#include "crf/image_features.h"
#include "crf/pairwise_energy.h"

using namespace deeplab_fast;

namespace {

std::mt19937 generator(0);

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "core_check: %s\n", what);
  std::exit(1);
}

std::vector<float> random_floats(int64_t count, float low, float high) {
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(generator);
  return values;
}

struct Problem {
  int64_t width, height;
  int labels, dimensions;
  Compat compat;
  Normalization normalization;
  float sigma;
};

// All gradients of four iterations, with their history and without.
std::vector<float> solve_backward(DenseCrf& crf, const Problem& problem, const std::vector<const float*>& features,
                                  Parallel& pool) {
  const int64_t points = crf.points(), size = points * problem.labels;
  const std::vector<float> grad = random_floats(size, -1, 1);
  std::vector<float> history(4 * size), result;
  const auto after = [&](int iteration) { return iteration > 0 ? history.data() + (iteration - 1) * size : nullptr; };
  crf.infer(4, nullptr, after, pool);
  for (const QHistory kept : {QHistory{history.data(), size}, QHistory{nullptr, 0}}) {
    std::vector<float> unary(size), of_features(points * problem.dimensions), of_position(points * 2);
    std::vector<double> compat(int64_t{problem.labels} * problem.labels), weight(1);
    CrfGradients out{unary.data(), {of_features.data(), of_position.data()}, {compat.data(), weight.data()}};
    crf.backward(4, grad.data(), kept, features, out, pool);
    for (const auto& gradient : {unary, of_features, of_position, std::vector<float>(compat.begin(), compat.end())})
      result.insert(result.end(), gradient.begin(), gradient.end());
    crf.backward(0, grad.data(), kept, features, {unary.data(), {}, {}}, pool);
  }
  for (float value : result) require(std::isfinite(value), "a gradient is not finite");
  for (size_t i = 0; i < result.size() / 2; ++i)
    require(result[i] == result[i + result.size() / 2], "other gradients without the history");
  return result;
}

std::vector<float> solve(const Problem& problem, int threads) {
  generator.seed(7);
  ThreadPool pool(threads);
  const int64_t points = problem.width * problem.height;
  const std::vector<float> unary = random_floats(points * problem.labels, 0, 5);
  const std::vector<float> features = random_floats(points * problem.dimensions, 0, 10 / problem.sigma);
  std::vector<float> compat = random_floats(int64_t{problem.labels} * problem.labels, 0, 1);
  for (int i = 0; i < problem.labels; ++i)
    for (int j = 0; j < i; ++j) compat[i * problem.labels + j] = compat[j * problem.labels + i];

  DenseCrf crf(points, problem.labels, problem.width);
  crf.set_unary(unary.data(), true, pool);
  crf.add_pairwise(features.data(), problem.dimensions, compat.data(), problem.compat, problem.normalization, pool);
  const Buffer<float> position = gaussian_features(problem.width, problem.height, 1, 1, pool);
  crf.add_pairwise(position.data(), 2, compat.data(), Compat::kPotts, problem.normalization, pool);
  std::vector<float> q(points * problem.labels), stepped(points * problem.labels);
  crf.inference(3, q.data(), pool);
  crf.set_collapse(1e-2f);
  crf.inference(2, stepped.data(), pool);
  crf.start(stepped.data(), pool);
  crf.step(stepped.data(), pool);
  require(std::isfinite(crf.kl_divergence(stepped.data(), pool)), "the KL divergence is not finite");
  const std::vector<float> gradients = solve_backward(crf, problem, {features.data(), position.data()}, pool);
  q.insert(q.end(), gradients.begin(), gradients.end());
  return q;
}

void check_problem(const Problem& problem) {
  const std::vector<float> q = solve(problem, 1);
  for (int64_t i = 0; i < problem.width * problem.height; ++i) {
    float sum = 0;
    for (int l = 0; l < problem.labels; ++l) sum += q[i * problem.labels + l];
    require(std::abs(sum - 1) < 1e-4f, "probabilities do not sum to 1");
  }
  for (int threads : {2, 3, 8}) require(solve(problem, threads) == q, "another number of threads, other bits");
}

void check_filter(int dimensions, int channels, int64_t points) {
  ThreadPool pool(2);
  const std::vector<float> features = random_floats(points * dimensions, -5, 5);
  const std::vector<float> values = random_floats(points * channels, 0, 1);
  const Lattice lattice(features.data(), dimensions, std::make_shared<VisitOrder>(points), pool);
  std::vector<float> out(points * channels);
  std::vector<float> to_features(points * dimensions);
  for (bool reverse : {false, true}) {
    filter(lattice, lattice.view(channels, pool), values.data(), channels, reverse ? Blur::kReverse : Blur::kForward,
           out.data(), pool);
    filter_backward_features(lattice, features.data(), out.data(), values.data(), channels, reverse, to_features.data(),
                             pool);
  }
  std::vector<int32_t> keys(lattice.vertices * dimensions), neighbours(2 * lattice.corners * lattice.vertices);
  lattice.unpack_keys(keys.data());
  lattice.neighbours(neighbours.data());
}

struct Energy {
  double energy;
  std::vector<float> gradient;
  bool operator==(const Energy& other) const { return energy == other.energy && gradient == other.gradient; }
};

Energy energy_of(int64_t height, int64_t width, double factor, bool with_inside, int threads) {
  constexpr int64_t kChannels = 35;
  ThreadPool pool(threads);
  generator.seed(5);
  const BilinearScaling scaling(height, width, factor);
  const int64_t points = scaling.points(), source = scaling.source_points();
  const std::vector<float> values = random_floats(kChannels * source, 0, 1);
  const std::vector<float> features = random_floats(5 * points, -5, 5), inside = random_floats(points, 0, 1);
  std::vector<float> scaled(kChannels * points), small(kChannels * points), back(kChannels * source, NAN);
  for (int64_t c = 0; c < kChannels; ++c) scaling.scale(values.data() + c * source, scaled.data() + c * points);
  const Lattice lattice(features.data(), 5, std::make_shared<VisitOrder>(points, scaling.width()), pool);
  const double energy =
      pairwise_energy(lattice, kChannels, with_inside ? inside.data() : nullptr, scaled.data(), small.data(), pool);
  for (int64_t c = 0; c < kChannels; ++c) scaling.scale_back(small.data() + c * points, 2.0f, back.data() + c * source);
  return {energy, back};
}

void check_energy(int64_t height, int64_t width, double factor) {
  for (bool with_inside : {false, true}) {
    const Energy first = energy_of(height, width, factor, with_inside, 1);
    require(std::isfinite(first.energy), "an energy is not finite");
    for (float value : first.gradient) require(std::isfinite(value), "a gradient was not written");
    for (int threads : {2, 3})
      require(energy_of(height, width, factor, with_inside, threads) == first, "another number of threads, other bits");
  }
}

void check_refusals() {
  ThreadPool pool(2);
  const auto refuses = [&](float value) {
    std::vector<float> features(64, 1.0f);
    features[17] = value;
    try {
      Lattice(features.data(), 2, std::make_shared<VisitOrder>(32), pool);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  require(refuses(NAN) && refuses(INFINITY) && refuses(-INFINITY), "a feature that is not finite is accepted");
  require(refuses(1e6f) && refuses(-3e38f), "a key out of range is accepted");
}

// x (1, C, H, W) and its result (1, K, H, W), the channels of a pixel side by side or not.
std::vector<float> winograd(int64_t channels, int64_t out_channels, int64_t height, int64_t width, int64_t rate,
                            bool channels_last, int threads) {
  generator.seed(9);
  ThreadPool pool(threads);
  const std::vector<float> x = random_floats(channels * height * width, -1, 1);
  const std::vector<float> weight = random_floats(out_channels * channels * 9, -1, 1);
  const std::vector<float> bias = random_floats(out_channels, -1, 1);
  std::vector<float> out(out_channels * height * width, NAN);
  Buffer<float> packed(winograd_packed_size(out_channels, channels));
  winograd_pack({weight.data(), channels * 9, 9, 3, 1}, bias.data(), out_channels, channels, packed.data(), pool);
  const auto maps_of = [&](auto* data, int64_t count) {
    MapsOf<decltype(data)> maps{data, Element::kFloat, 1, count, height, width, 0, height * width, width, 1};
    if (channels_last) maps.stride_c = 1, maps.stride_h = width * count, maps.stride_w = count;
    return maps;
  };
  const void* from = x.data();
  void* to = out.data();
  winograd_forward(maps_of(from, channels), packed.data(), bias.data(), nullptr, true, rate, rate,
                   maps_of(to, out_channels), pool);
  return out;
}

void check_winograd(int64_t channels, int64_t out_channels, int64_t height, int64_t width, int64_t rate) {
  for (bool channels_last : {false, true}) {
    const std::vector<float> out = winograd(channels, out_channels, height, width, rate, channels_last, 1);
    for (float value : out) require(std::isfinite(value), "a pixel of the convolution was not written");
    for (int threads : {2, 3})
      require(winograd(channels, out_channels, height, width, rate, channels_last, threads) == out,
              "another number of threads, another convolution");
  }
}

}  // namespace

int main() {
  for (int labels : {1, 2, 3, 5, 21, 40})
    for (Compat compat : {Compat::kPotts, Compat::kDiagonal, Compat::kMatrix})
      check_problem({37, 29, labels, 5, compat, Normalization::kSymmetric, 2.0f});
  for (Normalization normalization : {Normalization::kNone, Normalization::kBefore, Normalization::kAfter})
    for (int dimensions : {1, 2, 3, 6}) check_problem({64, 9, 4, dimensions, Compat::kPotts, normalization, 1.0f});
  check_problem({1, 1, 3, 5, Compat::kPotts, Normalization::kSymmetric, 1.0f});
  check_problem({5000, 4, 3, 3, Compat::kPotts, Normalization::kSymmetric, 0.5f});
  check_problem({300, 200, 6, 5, Compat::kPotts, Normalization::kSymmetric, 0.3f});  // several chunks
  for (int dimensions = 1; dimensions <= 9; ++dimensions) check_filter(dimensions, 35, 203);
  check_filter(20, 3, 50);
  for (int dimensions : {64, 65, 102}) check_filter(dimensions, 1, 41);
  for (double factor : {0.3, 0.5, 0.75, 1.0, 2.0}) check_energy(31, 18, factor);
  check_energy(1, 7, 1.5);
  check_energy(321, 200, 0.5);
  check_refusals();
  check_convolutions(require);
  for (int64_t rate : {1, 2, 5, 40}) {
    check_winograd(3, 5, 9, 7, rate);
    check_winograd(300, 33, 21, 18, rate);
    check_winograd(1, 16, 1, 1, rate);
  }
  // Several callers at once: the pool serves one, the others work on their own threads.
  std::vector<std::thread> callers;
  const std::vector<float> features = random_floats(1200 * 5, 0, 5);
  for (int i = 0; i < 3; ++i)
    callers.emplace_back([&] {
      ThreadPool pool(2);
      const Lattice lattice(features.data(), 5, std::make_shared<VisitOrder>(1200, 40), pool);
      std::vector<float> values(1200, 1.0f);
      for (int repeat = 0; repeat < 20; ++repeat)
        filter(lattice, lattice.view(1, pool), values.data(), 1, Blur::kForward, values.data(), pool);
    });
  for (std::thread& caller : callers) caller.join();
  std::puts("core_check: passed");
  return 0;
}
