// One streamed answer of /v1/chat/completions, gathered into a message as it arrives.

import { ask, asError, events } from "./api.js";

/** Fills message (content, reasoning, tool_calls, tokens, usage, timing, finish), and calls changed() after each event.
 *  Raises ApiError, or AbortError when signal stops it. */
export async function streamAnswer(body, message, signal, changed) {
  const sent = performance.now();
  let first = 0;
  let last = 0;
  const response = await ask("/v1/chat/completions", { method: "POST", body, signal });
  try {
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const event = JSON.parse(data);
      if (event.error) throw asError(event, event.error.code ?? 0);
      if (event.usage) message.usage = event.usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      if (add(message, choice)) {
        last = performance.now();
        first ||= last;
      }
      if (choice.finish_reason) message.finish = choice.finish_reason;
      changed();
    }
  } finally {
    message.timing = { first_ms: first ? first - sent : null, generating_ms: last - first, total_ms: performance.now() - sent };
  }
}

/** True if the choice brought something of the answer. */
function add(message, { delta = {}, logprobs }) {
  const reasoning = delta.reasoning_content ?? delta.reasoning;
  if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
  if (delta.content) message.content += delta.content;
  for (const part of delta.tool_calls ?? []) addToolCall(message, part);
  if (logprobs?.content?.length) {
    message.tokens ??= [];
    for (const one of logprobs.content) {
      message.tokens.push([one.token, one.logprob, (one.top_logprobs ?? []).map((other) => [other.token, other.logprob])]);
    }
  }
  return Boolean(reasoning || delta.content || delta.tool_calls?.length);
}

function addToolCall(message, part) {
  message.tool_calls ??= [];
  const call = (message.tool_calls[part.index ?? 0] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
  if (part.id) call.id = part.id;
  if (part.function?.name) call.function.name += part.function.name;
  if (part.function?.arguments) call.function.arguments += part.function.arguments;
}
