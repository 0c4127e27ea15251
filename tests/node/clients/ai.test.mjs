// Vercel's ai with its providers of chats, responses and messages: texts, streams, tools, objects, errors, and what a client leaves.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, stepCountIs, streamText, tool } from "ai";

import { ANSWER, BAD_KEY, BASE_URL, Capital, KEY, LONG, MODEL, QUESTION, TOO_LONG, Weather, untilRunning } from "./common.mjs";

// `more` are a provider's settings.
const PROVIDERS = {
  chat: (apiKey, model = MODEL, more = {}) =>
    createOpenAICompatible({ name: "minisgl", baseURL: BASE_URL, apiKey, includeUsage: true, supportsStructuredOutputs: true, ...more })(model),
  "chat by openai": (apiKey, model = MODEL, more = {}) => createOpenAI({ baseURL: BASE_URL, apiKey, ...more }).chat(model),
  responses: (apiKey, model = MODEL, more = {}) => createOpenAI({ baseURL: BASE_URL, apiKey, ...more }).responses(model),
  messages: (apiKey, model = MODEL, more = {}) => createAnthropic({ baseURL: BASE_URL, apiKey, ...more })(model),
};

// The helpers have no name for what keeps a model from ending by itself.
const endless = (url, init) => fetch(url, { ...init, body: JSON.stringify({ ...JSON.parse(init.body), ignore_eos: true }) });

const asked = (model, more = {}) => ({ model, prompt: QUESTION, temperature: 0, maxOutputTokens: 120, maxRetries: 0, ...more });
// The small model would call for ever.
const providerOptions = {
  minisgl: { parallel_tool_calls: false },
  openai: { parallelToolCalls: false },
  anthropic: { disableParallelToolUse: true },
};
const weather = tool({ description: "The weather of a city.", inputSchema: Weather, execute: async () => "sunny" });

for (const [form, provider] of Object.entries(PROVIDERS)) {
  describe(form, () => {
    test("is answered and streamed", async () => {
      const whole = await generateText(asked(provider(KEY)));
      assert.deepEqual([whole.text, whole.finishReason], [ANSWER, "stop"]);
      assert.equal(whole.usage.outputTokens, 8);
      const stream = streamText(asked(provider(KEY)));
      let text = "";
      for await (const delta of stream.textStream) text += delta;
      assert.deepEqual([text, await stream.finishReason, (await stream.usage).outputTokens], [ANSWER, "stop", 8]);
    });

    test("calls what it must, and goes on with the result", async () => {
      for (const toolChoice of ["required", { type: "tool", toolName: "weather" }]) {
        // The call must come in the first step; what follows is words.
        const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? toolChoice : "none" });
        const tools = { weather };
        const steps = { tools, prepareStep, providerOptions, stopWhen: stepCountIs(2), maxOutputTokens: 80 };
        const whole = await generateText(asked(provider(KEY), steps));
        assert.equal(whole.steps.length, 2, JSON.stringify(whole.steps.map((step) => step.content)));
        const [first, second] = whole.steps;
        assert.equal(first.finishReason, "tool-calls");
        Weather.parse(first.toolCalls[0].input);
        assert.equal(first.toolResults[0].output, "sunny");
        assert.ok(second.text);
        const stream = streamText(asked(provider(KEY), steps));
        const [called, said] = await stream.steps;
        assert.deepEqual(called.toolCalls.map((call) => call.input), first.toolCalls.map((call) => call.input));
        assert.equal(said.text, second.text);
      }
    });

    test("fills a form", async () => {
      const output = Output.object({ schema: Capital });
      const whole = await generateText(asked(provider(KEY), { output }));
      Capital.parse(whole.output);
      const stream = streamText(asked(provider(KEY), { output }));
      assert.deepEqual(await stream.output, whole.output);
    });

    test("has its errors told", async () => {
      for (const [status, words, ask] of [
        [404, "nobody", () => generateText(asked(provider(KEY, "nobody")))],
        [400, "prompt is too long", () => generateText(asked(provider(KEY), { prompt: TOO_LONG }))],
        [401, "key", () => generateText(asked(provider(BAD_KEY)))],
      ]) {
        await assert.rejects(ask(), (error) => {
          assert.ok(APICallError.isInstance(error), `${error}`);
          assert.equal(error.statusCode, status);
          assert.ok(error.message.includes(words), error.message);
          return true;
        });
      }
    });

    test("ends when the client leaves", async () => {
      const controller = new AbortController();
      const model = provider(KEY, MODEL, { fetch: endless });
      const stream = streamText(asked(model, { maxOutputTokens: LONG.max_tokens, abortSignal: controller.signal }));
      for await (const _ of stream.textStream) controller.abort();
      await untilRunning(0);
    });
  });
}
