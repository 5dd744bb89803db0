// The numpy door: the dense CRF for Python without torch. Checks arguments, releases the GIL, and calls the core on the
// project's own threads.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>

#include "base/thread_pool.h"
#include "crf/dense_crf.h"
#include "crf/image_features.h"
#include "crf/kept_kernels.h"
#include "isa/isa.h"
#include "lattice/geometry.h"
#include "lattice/lattice.h"

namespace py = pybind11;
using namespace deeplab_fast;

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using ImageArray = py::array_t<uint8_t, py::array::c_style>;

std::atomic<int> thread_count{static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))};

std::string shape_of(const py::array& array) {
  return py::str(array.attr("shape")).cast<std::string>();
}

[[noreturn]] void bad_shape(const char* name, const py::array& array, const std::string& wanted) {
  throw std::invalid_argument(std::string(name) + ": shape is " + shape_of(array) + ", should be " + wanted);
}

// The array itself, or TypeError: conversions are for the Python layer to make, where they can be seen.
template <class T>
py::array_t<T, py::array::c_style> require(const py::object& object, const char* name, const char* dtype) {
  if (!py::isinstance<py::array_t<T, py::array::c_style>>(object))
    throw py::type_error(
        std::string(name) + ": should be a C-contiguous " + dtype + " array, is " +
        py::str(py::type::of(object)).cast<std::string>() +
        (py::hasattr(object, "dtype") ? " of " + py::str(object.attr("dtype")).cast<std::string>() : ""));
  return py::reinterpret_borrow<py::array_t<T, py::array::c_style>>(object);
}

FloatArray require_floats(const py::object& object, const char* name) {
  return require<float>(object, name, "float32");
}

FloatArray require_features(const py::object& object, int64_t points) {
  FloatArray features = require_floats(object, "features");
  const std::string wanted = "(dimensions, " + (points < 0 ? "points" : std::to_string(points)) + ")";
  if (features.ndim() != 2 || (points >= 0 && features.shape(1) != points) || features.shape(1) < 1)
    bad_shape("features", features, wanted);
  if (features.shape(0) < 1 || features.shape(0) > kMaxDimensions)
    bad_shape("features", features, wanted + " with 1 to " + std::to_string(kMaxDimensions) + " dimensions");
  return features;
}

void require_positive(const char* name, double value) {
  if (!(value > 0) || value > 3e38)
    throw std::invalid_argument(std::string(name) + ": is " + std::to_string(value) +
                                ", should be positive and finite");
}

struct PyLattice {
  std::unique_ptr<Lattice> lattice;

  explicit PyLattice(const py::object& object) {
    const FloatArray features = require_features(object, -1);
    const py::gil_scoped_release release;
    ThreadPool threads(thread_count);
    lattice = std::make_unique<Lattice>(features.data(), static_cast<int>(features.shape(0)),
                                        std::make_shared<VisitOrder>(features.shape(1)), threads);
  }

  FloatArray filter(const py::object& object, bool reverse) const {
    const FloatArray values = require_floats(object, "values");
    if (values.ndim() != 2 || values.shape(1) != lattice->points)
      bad_shape("values", values, "(channels, " + std::to_string(lattice->points) + ")");
    FloatArray out({values.shape(0), values.shape(1)});
    float* to = out.mutable_data();
    const py::gil_scoped_release release;
    ThreadPool threads(thread_count);
    deeplab_fast::filter(*lattice, lattice->view(values.shape(0), threads), values.data(), values.shape(0),
                         reverse ? deeplab_fast::Blur::kReverse : deeplab_fast::Blur::kForward, to, threads);
    return out;
  }

  py::array_t<int32_t> keys() const {
    py::array_t<int32_t> out({lattice->vertices, int64_t{lattice->dimensions}});
    lattice->unpack_keys(out.mutable_data());
    return out;
  }
  py::array_t<int32_t> neighbours() const {
    py::array_t<int32_t> out({int64_t{lattice->corners}, int64_t{2}, lattice->vertices});
    lattice->neighbours(out.mutable_data());
    return out;
  }
  py::array_t<int32_t> vertices() const {
    py::array_t<int32_t> out({lattice->points, int64_t{lattice->corners}});
    lattice->unpack_vertices(out.mutable_data());
    return out;
  }
  FloatArray weights() const {
    FloatArray out({lattice->points, int64_t{lattice->corners}});
    lattice->unpack_weights(out.mutable_data());
    return out;
  }
};

// One lock per object: two Python threads using the same one take turns instead of crashing.
struct PyDenseCrf {
  DenseCrf crf;
  std::mutex mutex;

  PyDenseCrf(int64_t points, int64_t labels, int64_t width)
      : crf(checked(points, "points"), static_cast<int>(checked(labels, "labels")), checked_width(width, points)) {}

