#include "native.h"

#include <cstdio>
#include <exception>
#include <string>

#include "cpu_features.h"
#include "model.h"

using plugserve::Model;

struct ps_model {
  Model model;
  int32_t vocab_size, max_tokens, max_rows;
};

namespace {

std::string fault_of(const ps_matrix &matrix, int n, int k) {
  const auto padded = [](int size, int to) { return (size + to - 1) / to * to; };
  if (matrix.n != padded(n, plugserve::kTile) || matrix.k != padded(k, plugserve::kBlock))
    return "a matrix is " + std::to_string(matrix.n) + " x " + std::to_string(matrix.k) + ", not " + std::to_string(n) +
           " x " + std::to_string(k) + " with padding";
  if (matrix.format != PS_BFLOAT16 && matrix.format != PS_CODES8 && matrix.format != PS_CODES4)
    return "a matrix has the unknown format " + std::to_string(matrix.format);
  if (matrix.format != PS_BFLOAT16 && matrix.group != 16 && matrix.group != 32)
    return "a matrix has groups of " + std::to_string(matrix.group) + " inputs; 16 and 32 are supported";
  return "";
}

std::string fault_of(const ps_model_config &config) {
  const int hidden = config.hidden_size, query = config.num_heads * config.head_dim;
  const int kv = config.num_kv_heads * config.head_dim, inner = config.intermediate_size;
  std::string fault = fault_of(config.embedding, config.vocab_size, hidden);
  if (fault.empty()) fault = fault_of(config.head, config.vocab_size, hidden);
  for (int i = 0; i < config.num_layers && fault.empty(); i++) {
    const ps_layer &layer = config.layers[i];
    const struct {
      const ps_matrix &matrix;
      int n, k;
    } all[] = {{layer.q, query, hidden},    {layer.k, kv, hidden},    {layer.v, kv, hidden},  {layer.o, hidden, query},
               {layer.gate, inner, hidden}, {layer.up, inner, hidden}, {layer.down, hidden, inner}};
    for (const auto &one : all)
      if (fault.empty()) fault = fault_of(one.matrix, one.n, one.k);
  }
  if (fault.empty() && (config.block_size < 16 || config.block_size % 16 != 0))
    fault = "a KV block has " + std::to_string(config.block_size) + " tokens, not a multiple of 16";
  if (fault.empty() && (config.head_dim % 16 != 0 || config.head_dim > 256 || config.num_heads % config.num_kv_heads != 0))
    fault = "heads of " + std::to_string(config.head_dim) + " are not a multiple of 16 up to 256, or don't share keys evenly";
  if (fault.empty() && config.num_threads < 1) fault = "a model needs a thread";
  return fault;
}

} // namespace

int32_t ps_version(void) { return PS_VERSION; }

const char *ps_levels(void) {
  static const char *const names[] = {"", "avx2", "avx512 avx2", "amx avx512 avx2"};
  return names[plugserve::best_level()];
}

int64_t ps_kv_bytes_per_block(const ps_model_config *config) {
  return config->num_layers *
         plugserve::layer_block_bytes({config->num_kv_heads, config->head_dim, config->block_size});
}

ps_model *ps_create(const ps_model_config *config, char *error, int32_t error_size) {
  std::string fault = fault_of(*config);
  const int best = plugserve::best_level(), level = config->level < 0 ? best : config->level;
  if (level > best) fault = "this CPU has no level " + std::to_string(level);
  if (fault.empty()) try {
      return new ps_model{Model(*config, level), config->vocab_size, config->max_tokens, config->max_rows};
    } catch (const std::exception &exception) {
      fault = exception.what();
    }
  std::snprintf(error, static_cast<size_t>(error_size), "%s", fault.c_str());
  return nullptr;
}

int32_t ps_compute(ps_model *model, const ps_step *step) {
  if (step->num_tokens < 1 || step->num_tokens > model->max_tokens || step->num_rows > model->max_rows) return 1;
  for (int i = 0; i < step->num_tokens; i++)
    if (step->token_ids[i] < 0 || step->token_ids[i] >= model->vocab_size) return 2;
  model->model.compute(*step);
  return 0;
}

void ps_logits(ps_model *model, int32_t num, const float *hidden, float *logits) {
  model->model.logits(num, hidden, logits);
}

void ps_destroy(ps_model *model) { delete model; }
