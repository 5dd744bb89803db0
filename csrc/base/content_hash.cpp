#include "base/content_hash.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace deeplab_fast {
namespace {

constexpr int64_t kPiece = int64_t{1} << 18;  // bytes
constexpr int kLanes = 8;                     // independent sums, so that no multiplication waits for another
constexpr uint64_t kFactor = 0x9e3779b97f4a7c15u, kMix = 0xd6e8feb86659fd93u;

uint64_t step(uint64_t sum, uint64_t word) {
  sum = (sum ^ word) * kFactor;  // one to one in each argument: a single changed word always shows
  return sum ^ (sum >> 32);
}

uint64_t piece_checksum(const unsigned char* data, int64_t bytes) {
  uint64_t sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = kMix * static_cast<uint64_t>(lane + 1);
  int64_t at = 0;
  for (; at + kLanes * 8 <= bytes; at += kLanes * 8) {
    uint64_t words[kLanes];
    std::memcpy(words, data + at, sizeof(words));
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] = step(sums[lane], words[lane]);
  }
  uint64_t result = static_cast<uint64_t>(bytes);
  for (; at < bytes; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data + at, static_cast<size_t>(std::min<int64_t>(8, bytes - at)));
    result = step(result, word);
  }
  for (int lane = 0; lane < kLanes; ++lane) result = step(result, sums[lane]);
  return result;
}

}  // namespace

uint64_t checksum(const void* data, int64_t bytes, Parallel& parallel) {
  const int64_t pieces = (bytes + kPiece - 1) / kPiece;
  std::vector<uint64_t> sums(static_cast<size_t>(pieces));
  parallel_for(parallel, pieces, [&](int64_t i) {
    const int64_t begin = i * kPiece;
    sums[static_cast<size_t>(i)] =
        piece_checksum(static_cast<const unsigned char*>(data) + begin, std::min(kPiece, bytes - begin));
  });
  uint64_t result = kMix;
  for (const uint64_t sum : sums) result = step(result, sum);
  return result;
}

}  // namespace deeplab_fast
