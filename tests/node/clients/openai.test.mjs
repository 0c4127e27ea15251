// openai from npm: chats, streams and its helpers for tools, forms and responses; errors, and what a client leaves.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";

import { ANSWER, BAD_KEY, BASE_URL, CHAT, Capital, KEY, LONG, MODEL, QUESTION, TOO_LONG, Weather, untilRunning } from "./common.mjs";

const api = new OpenAI({ baseURL: BASE_URL, apiKey: KEY, maxRetries: 0 });
const stranger = new OpenAI({ baseURL: BASE_URL, apiKey: BAD_KEY, maxRetries: 0 });
const chat = (more = {}) => ({ model: MODEL, messages: CHAT, temperature: 0, max_tokens: 120, ...more });
const respond = (more = {}) => ({ model: MODEL, input: QUESTION, temperature: 0, max_output_tokens: 120, ...more });

const TOOL = zodFunction({ name: "get_weather", parameters: Weather });
const { name, parameters } = TOOL.function;
const FLAT = { type: "function", name, parameters, strict: true };

describe("chat", () => {
  test("is answered, and streamed with usage", async () => {
    const { data, response } = await api.chat.completions.create(chat()).withResponse();
    assert.equal(data.choices[0].message.content, ANSWER);
    assert.equal(data.choices[0].finish_reason, "stop");
    assert.ok(response.headers.get("x-request-id"));
    const stream = await api.chat.completions.create(chat({ stream: true, stream_options: { include_usage: true } }));
    let text = "", usage;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, ANSWER);
    assert.deepEqual(usage.total_tokens, data.usage.total_tokens);
  });

  test("is streamed by the helper", async () => {
    const stream = api.chat.completions.stream(chat());
    let text = "";
    stream.on("content", (delta) => (text += delta));
    const final = await stream.finalChatCompletion();
    assert.deepEqual([text, final.choices[0].message.content], [ANSWER, ANSWER]);
  });

  test("is parsed as a form, whole and streamed", async () => {
    const asked = chat({ response_format: zodResponseFormat(Capital, "capital") });
    const whole = await api.chat.completions.parse(asked);
    Capital.parse(whole.choices[0].message.parsed);
    const streamed = await api.chat.completions.stream(asked).finalChatCompletion();
    assert.deepEqual(streamed.choices[0].message.parsed, whole.choices[0].message.parsed);
    const json = await api.chat.completions.create(chat({ response_format: { type: "json_object" }, max_tokens: 12 }));
    assert.ok(json.choices[0].message.content.startsWith("{"));
    await assert.rejects(api.chat.completions.parse({ ...asked, max_tokens: 3 }), OpenAI.LengthFinishReasonError);
  });

  test("calls what it must, and takes the result", async () => {
    for (const tool_choice of ["required", { type: "function", function: { name } }]) {
      const asked = chat({ tools: [TOOL], tool_choice, parallel_tool_calls: false });
      const whole = await api.chat.completions.parse(asked);
      const [choice] = whole.choices;
      const [call] = choice.message.tool_calls;
      assert.deepEqual([choice.finish_reason, call.type, call.function.name], ["tool_calls", "function", name]);
      Weather.parse(call.function.parsed_arguments);
      const streamed = await api.chat.completions.stream(asked).finalChatCompletion();
      const again = streamed.choices[0].message.tool_calls[0].function;
      assert.deepEqual([again.name, again.arguments], [name, call.function.arguments]);
      const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
      const history = [...CHAT, choice.message, result];
      const after = await api.chat.completions.create(chat({ messages: history, tools: [TOOL], tool_choice: "none", max_tokens: 8 }));
      assert.ok(after.choices[0].message.content);
    }
  });

  test("runs tools by the helper", async () => {
    const asked = [];
    const run = (weather) => (asked.push(weather), "sunny");
    const tool = zodFunction({ name, parameters: Weather, function: run });
    // One call that must come; what follows is an answer in words.
    const runner = api.chat.completions.runTools(
      chat({ tools: [tool], tool_choice: { type: "function", function: { name } }, parallel_tool_calls: false }), { maxChatCompletions: 1 });
    await runner.done();
    assert.equal(asked.length, 1);
    Weather.parse(asked[0]);
    assert.equal(await runner.finalFunctionToolCallResult(), "sunny");
  });

  test("ends when the client leaves", async () => {
    const stream = await api.chat.completions.create(chat({ ...LONG, stream: true }));
    for await (const _ of stream) break;
    stream.controller.abort();
    await untilRunning(0);
    const controller = new AbortController();
    const whole = api.chat.completions.create(chat(LONG), { signal: controller.signal });
    await untilRunning(1);
    controller.abort();
    await assert.rejects(whole, OpenAI.APIUserAbortError);
    await untilRunning(0);
    await assert.rejects(api.chat.completions.create(chat(LONG), { timeout: 300 }), OpenAI.APIConnectionTimeoutError);
    await untilRunning(0);
  });
});

