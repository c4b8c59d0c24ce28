// A control for each field of a request, made from the schema that the server publishes.

import { button, el } from "./dom.js";

const GROUPS = {
  Sampling:
    "n best_of presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p " +
    "seed stop max_tokens min_tokens detokenize skip_special_tokens",
  "Log-probabilities": "logprobs top_logprobs prompt_logprobs",
  Constraints:
    "response_format structured_outputs guided_json guided_regex guided_choice guided_grammar " +
    "bad_words allowed_token_ids logit_bias",
  "Tools and reasoning": "tools tool_choice parallel_tool_calls reasoning_effort",
};
const OTHERS = "Everything else";
// The playground has its own controls for these.
const ELSEWHERE = new Set(["model", "messages", "prompt", "stream"]);
const WIDEST_SLIDER = 100;

/** What a field may be besides null; fields of any kind have one option without a type. */
const options = (property) => (property.anyOf ?? [property]).filter(({ type }) => type !== "null");

function isChosen(property) {
  const [only, ...others] = options(property);
  return others.length === 0 && (only.type === "boolean" || only.enum);
}

function numberOf(property) {
  const [only, ...others] = options(property);
  return others.length === 0 && ["integer", "number"].includes(only.type) ? only : null;
}

/** `read` gives undefined for a field that is left alone, and throws what is wrong with one. */
function chosen(property) {
  const [only] = options(property);
  const values = only.enum ?? [true, false];
  const input = el(
    "select",
    {},
    el("option", { value: "" }, "default"),
    values.map((value) => el("option", {}, String(value))),
  );
  const read = () => values.find((value) => String(value) === input.value);
  return { input, read };
}

function number(property, fallback) {
  const bounds = numberOf(property);
  const least = bounds.exclusiveMinimum ?? bounds.minimum;
  const step = bounds.type === "integer" ? 1 : "any";
  const input = el("input", {
    type: "number",
    min: least,
    max: bounds.maximum,
    step,
    placeholder: fallback ?? "",
  });
  const read = () => {
    if (input.validity.badInput) throw new Error("This is not a number.");
    if (input.value === "") return undefined;
    const value = Number(input.value);
    if (value <= bounds.exclusiveMinimum) throw new Error(`More than ${least} is needed.`);
    if (!input.validity.valid) throw new Error(input.validationMessage);
    // Integers of 64 bits do not fit into a number of JavaScript's.
    return Number.isInteger(value) && !Number.isSafeInteger(value)
      ? JSON.rawJSON(input.value)
      : value;
  };
  return { input, read, extra: slider(input, bounds, fallback) };
}

