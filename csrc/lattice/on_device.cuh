// Building and filtering with a lattice on a device: the order of launches, and the memory between them. `Device`
// launches kernels, makes memory, scans and sorts: a GPU's stream (doors/cuda_stream.cuh), or in tests the host.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device_array.h"
#include "lattice/build_kernels.cuh"
#include "lattice/permutohedral_filter.cuh"

namespace deeplab_fast {
namespace {

// Calls body(Constant) with the dimensions as a constant where they are common, so that loops over them unroll.
template <int kValue>
struct Dimensions {
  static constexpr int value = kValue;
};
template <class Body>
void by_dimensions(int dimensions, Body&& body) {
  switch (dimensions) {
    case 1:
      return body(Dimensions<1>());
    case 2:
      return body(Dimensions<2>());
    case 3:
      return body(Dimensions<3>());
    case 4:
      return body(Dimensions<4>());
    case 5:
      return body(Dimensions<5>());
    case 6:
      return body(Dimensions<6>());
    default:
      return body(Dimensions<0>());
  }
}

constexpr int64_t kMostEntries = int64_t{1} << 29;  // so that twice as many slots can be numbered

// Images of so many entries each that one lattice holds.
inline int64_t images_at_once(int64_t images, int64_t points, int dimensions) {
  const int64_t of_image = (points + 1) * (dimensions + 1);
  if (of_image > kMostEntries)
    throw std::invalid_argument("features: " + std::to_string(points) + " points in " + std::to_string(dimensions) +
                                " dimensions are too many for a GPU, should be at most " +
                                std::to_string(kMostEntries / (dimensions + 1) - 1));
  const int64_t most = kMostEntries / of_image;
  return images < most ? images : most;
}

// A lattice with its memory.
template <class Device>
class LatticeOnDevice {
 public:
  // features: [images][dimensions][points] on the device, which must stay. Waits once for the device, to learn the
  // number of vertices; where the device may not be waited for (a graph is being captured), there is memory for as many
  // as there can be, and features that are not valid make results NaN instead of throwing std::invalid_argument.
  LatticeOnDevice(Device& device, const float* features, int dimensions, int64_t images, int64_t points)
      : device_(device) {
    build_ = LatticeBuild{};
    build_.features = features, build_.dimensions = dimensions, build_.corners = dimensions + 1;
    build_.key_stride = (dimensions + 7) / 8 * 8;
    build_.images = images, build_.points = points, build_.phantoms = points % 4 != 0;
    const int64_t of_image = (points + build_.phantoms) * build_.corners;
    for (build_.table = 64; build_.table < 2 * of_image;) build_.table *= 2;
    for (int d = 0; d < dimensions; ++d) build_.scale[d] = embedding_scale(d, dimensions);
    const int64_t entries = build_.entries(), all = build_.all_entries();

    auto keys = make<int16_t>(all * build_.key_stride, build_.keys);
    auto slots = make<int32_t>(images * build_.table, build_.slots);
    auto slot_of_entry = make<int32_t>(all, build_.slot_of_entry);
    auto owner = make<int32_t>(all, build_.owner);
    weight_ = make<float>(entries, build_.weight);
    vertex_ = make<int32_t>(entries, build_.vertex);
    number_ = make<int32_t>(all + 2, build_.number);
    build_.status = build_.number + all + 1;  // behind the number of vertices
    untouched_ = make<int32_t>(images * build_.corners, build_.untouched);
    device.fill_bytes(build_.slots, 0x7f, images * build_.table * sizeof(int32_t));
    device.fill_bytes(build_.status, 0, sizeof(int32_t));
    device.fill_bytes(build_.untouched, 0xff, images * build_.corners * sizeof(int32_t));

    by_dimensions(dimensions, [&](auto constant) {
      device.launch(images * (points + 1), locate_points_kernel<constant.value>, build_);
    });
    device.launch(all, insert_keys_kernel, build_);
    device.launch(all + 1, mark_owners_kernel, build_);
    device.exclusive_sum(build_.number, all + 1);
    device.launch(all, number_entries_kernel, build_);
    build_.capacity = count_vertices(all);
    neighbour_ = make<int32_t>(2 * build_.corners * build_.capacity, build_.neighbour);
    device.launch(build_.capacity * build_.corners, find_neighbours_kernel, build_, build_.number + all);
    sort_entries(entries);
    view_ = {dimensions,         build_.corners,      images,          points,        entries,
             build_.capacity,    build_.number + all, build_.vertex,   build_.weight, sorted_vertex_.data,
             sorted_entry_.data, build_.neighbour,    build_.untouched};
  }

  const DeviceLattice& view() const { return view_; }
  float alpha() const { return slice_scale(view_.dimensions); }

  // Who owns the tables of `view`, for those who keep them when this is gone; lattice_of_tables wants them in this
  // order.
  std::vector<std::shared_ptr<void>> owners() const {
    return {vertex_.owner,    weight_.owner,    sorted_vertex_.owner, sorted_entry_.owner,
            neighbour_.owner, untouched_.owner, number_.owner};
  }

  void weights_to_features(const float* weight_grad, float* feature_grad) const {
    by_dimensions(view_.dimensions, [&](auto constant) {
      device_.launch(view_.all_points(), weights_to_features_kernel<constant.value>, build_, weight_grad, feature_grad);
    });
  }

 private:
  template <class T>
  DeviceArray<T> make(int64_t size, T*& data) {
    auto array = device_.template make<T>(size);
    data = array.data;
    return array;
  }

