// How the compute core runs tasks in parallel, without knowing who owns the threads.
//
// A door (torch, or the numpy module) hands the core a `Parallel`. The core cuts its work into tasks whose number and
// content depend on the problem only, never on the thread count: that is what makes results bitwise equal for any
// number of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

namespace deeplab_fast {

class Parallel {
 public:
  using Task = void (*)(void* context, int64_t index);
  virtual ~Parallel() = default;
  // Runs task(context, i) once for every i in [0, count), in any order, and returns when all are done.
  virtual void run(int64_t count, Task task, void* context) = 0;
  virtual int threads() const = 0;
};

// As Parallel::run for a callable. The first exception of a task is rethrown here, on the calling thread.
template <class Body>
void parallel_for(Parallel& parallel, int64_t count, Body&& body) {
  struct Context {
    Body& body;
    std::mutex mutex;
    std::exception_ptr error;
  } context{body, {}, nullptr};
  parallel.run(
      count,
      [](void* opaque, int64_t index) {
        auto& shared = *static_cast<Context*>(opaque);
        try {
          shared.body(index);
        } catch (...) {
          std::lock_guard<std::mutex> lock(shared.mutex);
          if (!shared.error) shared.error = std::current_exception();
        }
      },
      &context);
  if (context.error) std::rethrow_exception(context.error);
}

// The i-th of `parts` nearly equal ranges of [0, total).
struct Range {
  int64_t begin, end;
};
inline Range part_of(int64_t total, int64_t parts, int64_t i) {
  return {total * i / parts, total * (i + 1) / parts};
}

}  // namespace deeplab_fast
