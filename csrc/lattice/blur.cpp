// The blur of the lattice, with [1 2 1] / 2 along each axis in turn.
#include <algorithm>
#include <array>

#include "base/denormals.h"
#include "lattice/lattice.h"

namespace deeplab_fast {
namespace {

// Long rows are blurred a few lanes at a time along all axes, so that those lanes of all vertices stay in the cache.
constexpr int kLanesAtOnce = 32;

void fold(const Lattice& lattice, int lanes, float* rows, Parallel& parallel) {
  // Extra rows of one vertex lie side by side; a part begins with a vertex's first one.
  constexpr int64_t kParts = 16;
  const auto part_start = [&](int64_t part) {
    int64_t i = lattice.extra * part / kParts;
    while (i > 0 && i < lattice.extra && lattice.extra_vertex[i] == lattice.extra_vertex[i - 1]) ++i;
    return i;
  };
  parallel_for(parallel, kParts, [&](int64_t part) {
    const FlushDenormals flush;
    row_kernels().fold(lattice.extra_vertex.data(), part_start(part), part_start(part + 1), lattice.vertices, lanes,
                       rows);
  });
}

void blur_chains(const Lattice& lattice, int lanes, float* rows, bool reverse, Parallel& parallel) {
  for (int lane = 0; lane < lanes; lane += kLanesAtOnce) {
    for (int step = 0; step < lattice.corners; ++step) {
      const Chains& chains = lattice.chains(parallel)[reverse ? lattice.corners - 1 - step : step];
      parallel_for(parallel, static_cast<int64_t>(chains.cuts.size()) - 1, [&](int64_t piece) {
        const FlushDenormals flush;
        const int64_t from = chains.cuts[piece], to = chains.cuts[piece + 1];
        row_kernels().blur(chains.order.data() + from, to - from, std::min(lanes - lane, kLanesAtOnce), lanes,
                           rows + lane);
      });
    }
  }
}

// All three blurs of a stretch of lines in one sweep. The results of the first two live in rings of a few lines that
// fit the second-level cache; lines beyond the stretch's ends are computed as far as its own need them.
class BandSweep {
 public:
  BandSweep(const Lattice& lattice, int lanes, int lane, bool reverse, const float* in, float* out)
      : lattice_(lattice),
        lines_(static_cast<int64_t>(lattice.line_start.size()) - 1),
        lanes_(lanes),
        lane_(lane),
        width_(std::min(lanes - lane, kLanesAtOnce)),
        reverse_(reverse),
        in_(in),
        out_(out) {
    int64_t longest = 0;
    for (int64_t line = 0; line < lines_; ++line) longest = std::max(longest, start(line + 1) - start(line));
    line_floats_ = longest * width_;
    for (Buffer<float>& ring : rings_) ring.reset(kRing * line_floats_);
  }

  void run(int64_t begin, int64_t end) {
    const int64_t reach1 = reach(1), reach2 = reach(2);
    for (int64_t line = begin - reach1 - reach2; line < end + reach1 + reach2; ++line) {
      blur_line(0, line, 0, lines_);
      blur_line(1, line - reach1, begin - reach2, end + reach2);
      blur_line(2, line - reach1 - reach2, begin, end);
    }
  }

 private:
  static constexpr int64_t kRing = 8;  // more than twice the reach of an axis, plus one

  int64_t start(int64_t line) const { return lattice_.line_start[line]; }
  int axis(int stage) const { return reverse_ ? 2 - stage : stage; }
  // Lines that one step along the axis leads on: see field_step (vertex_key.h) for field 0.
  int64_t next_line(int stage) const { return axis(stage) == 2 ? 2 : -1; }
  int64_t reach(int stage) const { return axis(stage) == 2 ? 2 : 1; }

  float* ring_base(int ring, int64_t line) {
    return rings_[ring].data() + (line & (kRing - 1)) * line_floats_ - start(line) * width_;
  }
  const float* in_base(int stage, int64_t line) {
    if (line < 0 || line >= lines_) return nullptr;  // no vertex has a neighbour there
    return stage == 0 ? in_ + lane_ : ring_base(stage - 1, line);
  }

  void blur_line(int stage, int64_t line, int64_t from, int64_t to) {
    if (line < std::max<int64_t>(from, 0) || line >= std::min(to, lines_)) return;
    BlurRow row{};
    row.begin = start(line), row.end = start(line + 1);
    row.previous = lattice_.previous(axis(stage)), row.next = lattice_.next(axis(stage)), row.none = lattice_.none();
    row.centre_base = in_base(stage, line);
    row.previous_base = in_base(stage, line - next_line(stage));
    row.next_base = in_base(stage, line + next_line(stage));
    row.in_stride = stage == 0 ? lanes_ : width_;
    row.out_base = stage == 2 ? out_ + lane_ : ring_base(stage, line);
    row.out_stride = stage == 2 ? lanes_ : width_;
    row.lanes = width_;
    row_kernels().blur_row(row);
  }

  const Lattice& lattice_;
  const int64_t lines_;
  const int lanes_, lane_, width_;
  const bool reverse_;
  const float* in_;
  float* out_;
  int64_t line_floats_;
  std::array<Buffer<float>, 2> rings_;
};

void blur_bands(const Lattice& lattice, int lanes, const float* in, float* out, bool reverse, Parallel& parallel) {
  constexpr int64_t kLines = 64, kMostBands = 64;
  const int64_t lines = static_cast<int64_t>(lattice.line_start.size()) - 1;
  const int64_t bands = std::min(std::max<int64_t>(lines / kLines, 1), kMostBands);
  parallel_for(parallel, bands, [&](int64_t band) {
    const FlushDenormals flush;
    const Range range = part_of(lines, bands, band);
    for (int lane = 0; lane < lanes; lane += kLanesAtOnce)
      BandSweep(lattice, lanes, lane, reverse, in, out).run(range.begin, range.end);
  });
}

// Single values, from one buffer to the other.
void blur_values(const Lattice& lattice, Buffer<float>& rows, Buffer<float>& spare, bool reverse, Parallel& parallel) {
  constexpr int64_t kParts = 16;
  rows[lattice.none()] = spare[lattice.none()] = 0;
  for (int step = 0; step < lattice.corners; ++step) {
    const int axis = reverse ? lattice.corners - 1 - step : step;
    parallel_for(parallel, kParts, [&](int64_t part) {
      const FlushDenormals flush;
      const Range range = part_of(lattice.vertices, kParts, part);
      row_kernels().blur_values(lattice.previous(axis), lattice.next(axis), range.begin, range.end, rows.data(),
                                spare.data());
    });
    std::swap(rows, spare);
  }
}

}  // namespace

void clear_rows(const Lattice& lattice, int lanes, float* rows) {
  if (lanes == 1) std::fill_n(rows, lattice.rows(), 0.0f);
  for (int32_t row : lattice.empty_rows) std::fill_n(rows + int64_t{row} * lanes, lanes, 0.0f);
}

void fold_and_blur(const Lattice& lattice, int lanes, Buffer<float>& rows, Buffer<float>& spare, bool reverse,
                   Parallel& parallel) {
  fold(lattice, lanes, rows.data(), parallel);
  if (lanes > 1 && lattice.dimensions != 2) return blur_chains(lattice, lanes, rows.data(), reverse, parallel);
  if (spare.size() < rows.size()) spare.reset(rows.size());
  if (lanes == 1) return blur_values(lattice, rows, spare, reverse, parallel);
  blur_bands(lattice, lanes, rows.data(), spare.data(), reverse, parallel);
  std::swap(rows, spare);
}

}  // namespace deeplab_fast
