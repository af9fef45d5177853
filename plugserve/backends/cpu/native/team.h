// Threads that compute one step together: each runs the same function with its own index, and they meet at barriers.
#pragma once
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace plugserve {

// Waits until an atomic word has another value: spins for some time, then sleeps until it is notified. True if it slept.
bool wait_while(const std::atomic<uint32_t> &word, uint32_t value, int spins);

class Team {
public:
  using Work = std::function<void(int thread)>;

  // The caller of run is thread 0. Threads that take all CPUs that this process may use are pinned to one each.
  explicit Team(int num_threads);
  ~Team();
  Team(const Team &) = delete;
  Team &operator=(const Team &) = delete;

  // Calls work in every thread and returns when all are done. Short work is done by the caller alone while other
  // programs keep the cores busy: threads that wait for one that doesn't run are worse than one thread.
  void run(const Work &work, bool is_short);

  // Called by every thread of a run: returns when all have called it.
  void barrier();

  // The threads of this run.
  int num_active() const { return num_active_; }

  const int num_threads;

private:
  void serve(int thread);
  void choose_active(bool is_short);
  void pin(int thread) const;
  void unpin() const;

  std::atomic<uint32_t> round_{0}, arrived_{0}, phase_{0};
  std::atomic<bool> is_ending_{false};
  const Work *work_ = nullptr;
  std::vector<std::thread> threads_;
  std::vector<int> cpus_; // to pin threads to, if any
  int num_active_ = 0;    // before the first run
  std::atomic<int> num_sleeps_{0}; // at barriers of the last run with all threads
  int runs_alone_ = 0, next_runs_alone_;
};

} // namespace plugserve
