#include "model.h"

#include <algorithm>

#include "thread_step.h"

namespace plugserve {

namespace {

constexpr int kShortStep = 32; // tokens

int64_t most_scratch(const ps_model_config &config) {
  int64_t most = multiply_scratch_bytes(config.head);
  for (int i = 0; i < config.num_layers; i++) {
    const ps_layer &layer = config.layers[i];
    for (const ps_matrix *matrix : {&layer.q, &layer.o, &layer.gate, &layer.down})
      most = std::max(most, multiply_scratch_bytes(*matrix));
  }
  return most;
}

std::vector<ps_rope> ropes_of(const ps_model_config &config) {
  int count = 0;
  for (int i = 0; i < config.num_layers; i++) count = std::max(count, config.layers[i].rope + 1);
  return {config.ropes, config.ropes + count};
}

} // namespace

Model::Model(const ps_model_config &config, int level)
    : config_(config), layers_(config.layers, config.layers + config.num_layers), ropes_(ropes_of(config)),
      kernels_(kernels(level)), attention_(attention_kernels(level)),
      kv_shape_{config.num_kv_heads, config.head_dim, config.block_size},
      team_(config.num_threads) {
  shared_ = make_buffers(config.max_tokens);
  for (int thread = 0; thread < config.num_threads; thread++) {
    own_.push_back(make_buffers(std::min(kRowsAtOnce, (config.max_tokens + kTile - 1) / kTile * kTile)));
    scratch_.push_back(arena_.bytes(most_scratch(config)));
  }
  attention_scratch_ = arena_.bytes(attention_scratch_bytes(kv_shape_, config.max_len, config.num_threads));
}

RowBuffers Model::make_buffers(int num_rows) {
  const int64_t rows = num_rows, hidden = config_.hidden_size, inner = config_.intermediate_size;
  const int64_t query_size = int64_t{config_.num_heads} * config_.head_dim;
  const int64_t kv_size = int64_t{config_.num_kv_heads} * config_.head_dim;
  const auto floats = [&](int64_t size) { return arena_.floats(rows * size); };
  const int largest = static_cast<int>(std::max({hidden, inner, query_size}));
  return {floats(hidden),   floats(hidden),     floats(query_size), floats(kv_size),
          floats(kv_size),  floats(query_size), floats(hidden),     floats(inner),
          floats(inner),    arena_.bytes(rows_bytes(num_rows, (largest + kBlock - 1) / kBlock))};
}

void Model::compute(const ps_step &step) {
  next_tile_.store(0, std::memory_order_relaxed);
  team_.run([&](int thread) { ThreadStep(*this, step, thread).run(); }, step.num_tokens <= kShortStep);
}

void Model::logits(int num, const float *hidden, float *logits) {
  for (int first = 0; first < num; first += config_.max_tokens) {
    ps_step step{};
    step.num_tokens = std::min(num - first, config_.max_tokens);
    next_tile_.store(0, std::memory_order_relaxed);
    team_.run([&](int thread) {
      ThreadStep(*this, step, thread)
          .apply_head(step.num_tokens, hidden + int64_t{first} * config_.hidden_size, nullptr,
                      logits + int64_t{first} * config_.vocab_size);
    }, false);
  }
}

} // namespace plugserve
