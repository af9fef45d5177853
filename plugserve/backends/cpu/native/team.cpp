#include "team.h"

#include <algorithm>
#include <chrono>
#include <ctime>

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
constexpr double kMostWaiting = 0.25; // of a run; with more the cores are taken to be busy
constexpr int kFewestRunsAlone = 8, kMostRunsAlone = 128;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of this thread.
double processor_s() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

} // namespace

void wait_while(const std::atomic<uint32_t> &word, uint32_t value, int spins) {
  for (int i = 0; i < spins; i++) {
    if (word.load(std::memory_order_acquire) != value) return;
    relax();
  }
  while (word.load(std::memory_order_acquire) == value) word.wait(value, std::memory_order_acquire);
}

Team::Team(int num_threads) : num_threads(num_threads), next_runs_alone_(kFewestRunsAlone) {
  for (int thread = 1; thread < num_threads; thread++) threads_.emplace_back([this, thread] { serve(thread); });
}

Team::~Team() {
  is_ending_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (auto &thread : threads_) thread.join();
}

void Team::run(const Work &work) {
  choose_active();
  if (num_active_ == 1) return work(0);
  work_ = &work;
  const double started_s = now_s(), started_processor_s = processor_s();
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  work(0);
  barrier();
  run_s_ = now_s() - started_s;
  waited_s_ = run_s_ - (processor_s() - started_processor_s);
}

void Team::choose_active() {
  if (runs_alone_ > 0) {
    runs_alone_--;
  } else if (waited_s_ > kMostWaiting * run_s_) {
    runs_alone_ = next_runs_alone_;
    next_runs_alone_ = std::min(2 * next_runs_alone_, kMostRunsAlone);
  } else {
    next_runs_alone_ = kFewestRunsAlone;
  }
  num_active_ = runs_alone_ > 0 ? 1 : num_threads;
  waited_s_ = 0;
}

void Team::barrier() {
  if (num_active_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(num_threads)) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
  } else {
    wait_while(phase_, phase, kBarrierSpins);
  }
}

void Team::serve(int thread) {
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
