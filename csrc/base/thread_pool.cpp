#include "base/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <new>
#include <thread>
#include <vector>

namespace deeplab_fast {
namespace {

constexpr int kMaxWorkers = 255;
// A mean-field step is many jobs of a few hundred microseconds: spinning this long between them saves the wake-up.
constexpr auto kSpin = std::chrono::microseconds(100);

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Workers {
 public:
  // False if another caller is using the workers.
  bool try_run(int threads, int64_t count, Parallel::Task task, void* context) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner) return false;
    grow(std::min(threads - 1, kMaxWorkers));
    task_ = task, context_ = context, count_ = count;
    next_.store(0, std::memory_order_relaxed);
    const uint64_t job = (gate_.load() >> kJobShift) + 1;
    const auto helpers = static_cast<uint64_t>(threads - 1);
    gate_.store(job << kJobShift | helpers << kSeatShift, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
    work();
    // Close the door (no seats), then wait for those inside: a worker that is still waking up is not waited for.
    uint64_t gate = gate_.load();
    while (!gate_.compare_exchange_weak(gate, gate & ~kSeatMask)) {
    }
    // On a busy machine the one inside may have been put aside by the system: then let it have this core.
    for (int spins = 0; (gate_.load(std::memory_order_acquire) & kInsideMask) != 0; ++spins) {
      if (spins < 4096)
        pause_cpu();
      else
        std::this_thread::yield();
    }
    return true;
  }

 private:
  // gate_: job number | free seats | workers inside.
  static constexpr int kSeatShift = 10, kJobShift = 20;
  static constexpr uint64_t kInsideMask = (1u << kSeatShift) - 1;
  static constexpr uint64_t kSeatMask = ((1u << kJobShift) - 1) & ~kInsideMask;

  void work() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) task_(context_, i);
  }

  void grow(int workers) {
    while (started_ < workers) {
      std::thread([this] { loop(); }).detach();
      ++started_;
    }
  }

  bool enter(uint64_t& seen) {
    uint64_t gate = gate_.load(std::memory_order_acquire);
    while ((gate >> kJobShift) != seen && (gate & kSeatMask) != 0) {
      const uint64_t inside = gate - (1u << kSeatShift) + 1;
      if (gate_.compare_exchange_weak(gate, inside, std::memory_order_acq_rel)) {
        seen = gate >> kJobShift;
        return true;
      }
    }
    return false;
  }

  void loop() {
    uint64_t seen = 0;
    for (;;) {
      const auto deadline = std::chrono::steady_clock::now() + kSpin;
      bool entered = enter(seen);
      while (!entered && std::chrono::steady_clock::now() < deadline) {
        for (int i = 0; i < 64; ++i) pause_cpu();
        std::this_thread::yield();
        entered = enter(seen);
      }
      if (!entered) {
        std::unique_lock<std::mutex> lock(sleep_);
        sleeping_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return (entered = enter(seen)); });
        sleeping_.fetch_sub(1, std::memory_order_relaxed);
      }
      work();
      gate_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex owner_;
  int started_ = 0;
  Parallel::Task task_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<uint64_t> gate_{0};
  std::atomic<int> sleeping_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
};

std::atomic<Workers*> shared_workers{nullptr};

// Never destroyed: detached workers may still look at it while the process exits. After fork() the child has none of
// the parent's threads, so it starts over with workers of its own.
Workers& workers() {
  static const bool once = [] {
    shared_workers = new Workers;
    pthread_atfork(nullptr, nullptr, [] { shared_workers = new Workers; });
    return true;
  }();
  static_cast<void>(once);
  return *shared_workers;
}

}  // namespace

void ThreadPool::run(int64_t count, Task task, void* context) {
  if (threads_ > 1 && count > 1 && workers().try_run(threads_, count, task, context)) return;
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

}  // namespace deeplab_fast
