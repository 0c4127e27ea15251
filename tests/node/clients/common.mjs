// What the tests of clients from npm share: where the daemon is, and what they ask it. ../../python/clients/common.py has the same.
//
// Run by tests/tests/node_clients.rs, against a daemon with `smollm2` loaded and an API key. The model is small and its template hides
// tools, so what is asserted is what a grammar makes: calls where they must come, and the form of answers.

import { z } from "zod";

export const ROOT = process.env.MINISGL_ROOT_URL;
export const BASE_URL = `${ROOT}/v1`;
export const KEY = process.env.MINISGL_API_KEY;
export const BAD_KEY = "sk-nobody-knows-this";
export const MODEL = "smollm2";

export const QUESTION = "What is the capital of France?";
export const ANSWER = "The capital of France is Paris.";
export const CHAT = [{ role: "user", content: QUESTION }];
// More than the model's context of 8192 tokens.
export const TOO_LONG = "word ".repeat(9000);
// It would run for minutes.
export const LONG = { max_tokens: 6000, ignore_eos: true };

// A form that is short whatever a model fills in.
export const Capital = z.object({
  city: z.enum(["Paris", "Rome"]),
  inhabitants: z.number().int().min(1000).max(9_999_999).describe("of the city alone"),
  river: z.enum(["Seine", "Tiber"]).nullable(),
});

export const Weather = z.object({ city: z.enum(["Paris", "Ulm"]), days: z.number().int().min(1).max(7) });

async function running() {
  const answer = await fetch(`${ROOT}/metrics`, { headers: { authorization: `Bearer ${KEY}` } });
  const lines = (await answer.text()).split("\n").filter((line) => line.startsWith("sglang:num_running_reqs{"));
  if (lines.length === 0) throw new Error("no sglang:num_running_reqs");
  return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

// Waits until as many requests run, as a whole, or fails.
export async function untilRunning(count) {
  for (let tries = 0; tries < 200; tries++) {
    if ((await running()) === count) return;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`after 10 s ${await running()} requests run, and not ${count}`);
}
