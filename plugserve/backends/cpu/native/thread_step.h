// A step's forward pass as one thread of the team sees it.
#pragma once
#include <initializer_list>
#include <vector>

#include "model.h"

namespace plugserve {

constexpr int kRowsAtOnce = 64; // rows that a thread takes through a layer while they stay in its cache

class ThreadStep {
public:
  ThreadStep(Model &model, const ps_step &step, int thread);

  void run();

  // The head alone: logits [num][vocabulary] of the rows of x [..][hidden] that are wanted, or, with wanted NULL, of
  // all num rows, which are after the final norm.
  void apply_head(int num, const float *x, const int64_t *wanted, float *logits);

private:
  // How threads share the work between attention and attention.
  enum class Split {
    kOutputs, // matrices' outputs; the small work of all rows is done in every thread, on its own copy of x
    kBoth,    // matrices' outputs, and the rows' small work
    kRows,    // rows: a thread takes its own through all of a layer
  };
  struct Range {
    int first, end;
  };
  // Some of the step's tokens, and buffers whose first row is that of the first.
  struct Group {
    int first, count;
    RowBuffers buffers;
  };

  Range share(int count) const; // of this thread
  Range own_rows(int count) const { return split_ == Split::kBoth ? share(count) : Range{0, count}; }
  Range own_tiles(const ps_matrix &matrix) const;
  void meet();   // after a matrix, whose outputs may be other threads'
  void settle(); // after the rows' small work, which may be other threads'
  std::vector<Group> make_groups() const;

  void embed(const Group &group);
  void before_attention(const ps_layer &layer, const AttentionLayer &of, const Group &group);
  void after_attention(const ps_layer &layer, const AttentionLayer &of, const Group &group);
  // Norms and turns queries and keys, and writes keys and values into the cache.
  void rotate(const ps_layer &layer, const AttentionLayer &of, const Group &group);
  void mlp(const ps_layer &layer, const Group &group);
  void head();

  // Values [count][stride] in the forms that the matrices multiply; their inputs are of one size.
  Rows prepare(const float *values, int stride, const Group &group, std::initializer_list<const ps_matrix *> matrices);
  Rows prepare_normed(const float *norm, const Group &group, std::initializer_list<const ps_matrix *> matrices);
  void multiply(const ps_matrix &matrix, const Rows &rows, float *y, int num_outputs);
  void multiply_head(const Rows &rows, float *logits);
  void add_residual(const float *post_norm, const Group &group);
  AttentionLayer attention_of(const ps_layer &layer, int index) const;

  Model &model_;
  const ps_model_config &config_;
  const Kernels &kernels_;
  const ps_step &step_;
  const int thread_, num_threads_;
  const Split split_;
  const AttentionStep attention_step_;
  const std::vector<Group> groups_;
};

} // namespace plugserve