  static int64_t checked_width(int64_t width, int64_t points) {
    if (width < 0 || (width > 0 && points % width != 0))
      throw std::invalid_argument("width: is " + std::to_string(width) +
                                  ", should be 0 or divide the number of points, " + std::to_string(points));
    return width;
  }

  static int64_t checked(int64_t value, const char* name) {
    if (value < 1 || value > INT32_MAX)
      throw std::invalid_argument(std::string(name) + ": is " + std::to_string(value) + ", should be in 1.." +
                                  std::to_string(INT32_MAX));
    return value;
  }

  template <class Body>
  auto locked(Body&& body) {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex);
    ThreadPool threads(thread_count);
    return body(threads);
  }

  // False, and nothing changed, if a value is not finite.
  bool set_unary(const py::object& object) {
    const FloatArray unary = require_floats(object, "unary");
    if (unary.ndim() != 2 || unary.shape(0) != crf.labels() || unary.shape(1) != crf.points())
      bad_shape("unary", unary, "(" + std::to_string(crf.labels()) + ", " + std::to_string(crf.points()) + ")");
    return locked([&](Parallel& threads) { return crf.set_unary(unary.data(), true, threads); });
  }

  FloatArray checked_compat(const py::object& object) const {
    const FloatArray compat = require_floats(object, "compat");
    bool fits = compat.ndim() <= 2;
    for (py::ssize_t d = 0; d < compat.ndim() && fits; ++d) fits = compat.shape(d) == crf.labels();
    const std::string labels = std::to_string(crf.labels());
    if (!fits) bad_shape("compat", compat, "(), (" + labels + ",) or (" + labels + ", " + labels + ")");
    return compat;
  }
  static Normalization checked_normalization(int value) {
    if (value < 0 || value > 3)
      throw std::invalid_argument("normalization: is " + std::to_string(value) + ", should be 0, 1, 2 or 3");
    return static_cast<Normalization>(value);
  }

  // `make` gives the features: a pointer-like with data(), kept alive by the caller.
  template <class Make>
  void add(int dimensions, const py::object& compat_object, int normalization_value, Make&& make) {
    const FloatArray compat = checked_compat(compat_object);
    const Normalization normalization = checked_normalization(normalization_value);
    const auto kind = static_cast<Compat>(compat.ndim());
    locked([&](Parallel& threads) {
      const auto features = make(threads);
      crf.add_pairwise(features.data(), dimensions, compat.data(), kind, normalization, threads);
    });
  }

  struct Borrowed {
    const float* pointer;
    const float* data() const { return pointer; }
  };
  void add_pairwise(const py::object& object, const py::object& compat, int normalization) {
    const FloatArray features = require_features(object, crf.points());
    add(static_cast<int>(features.shape(0)), compat, normalization,
        [&](Parallel&) { return Borrowed{features.data()}; });
  }
  void check_size(int64_t width, int64_t height) const {
    if (width < 1 || height < 1 || width > crf.points() || height > crf.points() || width * height != crf.points())
      throw std::invalid_argument("width, height: are " + std::to_string(width) + " and " + std::to_string(height) +
                                  ", should multiply to " + std::to_string(crf.points()) + " points");
  }
  void add_gaussian(int64_t width, int64_t height, double sx, double sy, const py::object& compat, int normalization) {
    check_size(width, height);
    require_positive("sx", sx), require_positive("sy", sy);
    const FloatArray checked = checked_compat(compat);
    const Normalization how = checked_normalization(normalization);
    locked([&](Parallel& threads) {
      crf.add_gaussian(width, height, static_cast<float>(sx), static_cast<float>(sy), checked.data(),
                       static_cast<Compat>(checked.ndim()), how, threads);
    });
  }
  void add_bilateral(int64_t width, int64_t height, double sx, double sy, double sr, double sg, double sb,
                     const py::object& object, const py::object& compat, int normalization) {
    check_size(width, height);
    require_positive("sx", sx), require_positive("sy", sy);
    require_positive("sr", sr), require_positive("sg", sg), require_positive("sb", sb);
    const ImageArray image = require<uint8_t>(object, "image", "uint8");
    if (image.ndim() != 3 || image.shape(0) != height || image.shape(1) != width || image.shape(2) != 3)
      bad_shape("image", image, "(" + std::to_string(height) + ", " + std::to_string(width) + ", 3)");
    const float sigma_rgb[3] = {static_cast<float>(sr), static_cast<float>(sg), static_cast<float>(sb)};
    add(5, compat, normalization, [&](Parallel& threads) {
      return bilateral_features(width, height, static_cast<float>(sx), static_cast<float>(sy), sigma_rgb, image.data(),
                                threads);
    });
  }

  // In memory of our own: large results of successive calls then reuse it (buffer.h).
  FloatArray empty_q() const {
    auto* memory = new Buffer<float>(crf.points() * crf.labels());
    const py::capsule owner(memory, [](void* buffer) { delete static_cast<Buffer<float>*>(buffer); });
    return FloatArray({crf.points(), int64_t{crf.labels()}}, memory->data(), owner);
  }
  FloatArray checked_q(const py::object& object) const {
    FloatArray q = require_floats(object, "Q");
    if (q.ndim() != 2 || q.shape(0) != crf.points() || q.shape(1) != crf.labels())
      bad_shape("Q", q, "(" + std::to_string(crf.points()) + ", " + std::to_string(crf.labels()) + ")");
    return q;
  }

  FloatArray inference(int64_t iterations) {
    if (iterations < 0 || iterations > INT32_MAX)
      throw std::invalid_argument("iterations: is " + std::to_string(iterations) + ", should be 0 or more");
    FloatArray q = empty_q();
    float* to = q.mutable_data();
    locked([&](Parallel& threads) { crf.inference(static_cast<int>(iterations), to, threads); });
    return q;
  }
  FloatArray start() {
    FloatArray q = empty_q();
    float* to = q.mutable_data();
    locked([&](Parallel& threads) { crf.start(to, threads); });
    return q;
  }
  void step(const py::object& object) {
    FloatArray q = checked_q(object);
    float* to = q.mutable_data();  // throws for a read-only array
    locked([&](Parallel& threads) { crf.step(to, threads); });
  }
  double kl_divergence(const py::object& object) {
    const FloatArray q = checked_q(object);
    return locked([&](Parallel& threads) { return crf.kl_divergence(q.data(), threads); });
  }
  void set_collapse(double epsilon) {
    if (!(epsilon >= 0 && epsilon < 1))
      throw std::invalid_argument("epsilon: is " + std::to_string(epsilon) + ", should be at least 0 and less than 1");
    locked([&](Parallel&) { crf.set_collapse(static_cast<float>(epsilon)); });
  }
};

