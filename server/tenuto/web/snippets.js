// A request as people send it from elsewhere. The key is named there, never written.

import { key } from "./server.js";

const VARIABLE = "TENUTO_API_KEY";
// What the client's methods take by name; the rest goes into its `extra_body`.
const SHARED =
  "model frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream " +
  "stream_options temperature top_p user";
const CLIENT = {
  chat:
    `${SHARED} messages max_completion_tokens metadata parallel_tool_calls reasoning_effort ` +
    "response_format service_tier store tool_choice tools top_logprobs",
  completion: `${SHARED} prompt best_of echo suffix`,
};

const address = (path) => new URL(path, document.baseURI).href;

export function asCurl(path, body) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return [
    `curl -sN ${address(path)}`,
    "-H 'Content-Type: application/json'",
    key() && `-H "Authorization: Bearer $${VARIABLE}"`,
    `-d '${quoted}'`,
  ]
    .filter(Boolean)
    .join(" \\\n  ");
}

export function asPython(endpoint, body) {
  const known = new Set(CLIENT[endpoint].split(" "));
  const named = Object.keys(body).filter((name) => known.has(name));
  const extra = Object.keys(body).filter((name) => !known.has(name));
  const lines = named.map((name) => `    ${name}=${literal(body[name])},`);
  if (extra.length) {
    const pairs = Object.fromEntries(extra.map((name) => [name, body[name]]));
    lines.push(`    extra_body=${literal(pairs)},`);
  }
  const method = endpoint === "chat" ? "client.chat.completions" : "client.completions";
  const secret = key() ? `os.environ["${VARIABLE}"]` : '"unused"';
  return [
    ...(key() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(address("v1"))}, api_key=${secret})`,
    `answer = ${method}.create(`,
    ...lines,
    ")",
    ...shown(endpoint, body.stream),
    "",
  ].join("\n");
}

function shown(endpoint, stream) {
  if (!stream) {
    const text = endpoint === "chat" ? "choice.message.content" : "choice.text";
    return ["for choice in answer.choices:", `    print(${text})`];
  }
  const text = endpoint === "chat" ? "choice.delta.content" : "choice.text";
  return [
    "for chunk in answer:",
    "    for choice in chunk.choices:",
    `        print(${text} or "", end="", flush=True)`,
  ];
}

/** JSON in Python's spelling; its strings are spelled alike. */
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object" || JSON.isRawJSON?.(value)) return JSON.stringify(value);
  const pairs = Object.entries(value).map(
    ([name, item]) => `${JSON.stringify(name)}: ${literal(item)}`,
  );
  return `{${pairs.join(", ")}}`;
}

/** Browsers hide the clipboard from pages without TLS, but for the old command. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
