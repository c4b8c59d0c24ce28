// The way to the server. The key lives in this tab's session, and goes nowhere else.

const KEY = "tenuto.key";

export const key = () => sessionStorage.getItem(KEY) ?? "";

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** The envelope of an answer that is not one. */
export class ApiError extends Error {
  constructor({ message, type, param, code }, response) {
    super(message);
    this.type = type;
    this.param = param;
    this.code = code;
    this.status = response?.status;
    this.requestId = response?.headers.get("x-request-id");
    this.retryAfter = response?.headers.get("retry-after");
  }
}

/** What a fetch or a read failed with; a stop by the user is passed on as it is. */
const broken = (message) => (error) => {
  throw error.name === "AbortError" ? error : new ApiError({ message });
};

async function refused(response) {
  const body = await response.json().catch(() => null);
  return new ApiError(
    body?.error ?? { message: `The server answered ${response.status}.` },
    response,
  );
}

/** The response, when it is a good one. Paths are relative: the server may lie below a prefix. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.authorization = `Bearer ${key()}`;
  const response = await fetch(path, { ...options, headers }).catch(
    broken("The server does not answer."),
  );
  if (!response.ok) throw await refused(response);
  return response;
}

export const getJson = async (path) => (await ask(path)).json();

export const post = (path, body, signal) =>
  ask(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
  });

/** The data of each server-sent event of a response. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read().catch(broken("The connection was lost."));
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length > 0) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

let probed = {};

/** Whether the key is an owner's; asked once for each key, unless nobody answers. */
export async function isAdmin() {
  if (probed.key !== key()) probed = { key: key(), answer: key() && probe() };
  return Boolean(await probed.answer);
}

async function probe() {
  try {
    await ask("admin/models");
    return true;
  } catch (error) {
    if (!error.status) probed = {};
    return false;
  }
}
