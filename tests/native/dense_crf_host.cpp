// The CUDA kernels of the dense CRF on the host, and the order in which they are launched, as a library for
// tests/crf/test_dense_crf_host.py. Few and small blocks, so that threads go around more than once.
#include "cuda_on_host.h"
// The kernels come after what they are made to run on.
#ifdef COUNTING
// These have numbers that are none.
#include <atomic>
#include <condition_variable>
#include <stdexcept>
#include <string>
#include <thread>
#define float counting::Float
#endif
#include "crf/on_device.cuh"

using namespace deeplab_fast;

namespace {

// Stands for a GPU's stream: crf_cuda.cuh.
class Host {
 public:
  bool capturing = false;  // as while a graph is captured: no look at results in between

  template <class... Parameters, class... Arguments>
  void launch(int64_t items, void (*kernel)(Parameters...), Arguments... arguments) {
    if (items <= 0) return;
    const auto thread = [&] { kernel(static_cast<Parameters>(arguments)...); };
#ifdef COUNTING
    counting::begin_launch(items);
    cuda_on_host::launch(static_cast<unsigned>((items + kThreads - 1) / kThreads), kThreads, thread);
    counting::end_launch();
#else
    cuda_on_host::launch(2, 64, thread);
#endif
  }
  // Full of NaN.
  template <class T>
  DeviceArray<T> make(int64_t size) {
#ifdef COUNTING
    const int64_t bytes = size * sizeof(T);
    const std::shared_ptr<char> owner(static_cast<char*>(std::aligned_alloc(256, (bytes / 256 + 1) * 256)),
                                      [bytes](char* memory) { counting::forget(memory, bytes), std::free(memory); });
    counting::watch(owner.get(), bytes);
#else
    const std::shared_ptr<char[]> owner(new char[size * sizeof(T)]);  // no more, so that AddressSanitizer sees its end
#endif
    std::fill_n(owner.get(), size * sizeof(T), static_cast<char>(0xff));
    return {owner, reinterpret_cast<T*>(owner.get()), size};
  }
  void fill_bytes(void* memory, int value, int64_t size) { std::fill_n(static_cast<char*>(memory), size, value); }
  void exclusive_sum(int32_t* values, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += std::exchange(values[i], sum);
  }
  void sort_pairs(int64_t count, int64_t limit, const int32_t* keys, int32_t* sorted_keys, const int32_t* values,
                  int32_t* sorted_values) {
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
    for (int64_t i = 0; i < count; ++i) {
      if (keys[order[i]] < 0 || keys[order[i]] >= limit) std::fprintf(stderr, "a vertex without a row\n"), std::abort();
      sorted_keys[i] = keys[order[i]], sorted_values[i] = values[order[i]];
    }
  }
  bool read(const int32_t* from, int32_t* to, int count) {
    if (!capturing) std::copy_n(from, count, to);
    return !capturing;
  }
};

struct Call {
  int64_t images, points;
  int32_t labels, iterations, terms, rows, capturing, recompute, need_features, need_compat;
  const float* features[4];
  int32_t dimensions[4];
  const float* compat[4];
  int32_t compat_dimensions[4];
  int32_t normalization[4];
  const float* unary;  // maps, as grad and to_unary
  const float* grad;   // null: inference only
  float *q, *to_unary;
  float *to_features[4], *to_compat[4];
};

template <class Row>
void run(const Call& call) {
  Host host;
  host.capturing = call.capturing;
  const CrfSize size{call.images, call.points, call.labels};
  std::vector<TermInput> terms;
  for (int k = 0; k < call.terms; ++k)
    terms.push_back({call.features[k], call.dimensions[k], call.compat[k], call.compat_dimensions[k],
                     static_cast<Normalization>(call.normalization[k])});
  CrfOnDevice<Host, Row> crf(host, size, call.unary, terms);
  // Q after every iteration, one after another.
  auto history = host.make<float>((call.iterations + 1) * size.rows());
  const auto after = [&](int iteration) { return history.data + iteration * size.rows(); };
  const bool keep = call.grad != nullptr && !call.recompute;
  crf.infer(call.iterations, nullptr, [&](int i) { return keep || i == call.iterations ? after(i) : nullptr; });
  host.launch(size.rows(), maps_of_rows_kernel<float>, size.images, size.labels, size.points, after(call.iterations),
              call.q);
  if (call.grad == nullptr) return;

  auto grad = host.make<float>(size.rows()), unary_grad = host.make<float>(size.rows());
  host.launch(size.rows(), rows_of_maps_kernel<float>, size.images, size.labels, size.points, 1.0f, call.grad,
              grad.data);
  DeviceGradients out{unary_grad.data, {}, {}};
  if (call.need_features) out.features.assign(call.to_features, call.to_features + call.terms);
  if (call.need_compat) out.compat.assign(call.to_compat, call.to_compat + call.terms);
  BackwardOnDevice<Host, Row> backward(host, crf, out);
  if (call.recompute) {
    Replay<Host, Row> replay(host, crf, call.iterations);
    backward.run(call.iterations, grad.data, [&](int i) { return replay(i); });
  } else {
    backward.run(call.iterations, grad.data, after);
  }
  host.launch(size.rows(), maps_of_rows_kernel<float>, size.images, size.labels, size.points, unary_grad.data,
              call.to_unary);
}

// 0; 1 for features that are not finite, 2 for such as are too large
template <class Body>
int status_of(Body&& body) {
  try {
    body();
  } catch (const std::invalid_argument& error) {
    return std::string(error.what()).find("NaN") != std::string::npos ? 1 : 2;
  }
  return 0;
}

}  // namespace

