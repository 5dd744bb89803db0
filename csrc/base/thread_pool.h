// Threads of our own, for the numpy door: no torch, no OpenMP runtime to collide with another one in the process.
#pragma once

#include "base/parallel.h"

namespace deeplab_fast {

// The pool all callers share. One job runs on it at a time; a caller that finds it busy (two Python threads at once)
// runs its tasks on its own thread, so nobody waits and nobody oversubscribes the machine. Survives fork().
// Where the system refuses threads, or other processes keep it from running them, callers make do with those there are.
class ThreadPool final : public Parallel {
 public:
  explicit ThreadPool(int threads) : threads_(threads < 1 ? 1 : threads) {}
  void run(int64_t count, Task task, void* context) override;
  int threads() const override { return threads_; }

 private:
  int threads_;
};

}  // namespace deeplab_fast
