// Runs CUDA kernels on the host, for tests: a warp's threads are fibers that take turns where they exchange values.
// To be included before the kernels. Warps run one after another, in random order; kernels must not share memory
// between warps but through atomics. Threads take turns in random order, too.
#pragma once

#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#ifdef COUNTING
#include "counting.h"
#else
namespace counting {
inline unsigned lane;
inline void begin_warp() {}
}  // namespace counting
#endif

struct Index {
  unsigned x = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {

constexpr unsigned kWarpSize = 32, kStack = 1 << 16;

// Switching by setjmp and longjmp costs no system call; a context is only needed to start on a stack of its own.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started = false, done = false;
};

static jmp_buf scheduler;
static std::vector<Fiber> warp;
static unsigned current;
static inline float exchanged[kWarpSize];
static const std::function<void()>* kernel;
static std::mt19937 random_order(0);

static void yield_lane() {
  if (_setjmp(warp[current].place) == 0) _longjmp(scheduler, 1);
}

static void run_lane() {
  (*kernel)();
  warp[current].done = true;
  _longjmp(scheduler, 1);
}

// Goes on with the current lane until it yields or is done.
static void resume() {
  Fiber& fiber = warp[current];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_lane, 0);
  setcontext(&fiber.context);
}

static void run_warp(unsigned first) {
  counting::begin_warp();
  for (Fiber& fiber : warp) fiber.started = fiber.done = false;
  unsigned order[kWarpSize];
  std::iota(order, order + kWarpSize, 0u);
  while (!warp[0].done) {
    std::shuffle(order, order + kWarpSize, random_order);
    for (unsigned lane : order) {
      current = counting::lane = lane;
      threadIdx.x = first + lane;
      resume();
      // A thread that leaves while others still exchange would hang them on a GPU.
      if (warp[lane].done != warp[order[0]].done) std::fprintf(stderr, "a thread has left its warp\n"), std::abort();
    }
  }
}

// As kernel<<<blocks, threads>>>: `body` is what one thread does.
static void launch(unsigned blocks, unsigned threads, const std::function<void()>& body) {
  warp.resize(kWarpSize);
  kernel = &body;
  gridDim.x = blocks, blockDim.x = threads;
  std::vector<unsigned> warps(blocks * (threads / kWarpSize));
  std::iota(warps.begin(), warps.end(), 0u);
  std::shuffle(warps.begin(), warps.end(), random_order);
  for (unsigned one : warps) {
    blockIdx.x = one / (threads / kWarpSize);
    run_warp(one % (threads / kWarpSize) * kWarpSize);
  }
}

}  // namespace cuda_on_host

// What lane `from` of the warp has for `value`.
static inline float exchange(unsigned mask, float value, unsigned from) {
  using namespace cuda_on_host;
  if (mask != 0xffffffffu) std::fprintf(stderr, "not all threads exchange\n"), std::abort();
  exchanged[current] = value;
  yield_lane();  // now all have written
  const float result = exchanged[from];
  yield_lane();  // now all have read
  return result;
}
inline float __shfl_xor_sync(unsigned mask, float value, int offset) {
  return exchange(mask, value, cuda_on_host::current ^ static_cast<unsigned>(offset));
}
inline float __shfl_sync(unsigned mask, float value, int lane, int width) {
  const unsigned current = cuda_on_host::current, group = static_cast<unsigned>(width);
  return exchange(mask, value, current / group * group + static_cast<unsigned>(lane) % group);
}

// Threads do not run at the same time.
template <class Value>
static Value atomicCAS(Value* at, Value compare, Value value) {
  const Value old = *at;
  if (old == compare) *at = value;
  return old;
}
template <class Value>
static Value atomicMin(Value* at, Value value) {
  const Value old = *at;
  if (value < old) *at = value;
  return old;
}
template <class Value>
static Value atomicOr(Value* at, Value value) {
  const Value old = *at;
  *at = old | value;
  return old;
}