extern "C" {

int dense_crf(const Call* call) {
  return status_of([&] {
    if (call->rows == 0) run<float>(*call);
    if (call->rows == 1) run<__half>(*call);
    if (call->rows == 2) run<__nv_bfloat16>(*call);
  });
}

// Tables as DeviceLattice has them, neighbour with room for [corners][2][(points + 1) * images * corners].
int lattice(const float* features, int dimensions, int64_t images, int64_t points, int64_t* count, int32_t* vertex,
            float* weight, int32_t* neighbour) {
  return status_of([&] {
    Host host;
    const LatticeOnDevice<Host> built(host, features, dimensions, images, points);
    const DeviceLattice& view = built.view();
    *count = *view.vertex_count;
    std::copy_n(view.vertex, view.entries, vertex);
    std::copy_n(view.weight, view.entries, weight);
    std::copy_n(view.neighbour, 2 * view.corners * view.capacity, neighbour);
  });
}

// Maps (images, channels, points); grad null: filtered values, by A, by A' (way 1), or by A + A' (way 2); else the
// gradient of the first two to the features.
int filter(const float* values, const float* grad, const float* features, int channels, int dimensions, int64_t images,
           int64_t points, int way, float* out) {
  return status_of([&] {
    Host host;
    const LatticeOnDevice<Host> lattice(host, features, dimensions, images, points);
    const int64_t size = images * points * channels;
    auto rows = host.make<float>(size), grad_rows = host.make<float>(size);
    host.launch(size, rows_of_maps_kernel<float>, images, channels, points, 1.0f, values, rows.data);
    if (grad == nullptr) {
      VertexRowsOnDevice<Host, float> vertices(host, lattice.view(), channels);
      if (way == 2) {
        vertices.filter_both_ways(static_cast<const float*>(rows.data), lattice.alpha(), rows.data);
      } else {
        vertices.filter(static_cast<const float*>(rows.data), nullptr, way == 1);
        vertices.slice(lattice.alpha(), nullptr, false, rows.data);
      }
      host.launch(size, maps_of_rows_kernel<float>, images, channels, points, rows.data, out);
      return;
    }
    host.launch(size, rows_of_maps_kernel<float>, images, channels, points, 1.0f, grad, grad_rows.data);
    auto weights = host.make<float>(lattice.view().entries);
    host.fill_bytes(weights.data, 0, weights.size * sizeof(float));
    filter_backward_features(host, lattice, channels, static_cast<const float*>(grad_rows.data),
                             static_cast<const float*>(rows.data), way == 1, weights.data);
    lattice.weights_to_features(weights.data, out);
  });
}
}