/** A second way to set a number, for the pointer alone. */
function slider(input, { type, minimum, exclusiveMinimum, maximum }, fallback) {
  const width = maximum - (minimum ?? exclusiveMinimum);
  if (!(width <= WIDEST_SLIDER)) return null;
  const step = type === "integer" ? 1 : width / 100;
  const least = minimum ?? exclusiveMinimum + step;
  const range = el("input", {
    type: "range",
    min: least,
    max: maximum,
    step,
    tabindex: -1,
    "aria-hidden": "true",
  });
  const follow = () => (range.value = input.value === "" ? (fallback ?? least) : input.value);
  range.addEventListener("input", () => {
    input.value = String(Number(Number(range.value).toFixed(3)));
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  input.addEventListener("input", follow);
  follow();
  return range;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const takesText = (option) => option.type === "string" || !(option.type || option.$ref);

function text(property) {
  const isText = options(property).some(takesText);
  const isJson = options(property).some((option) => option.type !== "string");
  const input = isJson
    ? el("textarea", { rows: 1, spellcheck: "false" })
    : el("input", { type: "text" });
  const read = () => {
    if (input.value === "") return undefined;
    const value = isJson ? parsed(input.value) : undefined;
    if (isText) return value !== null && typeof value === "object" ? value : input.value;
    if (value === undefined) throw new Error("This is not JSON.");
    return value;
  };
  const hint = isJson ? (isText ? "text or JSON" : "JSON") : "text";
  return { input, read, hint };
}

function bounds(property) {
  const { exclusiveMinimum, minimum, maximum } = numberOf(property) ?? {};
  const exact = (value) => Number.isSafeInteger(Math.trunc(value ?? 0));
  if (!exact(minimum) || !exact(maximum)) return "any 64-bit integer";
  if (exclusiveMinimum !== undefined) {
    return maximum === undefined
      ? `above ${exclusiveMinimum}`
      : `above ${exclusiveMinimum}, up to ${maximum}`;
  }
  if (minimum === undefined) return null;
  return maximum === undefined ? `${minimum} or more` : `${minimum} to ${maximum}`;
}

class Control {
  constructor(name, property, fallback) {
    this.name = name;
    const make = isChosen(property) ? chosen : numberOf(property) ? number : text;
    const made = make(property, fallback);
    this.input = made.input;
    this.readInput = made.read;
    this.input.id = `parameter-${name}`;
    this.input.setAttribute("aria-describedby", `${this.input.id}-hint ${this.input.id}-wrong`);
    const known = fallback != null && `default ${fallback}`;
    const hint = [bounds(property) ?? made.hint, known, property.description]
      .filter(Boolean)
      .join(" · ");
    this.wrong = el("span", { id: `${this.input.id}-wrong`, class: "wrong" });
    this.row = el(
      "div",
      { class: made.extra ? "parameter with-slider" : "parameter" },
      el("label", { for: this.input.id }, name),
      made.extra,
      this.input,
      el("span", { id: `${this.input.id}-hint`, class: "hint" }, hint),
      this.wrong,
    );
    this.input.addEventListener("input", () => this.blame(""));
  }

  get isSet() {
    return this.input.value !== "" || this.input.validity.badInput;
  }

  set(value) {
    this.input.value = value;
    this.input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  blame(message) {
    this.wrong.textContent = message;
    if (!message) {
      this.input.removeAttribute("aria-invalid");
      return;
    }
    this.input.setAttribute("aria-invalid", "true");
    this.input.closest("details").open = true;
  }

  /** The value; `onWrong` hears of one that cannot be read. */
  read(onWrong) {
    try {
      return this.readInput();
    } catch (error) {
      onWrong?.(this, error.message);
      return undefined;
    }
  }
}

class Group {
  constructor(title, controls) {
    this.controls = controls;
    this.number = el("span", { class: "muted" });
    this.element = el(
      "details",
      {},
      el("summary", {}, title, " ", this.number),
      controls.map((control) => control.row),
    );
    this.element.addEventListener("input", () => this.#count());
  }

  #count() {
    const set = this.controls.filter((control) => control.isSet).length;
    this.number.textContent = set ? `${set} set` : "";
  }
}

export class Parameters {
  /** `defaults`: of this model, where they differ from the schema's. */
  constructor(host, schema, defaults = {}) {
    const names = Object.keys(schema.properties).filter((name) => !ELSEWHERE.has(name));
    const control = (name) =>
      new Control(name, schema.properties[name], defaults[name] ?? schema.properties[name].default);
    this.controls = new Map(names.map((name) => [name, control(name)]));
    const groups = this.#groups(names);
    groups[0].element.open = matchMedia("(min-width: 761px)").matches;
    const reset = button("Reset", () => this.restore({}));
    host.replaceChildren(
      el("header", {}, el("h3", {}, "Parameters"), reset),
      ...groups.map((group) => group.element),
    );
  }

  #groups(names) {
    const grouped = Object.entries(GROUPS).map(([title, members]) => [title, members.split(" ")]);
    const taken = new Set(grouped.flatMap(([, members]) => members));
    grouped.push([OTHERS, names.filter((name) => !taken.has(name))]);
    return grouped.map(([title, members]) => {
      const controls = members.map((name) => this.controls.get(name)).filter(Boolean);
      return new Group(title, controls);
    });
  }

  /** What the user has set, by name; null when something of it cannot be read. */
  values() {
    const wrong = [];
    const onWrong = (control, message) => {
      control.blame(message);
      wrong.push(control);
    };
    const entries = [...this.controls].map(([name, control]) => [name, control.read(onWrong)]);
    wrong[0]?.input.focus();
    return wrong.length ? null : Object.fromEntries(entries.filter(([, v]) => v !== undefined));
  }

  /** One value, or undefined where it cannot be read: nobody is blamed before he is done. */
  value(name) {
    return this.controls.get(name)?.read();
  }

  inputs() {
    return Object.fromEntries([...this.controls].map(([name, c]) => [name, c.input.value]));
  }

  restore(inputs) {
    for (const [name, control] of this.controls) control.set(inputs[name] ?? "");
  }

  blame(param, message) {
    this.controls.get(param)?.blame(message);
  }
}
