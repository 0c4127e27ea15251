// Between an agent and the daemon: what makes a model with random weights take part in an agent's loop.
//
// Agents leave it to the model whether it calls a tool, and such a model never would. So a request that has the agent's shell and no
// tool's result yet is given a `tool_choice` that names the shell, and in its schema the one command that may be run; any other request
// is given a form of one word for its answer. Everything else goes to the daemon as it came, and its answer goes back
// byte for byte: calls and texts, in whatever events, are the daemon's own.
//
// Owns: those few fields. Must never: touch an answer.

import { createServer, request } from "node:http";

// What agents call their shell.
const SHELLS = new Set(["Bash", "bash", "exec_command", "run_shell_command"]);
export const COMMAND = "expr 271828 + 1";
export const RESULT = "271829";
export const WORD = "done";

const BODY_MAX = 4 << 20;
const WORD_FORM = { type: "json_schema", schema: { type: "string", enum: [WORD] } };

const argumentsOf = (tool) => tool.function ?? tool;
const schemaOf = (tool) => argumentsOf(tool).parameters ?? argumentsOf(tool).input_schema;

// The shell's own schema with what it must have, each with one value.
function narrowed(schema) {
  const names = Object.keys(schema.properties).filter((name) => ["command", "cmd"].includes(name) || schema.required?.includes(name));
  const value = (name) => (["command", "cmd"].includes(name) ? COMMAND : schema.properties[name].type === "boolean" ? false : "adds");
  const properties = Object.fromEntries(names.map((name) => [name, { ...schema.properties[name], enum: [value(name)] }]));
  return { type: "object", properties, required: names, additionalProperties: false };
}

function mustCall(path, body, shell) {
  const tool = argumentsOf(shell);
  tool["parameters" in tool ? "parameters" : "input_schema"] = narrowed(schemaOf(shell));
  if (path === "/v1/messages") {
    body.tool_choice = { type: "tool", name: tool.name, disable_parallel_tool_use: true };
  } else {
    body.parallel_tool_calls = false;
    const chat = path === "/v1/chat/completions";
    body.tool_choice = chat ? { type: "function", function: { name: tool.name } } : { type: "function", name: tool.name };
  }
}

function mustSay(path, body) {
  if (path === "/v1/messages") {
    if (body.tools) body.tool_choice = { type: "none" };
    body.output_config = { ...body.output_config, format: WORD_FORM };
  } else {
    if (body.tools?.length) body.tool_choice = "none";
    body.structured_outputs = { choice: [WORD] };
  }
}

const RESULTS = ['"role":"tool"', '"type":"tool_result"', '"type":"function_call_output"'];

function changed(path, body, seen) {
  const shell = body.tools?.find((tool) => SHELLS.has(argumentsOf(tool).name));
  const history = JSON.stringify(body.messages ?? body.input);
  const answered = RESULTS.some((mark) => history.includes(mark));
  seen.kind = answered ? "result" : shell ? "call" : "other";
  seen.ran = answered && history.includes(RESULT);
  if (seen.kind === "call") mustCall(path, body, shell);
  else mustSay(path, body);
  return body;
}

// Listens on a port of its own; `seen` grows by one a request.
export function listen(daemon) {
  const { hostname, port } = new URL(daemon);
  const seen = [];
  const server = createServer((asked, answer) => {
    const chunks = [];
    asked.on("data", (chunk) => chunks.push(chunk));
    asked.on("end", () => {
      let body = Buffer.concat(chunks);
      if (body.length > BODY_MAX) throw new Error(`a request of ${body.length} bytes`);
      const path = asked.url.split("?")[0];
      const one = { method: asked.method, path, bytes: body.length };
      seen.push(one);
      if (asked.method === "POST" && body.length > 0) {
        const json = JSON.parse(body);
        if (json.messages ?? json.input) body = Buffer.from(JSON.stringify(changed(path, json, one)));
      }
      const headers = { ...asked.headers, "content-length": body.length };
      const start = performance.now();
      const forwarded = request({ hostname, port, method: asked.method, path: asked.url, headers }, (reply) => {
        one.status = reply.statusCode;
        if (reply.statusCode >= 400) reply.on("data", (chunk) => (one.told = `${one.told ?? ""}${chunk}`.slice(0, 2000)));
        answer.writeHead(reply.statusCode, reply.headers);
        reply.pipe(answer);
        reply.on("end", () => (one.seconds = (performance.now() - start) / 1000));
      });
      forwarded.on("error", (error) => answer.destroy(error));
      answer.on("close", () => forwarded.destroy());
      forwarded.end(body);
    });
  });
  return new Promise((done) => {
    server.listen(0, "127.0.0.1", () => done({ url: `http://127.0.0.1:${server.address().port}`, seen, close: () => server.closeAllConnections() || server.close() }));
  });
}