describe("responses", () => {
  test("are created, go on, and are kept", async () => {
    const first = await api.responses.create(respond());
    assert.deepEqual([first.status, first.output_text], ["completed", ANSWER]);
    const second = await api.responses.create(respond({ input: "And of Italy?", previous_response_id: first.id, max_output_tokens: 8 }));
    assert.ok(second.usage.input_tokens > first.usage.input_tokens);
    assert.equal((await api.responses.retrieve(first.id)).output_text, ANSWER);
    await api.responses.delete(first.id);
    await assert.rejects(api.responses.retrieve(first.id), OpenAI.NotFoundError);
  });

  test("are streamed by the helper", async () => {
    const stream = api.responses.stream(respond());
    let text = "", numbers = [];
    for await (const event of stream) {
      numbers.push(event.sequence_number);
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    assert.deepEqual(numbers, numbers.map((_, at) => at));
    assert.deepEqual([text, (await stream.finalResponse()).output_text], [ANSWER, ANSWER]);
  });

  test("are parsed as a form", async () => {
    const asked = respond({ text: { format: zodTextFormat(Capital, "capital") } });
    const whole = await api.responses.parse(asked);
    Capital.parse(whole.output_parsed);
    const streamed = await api.responses.stream(asked).finalResponse();
    assert.deepEqual(streamed.output_parsed, whole.output_parsed);
  });

  test("call what they must, and take the result", async () => {
    for (const tool_choice of ["required", { type: "function", name }]) {
      const asked = respond({ tools: [FLAT], tool_choice, parallel_tool_calls: false });
      const reply = await api.responses.create(asked);
      const [call] = reply.output;
      assert.deepEqual([call.type, call.name, call.status], ["function_call", name, "completed"]);
      Weather.parse(JSON.parse(call.arguments));
      const streamed = await api.responses.stream(asked).finalResponse();
      assert.equal(streamed.output[0].arguments, call.arguments);
      const result = { type: "function_call_output", call_id: call.call_id, output: "sunny" };
      const input = [{ role: "user", content: QUESTION }, call, result];
      const after = await api.responses.create(respond({ input, max_output_tokens: 8 }));
      assert.ok(after.output_text);
    }
  });

  test("end when the client leaves", async () => {
    const stream = await api.responses.create({ ...respond({ stream: true, max_output_tokens: 6000 }), ignore_eos: true });
    for await (const event of stream) if (event.type === "response.output_text.delta") break;
    stream.controller.abort();
    await untilRunning(0);
  });
});

test("errors have their class, code and request", async () => {
  const long = [{ role: "user", content: TOO_LONG }];
  for (const [kind, code, ask] of [
    [OpenAI.NotFoundError, "model_not_found", () => api.chat.completions.create(chat({ model: "nobody" }))],
    [OpenAI.NotFoundError, "model_not_found", () => api.responses.create(respond({ model: "nobody" }))],
    [OpenAI.BadRequestError, "context_length_exceeded", () => api.chat.completions.create(chat({ messages: long }))],
    [OpenAI.BadRequestError, "context_length_exceeded", () => api.chat.completions.create(chat({ messages: long, stream: true }))],
    [OpenAI.BadRequestError, "context_length_exceeded", () => api.responses.create(respond({ input: TOO_LONG, stream: true }))],
    [OpenAI.AuthenticationError, "invalid_api_key", () => stranger.chat.completions.create(chat())],
    [OpenAI.AuthenticationError, "invalid_api_key", () => stranger.models.list()],
  ]) {
    await assert.rejects(ask(), (error) => {
      assert.ok(error instanceof kind, `${error}`);
      assert.equal(error.code, code);
      assert.ok(error.requestID);
      return true;
    });
  }
});

test("models are listed", async () => {
  const models = await api.models.list();
  assert.deepEqual(models.data.map((model) => model.id), [MODEL]);
});
