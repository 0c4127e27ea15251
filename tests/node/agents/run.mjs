// One coding agent from npm, headless in an empty folder, against the daemon: `run.mjs AGENT FORM`. A call of its shell, the result, a
// last word, and exit status 0.
//
// Run by tests/tests/agents.rs, against a daemon with `agent` loaded: random weights and 40,960 tokens of context. proxy.mjs says how such
// a model comes to call.
//
// Owns: how each agent is told where the daemon is. Must never: leave anything outside of the folder that it is run in.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";

import { WORD, listen } from "./proxy.mjs";

const KEY = process.env.MINISGL_API_KEY;
const LIMIT_S = Number(process.env.MINISGL_AGENT_LIMIT_S ?? 240);
const PROMPT = "Add one to 271828 with your shell.";
const OUTPUT_MAX = 1 << 20;

const home = join(process.cwd(), "home");
const work = join(process.cwd(), "work");

function write(path, content) {
  mkdirSync(dirname(join(home, path)), { recursive: true });
  writeFileSync(join(home, path), typeof content === "string" ? content : JSON.stringify(content));
}

const AGENTS = {
  "claude-code": (url) => ({
    program: "claude",
    args: ["--print", PROMPT, "--allowedTools", "Bash"],
    env: {
      ANTHROPIC_BASE_URL: url, ANTHROPIC_AUTH_TOKEN: KEY, ANTHROPIC_MODEL: "agent", ANTHROPIC_DEFAULT_HAIKU_MODEL: "agent",
      CLAUDE_CODE_MAX_CONTEXT_TOKENS: "40960", CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1", DISABLE_AUTOUPDATER: "1", DISABLE_TELEMETRY: "1",
    },
  }),
  codex: (url) => {
    write(".codex/config.toml", `
model = "agent"
model_provider = "minisgl"
model_context_window = 40960
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.minisgl]
name = "minisgl"
base_url = "${url}/v1"
env_key = "MINISGL_API_KEY"
wire_api = "responses"
`);
    const args = ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", PROMPT];
    return { program: "codex", args, env: { CODEX_HOME: join(home, ".codex") } };
  },
  opencode: (url, form) => {
    const npm = { chat: "@ai-sdk/openai-compatible", messages: "@ai-sdk/anthropic", responses: "@ai-sdk/openai" }[form];
    const limit = { context: 40960, output: 4096 };
    const provider = { npm, name: "minisgl", options: { baseURL: `${url}/v1`, apiKey: KEY }, models: { agent: { name: "agent", limit } } };
    write(".config/opencode/opencode.json", {
      provider: { minisgl: provider }, model: "minisgl/agent", small_model: "minisgl/agent", autoupdate: false, share: "disabled",
      permission: { bash: "allow" },
    });
    return { program: "opencode", args: ["run", PROMPT], env: { OPENCODE_DISABLE_MODELS_FETCH: "1", OPENCODE_DISABLE_AUTOUPDATE: "1", OPENCODE_DISABLE_LSP_DOWNLOAD: "1" } };
  },
  "qwen-code": (url) => {
    write(".qwen/settings.json", { telemetry: { enabled: false }, privacy: { usageStatisticsEnabled: false }, general: { enableAutoUpdate: false } });
    const env = { OPENAI_BASE_URL: `${url}/v1`, OPENAI_API_KEY: KEY, OPENAI_MODEL: "agent" };
    return { program: "qwen", args: ["--prompt", PROMPT, "--yolo", "--auth-type", "openai"], env };
  },
  pi: (url, form) => {
    const api = { chat: "openai-completions", messages: "anthropic-messages", responses: "openai-responses" }[form];
    const models = [{ id: "agent", contextWindow: 40960, maxTokens: 4096 }];
    // Anthropic's client adds the version to a path by itself.
    const baseUrl = form === "messages" ? url : `${url}/v1`;
    write(".pi/agent/models.json", { providers: { minisgl: { baseUrl, api, apiKey: KEY, models } } });
    return { program: "pi", args: ["--offline", "--provider", "minisgl", "--model", "agent", "--print", PROMPT], env: { PI_OFFLINE: "1" } };
  },
};

const [agent, form] = process.argv.slice(2);
const proxy = await listen(process.env.MINISGL_ROOT_URL);
mkdirSync(home);
mkdirSync(work);
const { program, args, env } = AGENTS[agent](proxy.url, form);
const nowhere = "http://127.0.0.1:9";
const child = spawn(join(import.meta.dirname, "node_modules/.bin", program), args, {
  cwd: work,
  stdio: ["ignore", "pipe", "pipe"],
  detached: true,
  env: {
    HOME: home, TMPDIR: process.cwd(), SHELL: "/bin/sh", TERM: "dumb", LANG: "C.UTF-8", MINISGL_API_KEY: KEY,
    XDG_CONFIG_HOME: join(home, ".config"), XDG_DATA_HOME: join(home, ".local/share"), XDG_CACHE_HOME: join(home, ".cache"), XDG_STATE_HOME: join(home, ".local/state"),
    PATH: [dirname(process.execPath), "/usr/local/bin", "/usr/bin", "/bin"].join(delimiter),
    // Whatever looks beyond this machine finds nothing, at once.
    HTTP_PROXY: nowhere, HTTPS_PROXY: nowhere, NO_PROXY: "127.0.0.1,localhost", ...env,
  },
});
let shown = "", told = "";
child.stdout.on("data", (chunk) => (shown = (shown + chunk).slice(-OUTPUT_MAX)));
child.stderr.on("data", (chunk) => (told = (told + chunk).slice(-OUTPUT_MAX)));
let late = false;
const limit = setTimeout(() => {
  late = true;
  process.kill(-child.pid, "SIGKILL");
}, LIMIT_S * 1000);
const status = await new Promise((done) => child.on("close", (code, signal) => done(code ?? signal)));
clearTimeout(limit);
proxy.close();

const all = `requests ${JSON.stringify(proxy.seen, null, 1)}\nstdout ${shown}\nstderr ${told}`;
if (process.env.MINISGL_AGENT_VERBOSE) console.log(all);
assert.ok(!late, `${agent} has not ended after ${LIMIT_S} s\n${all}`);
assert.equal(status, 0, `${agent} ended with ${status}\n${all}`);
const posts = proxy.seen.filter((one) => one.method === "POST");
const path = { chat: "/v1/chat/completions", messages: "/v1/messages", responses: "/v1/responses" }[form];
// Whatever it asks, it asks there, gets an answer, and never has to ask again.
for (const one of posts) assert.deepEqual([one.path, one.status], [path, 200], all);
assert.deepEqual(posts.map((one) => one.kind).filter((kind) => kind !== "other"), ["call", "result"], all);
assert.ok(posts.find((one) => one.kind === "result").ran, `the result is not the command's\n${all}`);
assert.ok(shown.includes(WORD), `no last word\n${all}`);
for (const one of posts) console.log(`${agent}: ${one.kind}, ${one.bytes} bytes, ${one.seconds?.toFixed(1)} s`);