py::dict build_info() {
  py::dict info;
  info["compiler"] = DEEPLAB_FAST_COMPILER;
  info["version"] = DEEPLAB_FAST_VERSION;
  info["isa"] = instruction_set_name();
  return info;
}

}  // namespace

PYBIND11_MODULE(_densecrf, m) {
  m.doc() = "Compiled dense CRF on numpy arrays; deeplab_fast.pydensecrf is the interface to use.";
  py::class_<PyLattice>(m, "Lattice")
      .def(py::init<const py::object&>(), py::arg("features"))
      .def_property_readonly("points", [](const PyLattice& self) { return self.lattice->points; })
      .def_property_readonly("dimensions", [](const PyLattice& self) { return self.lattice->dimensions; })
      .def_property_readonly("vertex_count", [](const PyLattice& self) { return self.lattice->vertices; })
      .def("filter", &PyLattice::filter, py::arg("values"), py::arg("reverse") = false)
      .def("keys", &PyLattice::keys)
      .def("vertices", &PyLattice::vertices)
      .def("weights", &PyLattice::weights)
      .def("neighbours", &PyLattice::neighbours);
  py::class_<PyDenseCrf>(m, "DenseCRF")
      .def(py::init<int64_t, int64_t, int64_t>(), py::arg("points"), py::arg("labels"), py::arg("width") = 0)
      .def("set_unary", &PyDenseCrf::set_unary, py::arg("unary"))
      .def("add_pairwise", &PyDenseCrf::add_pairwise, py::arg("features"), py::arg("compat"), py::arg("normalization"))
      .def("add_gaussian", &PyDenseCrf::add_gaussian, py::arg("width"), py::arg("height"), py::arg("sx"), py::arg("sy"),
           py::arg("compat"), py::arg("normalization"))
      .def("add_bilateral", &PyDenseCrf::add_bilateral, py::arg("width"), py::arg("height"), py::arg("sx"),
           py::arg("sy"), py::arg("sr"), py::arg("sg"), py::arg("sb"), py::arg("image"), py::arg("compat"),
           py::arg("normalization"))
      .def("inference", &PyDenseCrf::inference, py::arg("iterations"))
      .def("start", &PyDenseCrf::start)
      .def("step", &PyDenseCrf::step, py::arg("Q"))
      .def("kl_divergence", &PyDenseCrf::kl_divergence, py::arg("Q"))
      .def("set_collapse", &PyDenseCrf::set_collapse, py::arg("epsilon"));
  m.def(
      "set_num_threads",
      [](int64_t threads) {
        if (threads < 1)
          throw std::invalid_argument("threads: is " + std::to_string(threads) + ", should be at least 1");
        thread_count = static_cast<int>(std::min<int64_t>(threads, 256));
      },
      py::arg("threads"));
  m.def("release_memory", &release_memory, py::call_guard<py::gil_scoped_release>());
  m.def("set_most_kept", &set_most_kept, py::arg("bytes"));
  m.def("get_num_threads", [] { return thread_count.load(); });
  m.def("isa", [] { return instruction_set_name(); });
  m.def("build_info", &build_info);
}
