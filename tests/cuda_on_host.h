// Runs CUDA kernels on the host, for tests: a warp's threads are fibers that take turns where they exchange values.
// To be included before the kernels. Warps run one after another; kernels must not share memory between warps.
#pragma once

#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

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
static float exchanged[kWarpSize];
static const std::function<void()>* kernel;

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
  for (Fiber& fiber : warp) fiber.started = fiber.done = false;
  while (!warp[kWarpSize - 1].done) {
    for (current = 0; current < kWarpSize; ++current) {
      threadIdx.x = first + current;
      resume();
      // A thread that leaves while others still exchange would hang them on a GPU.
      if (warp[current].done != warp[0].done) std::fprintf(stderr, "a thread has left its warp\n"), std::abort();
    }
  }
}

// As kernel<<<blocks, threads>>>: `body` is what one thread does.
static void launch(unsigned blocks, unsigned threads, const std::function<void()>& body) {
  warp.resize(kWarpSize);
  kernel = &body;
  gridDim.x = blocks, blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (unsigned first = 0; first < threads; first += kWarpSize) run_warp(first);
}

}  // namespace cuda_on_host

static float __shfl_xor_sync(unsigned mask, float value, int offset) {
  using namespace cuda_on_host;
  if (mask != 0xffffffffu) std::fprintf(stderr, "not all threads exchange\n"), std::abort();
  const unsigned lane = current;
  exchanged[lane] = value;
  yield_lane();  // now all have written
  const float result = exchanged[lane ^ offset];
  yield_lane();  // now all have read
  return result;
}
