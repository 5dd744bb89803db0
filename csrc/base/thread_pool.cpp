#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace deeplab_fast {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr int kMaxWorkers = 255;
// A mean-field step is many jobs of a few hundred microseconds: spinning this long between them saves the wake-up.
constexpr auto kSpin = microseconds(100);
// Waiting for the others at the end of a job: so long by spinning, of which the first part does not ask the system.
constexpr auto kPatience = microseconds(500), kPausing = microseconds(50);
// Waiting longer than a few tasks take, and than this, is not for work but for the system, which runs something else.
constexpr auto kLate = microseconds(2000);
// So many times the time lost in waiting, jobs are then done alone: what is lost stays below a tenth of the whole.
constexpr int kAlone = 10;
constexpr auto kRetryRefused = std::chrono::seconds(1);

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

// Until done() or the deadline.
template <class Done>
bool spin(Clock::time_point begin, Clock::duration most, Done&& done) {
  for (;;) {
    const auto spent = Clock::now() - begin;
    if (spent >= most) return done();
    for (int i = 0; i < 64; ++i) {
      if ((i & 15) == 0 && done()) return true;
      pause_cpu();
    }
    if (spent >= kPausing) std::this_thread::yield();
  }
}

class Workers {
 public:
  // False if the caller had better work alone: another one is using the workers, there are none, or they are late.
  bool try_run(int threads, int64_t count, Parallel::Task task, void* context) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner) return false;
    if (alone_ && Clock::now() < alone_until_) return false;
    grow(std::min(threads - 1, kMaxWorkers));
    const int helpers = std::min(threads - 1, started_);
    if (helpers == 0) return false;
    if (threads != threads_of_room_) {
      threads_of_room_ = threads;
      room_ = threads <= processors();
    }
    may_spin_.store(room_ && !alone_, std::memory_order_relaxed);

    task_ = task, context_ = context, count_ = count;
    next_.store(0, std::memory_order_relaxed);
    const uint64_t job = (gate_.load() >> kJobShift) + 1;
    gate_.store(job << kJobShift | static_cast<uint64_t>(helpers) << kSeatShift, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
    const auto begin = Clock::now();
    const int64_t own = work();
    // Close the door (no seats), then wait for those inside: a worker that is still waking up is not waited for.
    uint64_t gate = gate_.load();
    while (!gate_.compare_exchange_weak(gate, gate & ~kSeatMask)) {
    }
    alone_ = (gate & kInsideMask) != 0 && wait_for_those_inside(begin, own);
    return true;
  }

 private:
  // gate_: job number | free seats | workers inside.
  static constexpr int kSeatShift = 10, kJobShift = 20;
  static constexpr uint64_t kInsideMask = (1u << kSeatShift) - 1;
  static constexpr uint64_t kSeatMask = ((1u << kJobShift) - 1) & ~kInsideMask;

  int64_t work() {
    int64_t done = 0;
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_; ++done) task_(context_, i);
    return done;
  }

  // As many workers as the system allows; where it refuses one, it is asked again after a while.
  void grow(int workers) {
    if (started_ >= workers || (refused_ && Clock::now() < refused_until_)) return;
    refused_ = false;
    try {
      for (; started_ < workers; ++started_) std::thread([this] { loop(); }).detach();
    } catch (const std::exception&) {  // system_error: no thread to be had; bad_alloc: no memory for one
      refused_ = true, refused_until_ = Clock::now() + kRetryRefused;
    }
  }

  bool empty() const { return (gate_.load(std::memory_order_seq_cst) & kInsideMask) == 0; }

  // The caller, since `begin`, has done `own` tasks. Those inside do a task each, unless the system has put them aside
  // for other processes: then sleeping leaves them this processor, and the next jobs do better without them (true).
  bool wait_for_those_inside(Clock::time_point begin, int64_t own) {
    const auto waiting_since = Clock::now();
    if (!spin(waiting_since, may_spin_.load(std::memory_order_relaxed) ? kPatience : kPausing,
              [&] { return empty(); })) {
      std::unique_lock<std::mutex> lock(leave_);
      waiting_.store(true, std::memory_order_seq_cst);
      left_.wait(lock, [&] { return empty(); });
      waiting_.store(false, std::memory_order_relaxed);
    }
    const auto now = Clock::now();
    const Clock::duration waited = now - waiting_since;
    alone_until_ = now + kAlone * waited;
    return own > 0 && waited > kLate && waited > 4 * (waiting_since - begin) / own;
  }

  bool enter(uint64_t& seen) {
    uint64_t gate = gate_.load(std::memory_order_seq_cst);
    while ((gate >> kJobShift) != seen && (gate & kSeatMask) != 0) {
      const uint64_t inside = gate - (1u << kSeatShift) + 1;
      if (gate_.compare_exchange_weak(gate, inside, std::memory_order_acq_rel)) {
        seen = gate >> kJobShift;
        return true;
      }
    }
    return false;
  }

  void leave() {
    gate_.fetch_sub(1, std::memory_order_seq_cst);
    if (!waiting_.load(std::memory_order_seq_cst)) return;
    std::lock_guard<std::mutex> lock(leave_);
    left_.notify_one();
  }

  void loop() {
    uint64_t seen = 0;
    for (;;) {
      bool entered = false;
      const auto try_enter = [&] { return entered || (entered = enter(seen)); };
      if (!may_spin_.load(std::memory_order_relaxed) || !spin(Clock::now(), kSpin, try_enter)) {
        std::unique_lock<std::mutex> lock(sleep_);
        sleeping_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, try_enter);
        sleeping_.fetch_sub(1, std::memory_order_relaxed);
      }
      work();
      leave();
    }
  }

  // The caller's, under owner_.
  std::mutex owner_;
  int started_ = 0, threads_of_room_ = 0;
  bool room_ = false;  // as many processors as threads
  bool alone_ = false, refused_ = false;
  Clock::time_point alone_until_, refused_until_;
  // The job.
  Parallel::Task task_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<uint64_t> gate_{0};
  std::atomic<bool> may_spin_{false};
  // Workers that sleep until there is a job, and the caller until the last one has left.
  std::atomic<int> sleeping_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<bool> waiting_{false};
  std::mutex leave_;
  std::condition_variable left_;
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
