// Threads that compute one step together: each runs the same function with its own index, and they meet at barriers.
#pragma once
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace plugserve {

// Waits on an atomic word: spins for some microseconds, then sleeps until it is notified.
void wait_while(const std::atomic<uint32_t> &word, uint32_t value, int spins);

class Team {
public:
  using Work = std::function<void(int thread)>;

  // The caller of run is thread 0. All are pinned to CPUs that this process may use where there are enough of them.
  explicit Team(int num_threads);
  ~Team();
  Team(const Team &) = delete;
  Team &operator=(const Team &) = delete;

  // Calls work in every thread and returns when all are done.
  void run(const Work &work);

  // Called by every thread of a run: returns when all have called it.
  void barrier();

  const int num_threads;

private:
  void serve(int thread);

  std::atomic<uint32_t> round_{0}, arrived_{0}, phase_{0};
  std::atomic<bool> is_ending_{false};
  const Work *work_ = nullptr;
  std::vector<int> cpus_;
  std::vector<std::thread> threads_;
  bool is_pinned_ = false;
};

} // namespace plugserve
