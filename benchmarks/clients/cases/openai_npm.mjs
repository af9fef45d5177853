// The openai package for Node: chat, streams, tools, structured output with zod, responses, embeddings, errors.
// Prints one JSON line a case. PLUGSERVE_URL and PLUGSERVE_MODEL as in report.py; run in a folder with node_modules.
import assert from "node:assert/strict";
import OpenAI, { BadRequestError, NotFoundError } from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = process.env.PLUGSERVE_URL ?? "http://127.0.0.1:8000";
const model = process.env.PLUGSERVE_MODEL ?? "HuggingFaceTB/SmolLM2-135M-Instruct";
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0, timeout: 300_000 });
const say = [{ role: "user", content: "What is the capital of France?" }];
const askWeather = [{ role: "user", content: "What is the weather like in Paris today? Use the tool get_weather." }];
const askCity = [{ role: "user", content: "Describe the city of Paris as JSON with its name and country." }];
const City = z.object({ name: z.string(), country: z.string() });
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather of a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const greedy = { model, temperature: 0 };

const cases = {
  async models_list_and_retrieve() {
    const names = [];
    for await (const entry of client.models.list()) names.push(entry.id);
    assert(names.includes(model));
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  async chat_answers() {
    const answer = await client.chat.completions.create({ ...greedy, messages: say, max_tokens: 30 });
    assert.match(answer.choices[0].message.content, /Paris/);
  },
  async chat_stream() {
    const stream = await client.chat.completions.create({
      ...greedy, messages: say, max_tokens: 30, stream: true, stream_options: { include_usage: true },
    });
    let text = "", usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.match(text, /Paris/);
    assert(usage.completion_tokens > 0);
  },
  async chat_stream_helper() {
    const stream = client.chat.completions.stream({ ...greedy, messages: say, max_tokens: 30 });
    assert.match(await stream.finalContent(), /Paris/);
  },
  async tool_choice_required() {
    const answer = await client.chat.completions.create({
      ...greedy, messages: askWeather, tools: [weather], tool_choice: "required", max_tokens: 200,
    });
    const call = answer.choices[0].message.tool_calls[0].function;
    assert.equal(call.name, "get_weather");
    assert("city" in JSON.parse(call.arguments));
  },
  async tools_are_run() {
    const asked = [];
    const runner = client.chat.completions.runTools({
      ...greedy, messages: askWeather, max_tokens: 100,
      tools: [{
        type: "function",
        function: {
          ...weather.function, parse: JSON.parse,
          function: ({ city }) => { asked.push(city); return "sunny, 24 degrees"; },
        },
      }],
    });
    assert.match(await runner.finalContent(), /24/);
    assert.deepEqual(asked, ["Paris"]);
  },
  async zod_object_is_parsed() {
    const answer = await client.chat.completions.parse({
      ...greedy, messages: askCity, response_format: zodResponseFormat(City, "city"), max_tokens: 100,
    });
    assert.equal(typeof answer.choices[0].message.parsed.country, "string");
  },
  async zod_tool_is_parsed() {
    const answer = await client.chat.completions.parse({
      ...greedy, messages: askCity, tools: [zodFunction({ name: "describe_city", parameters: City })],
      tool_choice: { type: "function", function: { name: "describe_city" } }, max_tokens: 200,
    });
    assert.equal(typeof answer.choices[0].message.tool_calls[0].function.parsed_arguments.name, "string");
  },
  async completions() {
    const answer = await client.completions.create({ ...greedy, prompt: ["Once", "Twice"], max_tokens: 3 });
    assert.equal(answer.choices.length, 2);
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model, input: ["a", "b"] });
    assert.equal(answer.data.length, 2);
    assert.equal(typeof answer.data[0].embedding[0], "number");
  },
  async responses() {
    const answer = await client.responses.create({ ...greedy, input: say[0].content, max_output_tokens: 30 });
    assert.match(answer.output_text, /Paris/);
    const next = await client.responses.create({
      ...greedy, input: "And its river?", previous_response_id: answer.id, max_output_tokens: 10,
    });
    assert.equal(next.previous_response_id, answer.id);
  },
  async responses_stream() {
    const stream = client.responses.stream({ ...greedy, input: say[0].content, max_output_tokens: 30 });
    assert.match((await stream.finalResponse()).output_text, /Paris/);
  },
  async responses_tool_and_zod() {
    const called = await client.responses.create({
      ...greedy, input: askWeather[0].content, tool_choice: "required", max_output_tokens: 200,
      tools: [{ type: "function", strict: false, ...weather.function }],
    });
    assert.equal(called.output.find((item) => item.type === "function_call").name, "get_weather");
    const parsed = await client.responses.parse({
      ...greedy, input: askCity[0].content, text: { format: zodTextFormat(City, "city") }, max_output_tokens: 100,
    });
    assert.equal(typeof parsed.output_parsed.country, "string");
  },
  async errors_are_typed() {
    await assert.rejects(client.chat.completions.create({ model: "no-such", messages: say }), NotFoundError);
    await assert.rejects(client.chat.completions.create({ model, messages: say, temperature: 9 }), (error) => {
      return error instanceof BadRequestError && error.param === "temperature";
    });
  },
  async leaving_a_stream_early() {
    const stream = await client.chat.completions.create({ model, messages: say, max_tokens: 500, stream: true });
    for await (const _ of stream) break;
    assert((await client.chat.completions.create({ model, messages: say, max_tokens: 1 })).choices.length);
  },
};

for (const [name, run] of Object.entries(cases)) {
  let status = "passed", detail = "";
  try {
    await run();
  } catch (error) {
    status = "failed";
    detail = `${error.name}: ${error.message}`.replace(/\s+/g, " ").slice(0, 400);
  }
  console.log(JSON.stringify({ case: name, status, detail }));
}
