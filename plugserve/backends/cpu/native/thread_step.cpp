#include "thread_step.h"

#include <algorithm>

namespace plugserve {

namespace {
constexpr int kFewTokens = 16;   // up to which each thread does the small work of all rows
constexpr int kManyTokens = 16; // a thread, from which it takes its own rows
constexpr int kHeadTilesAtOnce = 32;
} // namespace

ThreadStep::ThreadStep(Model &model, const ps_step &step, int thread)
    : model_(model), config_(model.config_), kernels_(model.kernels_), step_(step), thread_(thread),
      num_threads_(model.team_.num_active()),
      split_(step.num_tokens <= kFewTokens                     ? Split::kOutputs
             : step.num_tokens >= kManyTokens * num_threads_ ? Split::kRows
                                                               : Split::kBoth),
      attention_step_{step.num_tokens,   step.num_rows,     step.table_stride, step.positions,
                      step.slots,        step.query_starts, step.context_lens, step.block_table},
      groups_(make_groups()) {}

std::vector<ThreadStep::Group> ThreadStep::make_groups() const {
  const RowBuffers &shared = model_.shared_, &own = model_.own_[thread_];
  RowBuffers buffers = shared;
  if (split_ == Split::kBoth) return {{0, step_.num_tokens, shared}};
  if (split_ == Split::kOutputs) {
    buffers.x = own.x;
    buffers.normed = own.normed;
    buffers.prepared = own.prepared;
    return {{0, step_.num_tokens, buffers}};
  }
  std::vector<Group> groups;
  const Range rows = share(step_.num_tokens);
  buffers = own;
  for (int64_t first = rows.first; first < rows.end; first += kRowsAtOnce) {
    buffers.x = shared.x + first * config_.hidden_size;
    buffers.q = shared.q + first * config_.num_heads * config_.head_dim;
    groups.push_back({static_cast<int>(first), std::min(kRowsAtOnce, rows.end - static_cast<int>(first)), buffers});
  }
  return groups;
}

void ThreadStep::run() {
  for (const Group &group : groups_) embed(group);
  for (int i = 0; i < config_.num_layers; i++) {
    const ps_layer &layer = model_.layers_[i];
    const AttentionLayer of = attention_of(layer, i);
    for (const Group &group : groups_) before_attention(layer, of, group);
    model_.team_.barrier();
    model_.attention_.attend(model_.kv_shape_, of, attention_step_, model_.shared_.q, model_.shared_.attended,
                             model_.attention_scratch_, thread_, num_threads_);
    model_.team_.barrier();
    for (const Group &group : groups_) after_attention(layer, of, group);
  }
  head();
}

// ---- how work is shared

ThreadStep::Range ThreadStep::share(int count) const {
  const int64_t threads = num_threads_;
  return {static_cast<int>(count * int64_t{thread_} / threads), static_cast<int>(count * int64_t{thread_ + 1} / threads)};
}

ThreadStep::Range ThreadStep::own_tiles(const ps_matrix &matrix) const {
  return split_ == Split::kRows ? Range{0, matrix.n / kTile} : share(matrix.n / kTile);
}

void ThreadStep::meet() {
  if (split_ != Split::kRows) model_.team_.barrier();
}

void ThreadStep::settle() {
  if (split_ == Split::kBoth) model_.team_.barrier();
}

// ---- layers

void ThreadStep::embed(const Group &group) {
  const int size = config_.hidden_size;
  const Range rows = own_rows(group.count);
  for (int m = rows.first; m < rows.end; m++) {
    float *x = group.buffers.x + static_cast<int64_t>(m) * size;
    kernels_.read_row(config_.embedding, step_.token_ids[group.first + m], x);
    if (config_.embedding_scale != 1.0f)
      for (int i = 0; i < size; i++) x[i] *= config_.embedding_scale;
  }
}

AttentionLayer ThreadStep::attention_of(const ps_layer &layer, int index) const {
  const int64_t layer_bytes = layer_block_bytes(model_.kv_shape_);
  return {config_.num_heads, config_.attention_scale, config_.attention_soft_cap, layer.window,
          static_cast<char *>(config_.kv) + index * layer_bytes, config_.num_layers * layer_bytes};
}

void ThreadStep::before_attention(const ps_layer &layer, const AttentionLayer &of, const Group &group) {
  const int query_size = config_.num_heads * config_.head_dim, kv_size = config_.num_kv_heads * config_.head_dim;
  const Rows rows = prepare_normed(layer.input_norm, group, {&layer.q, &layer.k, &layer.v});
  multiply(layer.q, rows, group.buffers.q, query_size);
  multiply(layer.k, rows, group.buffers.k, kv_size);
  multiply(layer.v, rows, group.buffers.v, kv_size);
  meet();
  rotate(layer, of, group);
}

void ThreadStep::rotate(const ps_layer &layer, const AttentionLayer &of, const Group &group) {
  const int kv_heads = config_.num_kv_heads, shared_by = config_.num_heads / kv_heads, size = config_.head_dim;
  const ps_rope &rope = model_.ropes_[layer.rope];
  const int num_pairs = rope.rotary_dims / 2;
  const int count = group.count * kv_heads;
  const Range items = split_ == Split::kRows ? Range{0, count} : share(count);
  for (int64_t i = items.first; i < items.end; i++) {
    const int64_t token = group.first + i / kv_heads, place = step_.positions[token] * num_pairs;
    const auto finish = [&](float *head, const float *norm) {
      if (norm) kernels_.rms_norm(head, norm, size, config_.norm_eps, head);
      kernels_.rotate(head, rope.cos + place, rope.sin + place, num_pairs);
    };
    for (int64_t j = i * shared_by; j < (i + 1) * shared_by; j++) finish(group.buffers.q + j * size, layer.q_norm);
    float *key = group.buffers.k + i * size;
    finish(key, layer.k_norm);
    write_kv(model_.kv_shape_, of, step_.slots[token], static_cast<int>(i % kv_heads), key, group.buffers.v + i * size);
  }
}

void ThreadStep::after_attention(const ps_layer &layer, const AttentionLayer &of, const Group &group) {
  const int query_size = config_.num_heads * config_.head_dim;
  const float *attended = model_.shared_.attended;
  if (has_split_contexts(model_.kv_shape_, of, attention_step_, num_threads_)) {
    float *merged = split_ == Split::kOutputs ? model_.own_[thread_].attended : model_.shared_.attended;
    const Range rows = own_rows(group.count);
    model_.attention_.merge(model_.kv_shape_, of, attention_step_, merged, model_.attention_scratch_,
                            group.first + rows.first, group.first + rows.end);
    attended = merged;
  }
  const Rows rows = prepare(attended + int64_t{group.first} * query_size, query_size, group, {&layer.o});
  multiply(layer.o, rows, group.buffers.projected, config_.hidden_size);
  meet();
  add_residual(layer.post_attention_norm, group);
  mlp(layer, group);
}

void ThreadStep::mlp(const ps_layer &layer, const Group &group) {
  const int size = config_.intermediate_size;
  const RowBuffers &buffers = group.buffers;
  const Rows rows = prepare_normed(layer.mlp_norm, group, {&layer.gate, &layer.up});
  multiply(layer.gate, rows, buffers.gate, size);
  multiply(layer.up, rows, buffers.up, size);
  const Range tiles = own_tiles(layer.gate); // the outputs that this thread has just computed
  const int first = tiles.first * kTile, count = std::min(tiles.end * kTile, size) - first;
  for (int64_t m = 0; m < group.count && count > 0; m++)
    kernels_.gate(config_.activation, buffers.gate + m * size + first, buffers.up + m * size + first, count);
  meet();
  multiply(layer.down, prepare(buffers.gate, size, group, {&layer.down}), buffers.projected, config_.hidden_size);
  meet();
  add_residual(layer.post_mlp_norm, group);
}

void ThreadStep::add_residual(const float *post_norm, const Group &group) {
  const int size = config_.hidden_size;
  const Range rows = own_rows(group.count);
  for (int64_t m = rows.first; m < rows.end; m++) {
    const float *added = group.buffers.projected + m * size;
    if (post_norm) {
      kernels_.rms_norm(added, post_norm, size, config_.norm_eps, group.buffers.normed + m * size);
      added = group.buffers.normed + m * size;
    }
    kernels_.add(group.buffers.x + m * size, added, size);
  }
}

// ---- matrices

Rows ThreadStep::prepare_normed(const float *norm, const Group &group, std::initializer_list<const ps_matrix *> matrices) {
  const int size = config_.hidden_size;
  const Range rows = own_rows(group.count);
  for (int64_t m = rows.first; m < rows.end; m++)
    kernels_.rms_norm(group.buffers.x + m * size, norm, size, config_.norm_eps, group.buffers.normed + m * size);
  return prepare(group.buffers.normed, size, group, matrices);
}

Rows ThreadStep::prepare(const float *values, int stride, const Group &group,
                         std::initializer_list<const ps_matrix *> matrices) {
  const Rows rows = rows_in(group.buffers.prepared, group.count, (stride + kBlock - 1) / kBlock);
  const Range mine = own_rows(group.count);
  const auto is_half = [](const ps_matrix *matrix) { return matrix->format == PS_BFLOAT16; };
  if (std::any_of(matrices.begin(), matrices.end(), is_half))
    kernels_.halve(values, stride, stride, mine.first, mine.end, rows);
  if (!std::all_of(matrices.begin(), matrices.end(), is_half))
    kernels_.quantize(values, stride, stride, mine.first, mine.end, rows);
  settle();
  return rows;
}

void ThreadStep::multiply(const ps_matrix &matrix, const Rows &rows, float *y, int num_outputs) {
  const Range tiles = own_tiles(matrix);
  kernels_.multiply(matrix, rows, y, num_outputs, tiles.first, tiles.end, num_outputs, model_.scratch_[thread_]);
  const int first = tiles.first * kTile, count = std::min(tiles.end * kTile, num_outputs) - first;
  if (!matrix.bias || count <= 0) return;
  for (int64_t m = 0; m < rows.num_rows; m++) kernels_.add(y + m * num_outputs + first, matrix.bias + first, count);
}

// ---- the head

void ThreadStep::head() {
  if (split_ != Split::kOutputs) model_.team_.barrier(); // wanted rows may be another thread's
  const int64_t size = config_.hidden_size;
  const float *x = split_ == Split::kOutputs ? groups_[0].buffers.x : model_.shared_.x;
  if (step_.hidden) {
    const Range rows = share(step_.num_tokens);
    for (int m = rows.first; m < rows.end; m++)
      kernels_.rms_norm(x + m * size, config_.final_norm, config_.hidden_size, config_.norm_eps, step_.hidden + m * size);
  }
  apply_head(step_.num_wanted, x, step_.wanted, step_.logits);
}

void ThreadStep::apply_head(int num, const float *x, const int64_t *wanted, float *logits) {
  if (num == 0) return;
  const bool is_few = num <= kFewTokens;
  const RowBuffers &buffers = is_few ? model_.own_[thread_] : model_.shared_;
  const Range mine = is_few ? Range{0, num} : share(num);
  const int size = config_.hidden_size;
  if (wanted)
    for (int64_t w = mine.first; w < mine.end; w++)
      kernels_.rms_norm(x + wanted[w] * size, config_.final_norm, size, config_.norm_eps, buffers.normed + w * size);
  const Rows rows = rows_in(buffers.prepared, num, config_.head.k / kBlock);
  const auto form = config_.head.format == PS_BFLOAT16 ? kernels_.halve : kernels_.quantize;
  form(wanted ? buffers.normed : x, size, size, mine.first, mine.end, rows);
  if (!is_few) model_.team_.barrier();
  multiply_head(rows, logits);
}

void ThreadStep::multiply_head(const Rows &rows, float *logits) {
  const int vocab_size = config_.vocab_size, num_tiles = (vocab_size + kTile - 1) / kTile;
  for (;;) { // whoever is free takes the next outputs: the head is the largest matrix
    const int first = model_.next_tile_.fetch_add(kHeadTilesAtOnce, std::memory_order_relaxed);
    if (first >= num_tiles) return;
    const int end = std::min(first + kHeadTilesAtOnce, num_tiles);
    kernels_.multiply(config_.head, rows, logits, vocab_size, first, end, vocab_size, model_.scratch_[thread_]);
    const int output = first * kTile, count = std::min(end * kTile, vocab_size) - output;
    for (int64_t m = 0; m < rows.num_rows; m++) {
      float *here = logits + m * vocab_size + output;
      if (config_.head.bias) kernels_.add(here, config_.head.bias + output, count);
      if (config_.logits_soft_cap > 0.0f) kernels_.cap(here, count, config_.logits_soft_cap);
    }
  }
}

} // namespace plugserve