  int64_t count_vertices(int64_t all) {
    int32_t count_and_status[2];
    if (!device_.read(build_.number + all, count_and_status, 2)) return all;
    const int32_t count = count_and_status[0], status = count_and_status[1];
    if (status & kNotFinite)
      throw std::invalid_argument("features: there is a NaN or infinite value, all should be finite");
    if (status & kOverflow)
      throw std::invalid_argument(
          "features: key range overflow: a lattice coordinate is beyond +-32767 (pydensecrf would wrap around); "
          "features should be smaller, that is, the standard deviations (sigmas) larger");
    return count;
  }

  void sort_entries(int64_t entries) {
    sorted_vertex_ = device_.template make<int32_t>(entries);
    sorted_entry_ = device_.template make<int32_t>(entries);
    auto counted = device_.template make<int32_t>(entries);
    device_.launch(entries, count_entries_kernel, entries, counted.data);
    device_.sort_pairs(entries, build_.capacity, build_.vertex, sorted_vertex_.data, counted.data, sorted_entry_.data);
  }

  Device& device_;
  LatticeBuild build_;
  DeviceLattice view_;
  DeviceArray<float> weight_;
  DeviceArray<int32_t> vertex_, number_, untouched_, neighbour_, sorted_vertex_, sorted_entry_;
};

constexpr int kTables = 7;

// The view of a lattice whose tables have been kept; `capacity` is as many vertices as `neighbour` has room for.
inline DeviceLattice lattice_of_tables(int dimensions, int64_t images, int64_t points, int64_t capacity,
                                       const void* const (&tables)[kTables]) {
  const int64_t corners = dimensions + 1, entries = images * points * corners;
  const int64_t all = entries + (points % 4 != 0 ? images * corners : 0);
  const auto numbers = [&](int table) { return static_cast<const int32_t*>(tables[table]); };
  return {
      dimensions, static_cast<int32_t>(corners),        images,     points,     entries,    capacity,  numbers(6) + all,
      numbers(0), static_cast<const float*>(tables[1]), numbers(2), numbers(3), numbers(4), numbers(5)};
}

// Vertex rows that one direction of a lattice goes through.
template <class Device, class Row>
class VertexRowsOnDevice {
 public:
  VertexRowsOnDevice(Device& device, const DeviceLattice& lattice, int labels)
      : device_(device),
        lattice_(lattice),
        labels_(labels),
        rows_{device.template make<Row>(lattice.capacity * labels),
              device.template make<Row>(lattice.capacity * labels)},
        carried_(device.template make<float>(pieces_of(lattice) * labels)) {}

  // Splats rows of points, times a factor of each point if there is one, and blurs them.
  template <class Source>
  void filter(const Source* source, const float* factor, bool reverse) {
    splat(source, factor, rows_[1].data);
    blur(rows_[1].data, reverse);
  }

  // out = scale * (A + A') source, of rows of points: splatted once. `out` may be `source`.
  template <class Source>
  void filter_both_ways(const Source* source, float scale, float* out) {
    const auto splatted = device_.template make<Row>(lattice_.capacity * labels_);
    splat(source, nullptr, splatted.data);
    for (const bool reverse : {false, true}) {
      blur(splatted.data, reverse);
      slice(scale, nullptr, reverse, out);
    }
  }

  void slice(float scale, const float* factor, bool add, float* out) const {
    device_.launch(lattice_.all_points() * group_of(labels_), slice_kernel<Row>, lattice_, labels_, scale, factor,
                   filtered_, add, out);
  }

  const Row* filtered() const { return filtered_; }

 private:
  template <class Source>
  void splat(const Source* source, const float* factor, Row* to) {
    const int group = group_of(labels_);
    const int64_t blocks = (labels_ + group - 1) / group;
    device_.launch(pieces_of(lattice_) * blocks * group, splat_kernel<Source, Row>, lattice_, labels_, factor, source,
                   to, carried_.data);
    device_.launch((pieces_of(lattice_) + lattice_.images * lattice_.corners) * labels_,
                   add_carried_kernel<Source, Row>, lattice_, labels_, factor, source, to,
                   static_cast<const float*>(carried_.data));
  }

  // Axis after axis, to and fro between both arrays; `from` may be the second.
  void blur(const Row* from, bool reverse) {
    for (int i = 0; i < lattice_.corners; ++i) {
      Row* to = rows_[i % 2].data;
      device_.launch(lattice_.capacity * group_of(labels_), blur_kernel<Row>, lattice_,
                     reverse ? lattice_.corners - 1 - i : i, labels_, from, to);
      from = to;
    }
    filtered_ = from;
  }

  Device& device_;
  const DeviceLattice& lattice_;
  int labels_;
  DeviceArray<Row> rows_[2];
  DeviceArray<float> carried_;
  const Row* filtered_ = nullptr;
};

// The gradient of filtering to features, from rows of the gradient and of the values.
template <class Device>
void filter_backward_features(Device& device, const LatticeOnDevice<Device>& lattice, int labels, const float* grad,
                              const float* values, bool reverse, float* weight_grad) {
  VertexRowsOnDevice<Device, float> blurred(device, lattice.view(), labels), back(device, lattice.view(), labels);
  blurred.filter(values, nullptr, reverse);
  back.filter(grad, nullptr, !reverse);
  device.launch(lattice.view().entries * group_of(labels), weight_grad_kernel, lattice.view(), labels, lattice.alpha(),
                grad, values, blurred.filtered(), back.filtered(), weight_grad);
}

}  // namespace
}  // namespace deeplab_fast
