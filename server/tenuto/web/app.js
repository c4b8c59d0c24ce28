// What is shown: one of the views, for the key that the user has typed.

import { byId } from "./dom.js";
import { ConformanceView } from "./conformance.js";
import { PlaygroundView } from "./playground.js";
import { ask, isAdmin, key, setKey } from "./server.js";
import { StatusView } from "./status.js";
import { UsageView } from "./usage.js";

const views = {
  status: new StatusView(),
  playground: new PlaygroundView(),
  usage: new UsageView(),
  conformance: new ConformanceView(),
};
let current;

const wanted = () => {
  const name = location.hash.slice(1);
  return Object.hasOwn(views, name) ? name : "status";
};

function open(name) {
  if (current) views[current].hide?.();
  current = name;
  for (const other of Object.keys(views)) byId(`view-${other}`).hidden = other !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · Tenuto`;
  views[name].show();
}

async function standing() {
  const refused = await ask("v1/models").then(
    () => false,
    (error) => error.status === 401,
  );
  if (refused) return key() ? "key refused" : "key needed";
  if (!key()) return "";
  return (await isAdmin()) ? "admin key" : "key accepted";
}

async function describeKey() {
  const asked = key();
  byId("forget-key").hidden = !asked;
  byId("use-key").hidden = byId("key").hidden = Boolean(asked);
  const text = await standing();
  if (asked === key()) byId("key-state").textContent = text;
}

function useKey(value) {
  setKey(value);
  byId("key").value = "";
  describeKey();
  open(current);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("forget-key").focus();
});
byId("forget-key").addEventListener("click", () => {
  useKey("");
  byId("key").focus();
});
addEventListener("hashchange", () => {
  open(wanted());
  byId(`view-${current}`).focus();
});
describeKey();
open(wanted());
