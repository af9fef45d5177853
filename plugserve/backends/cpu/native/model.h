// A model's forward pass over one step's tokens, computed by a team of threads.
#pragma once
#include <atomic>
#include <vector>

#include "arena.h"
#include "attention.h"
#include "kernels.h"
#include "team.h"

namespace plugserve {

// Buffers of the rows of a step, or of a thread's own rows.
struct RowBuffers {
  float *x;                // [rows][hidden]: the residual stream
  float *normed;           // [rows][hidden]
  float *q, *k, *v;        // [rows][heads of each][head_dim]
  float *attended;         // [rows][heads][head_dim]
  float *projected;        // [rows][hidden]: what attention or the MLP adds to x
  float *gate, *up;        // [rows][intermediate]
  void *prepared;          // memory of Rows
};

class Model {
public:
  Model(const ps_model_config &config, int level);

  void compute(const ps_step &step);
  // Logits [num][vocabulary] of states [num][hidden] after the final norm.
  void logits(int num, const float *hidden, float *logits);

private:
  friend class ThreadStep;

  RowBuffers make_buffers(int num_rows);

  const ps_model_config config_;
  const std::vector<ps_layer> layers_;
  const std::vector<ps_rope> ropes_;
  const Kernels &kernels_;
  const AttentionKernels &attention_;
  const KvShape kv_shape_;
  Team team_;
  Arena arena_;
  RowBuffers shared_;
  std::vector<RowBuffers> own_;
  std::vector<void *> scratch_;
  void *attention_scratch_;
  std::atomic<int> next_tile_{0};
};

} // namespace plugserve
