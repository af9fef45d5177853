#include "team.h"

#include <algorithm>
#include <pthread.h>
#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
static inline void relax() { _mm_pause(); }
#else
static inline void relax() {}
#endif

namespace plugserve {

namespace {

// A pause takes about 140 cycles on server CPUs, 40 on others: some tens of microseconds.
constexpr int kBarrierSpins = 3000;
constexpr int kRoundSpins = 1000;
constexpr int kManySleeps = 24; // of a short run: with so many, one thread alone is faster
constexpr int kFewestRunsAlone = 4, kMostRunsAlone = 32;

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
#endif
  return cpus;
}

void allow([[maybe_unused]] const int *cpus, [[maybe_unused]] size_t count) { // of this thread
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  for (size_t i = 0; i < count; i++) CPU_SET(cpus[i], &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#endif
}

} // namespace

bool wait_while(const std::atomic<uint32_t> &word, uint32_t value, int spins) {
  for (int i = 0; i < spins; i++) {
    if (word.load(std::memory_order_acquire) != value) return false;
    relax();
  }
  while (word.load(std::memory_order_acquire) == value) word.wait(value, std::memory_order_acquire);
  return true;
}

Team::Team(int num_threads) : num_threads(num_threads), next_runs_alone_(kFewestRunsAlone) {
  const std::vector<int> cpus = allowed_cpus();
  if (num_threads > 1 && static_cast<int>(cpus.size()) == num_threads) cpus_ = cpus;
  for (int thread = 1; thread < num_threads; thread++) threads_.emplace_back([this, thread] { serve(thread); });
}

Team::~Team() {
  is_ending_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (auto &thread : threads_) thread.join();
}

void Team::run(const Work &work, bool is_short) {
  choose_active(is_short);
  if (num_active_ == 1) return work(0);
  work_ = &work;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  work(0);
  barrier();
}

void Team::pin(int thread) const {
  if (!cpus_.empty()) allow(&cpus_[static_cast<size_t>(thread)], 1);
}

void Team::unpin() const {
  if (!cpus_.empty()) allow(cpus_.data(), cpus_.size());
}

void Team::choose_active(bool is_short) {
  int wanted = num_threads;
  if (is_short) { // threads of long work seldom wait for each other
    if (runs_alone_ > 0) {
      runs_alone_--;
    } else if (num_sleeps_.load(std::memory_order_relaxed) >= kManySleeps) {
      runs_alone_ = next_runs_alone_;
      next_runs_alone_ = std::min(2 * next_runs_alone_, kMostRunsAlone);
    } else {
      next_runs_alone_ = kFewestRunsAlone;
    }
    if (runs_alone_ > 0) wanted = 1;
  }
  num_sleeps_.store(0, std::memory_order_relaxed);
  if (wanted == num_active_) return;
  num_active_ = wanted;
  wanted == 1 ? unpin() : pin(0);
}

void Team::barrier() {
  if (num_active_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(num_threads)) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
  } else if (wait_while(phase_, phase, kBarrierSpins)) {
    num_sleeps_.fetch_add(1, std::memory_order_relaxed);
  }
}

void Team::serve(int thread) {
  pin(thread);
  uint32_t round = 0;
  for (;;) {
    wait_while(round_, round, kRoundSpins);
    round++;
    if (is_ending_.load(std::memory_order_relaxed)) return;
    (*work_)(thread);
    barrier();
  }
}

} // namespace plugserve
