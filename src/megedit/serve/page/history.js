// History: what was done, revision by revision; going back to one; consolidating.

import { call } from "./api.js";
import { button, byId, confirmed, count, element, fact, say, sayError, thousands } from "./dom.js";
import { outcomeDetails, outcomeWords, verb } from "./conflicts.js";
import { followed, running } from "./jobs.js";

const SHOWN = 50; // revisions, or changes, that are shown at a time
const KINDS = {
  fit: "Fitted", add: "Added", update: "Changed", remove: "Removed",
  undo: "Undone", rollback: "Rolled back", consolidate: "Consolidated",
};
const message = byId("history-message");
let operations = [];

export function start() {
  byId("consolidate").addEventListener("click", consolidate);
  byId("more-log").addEventListener("click", () => draw(byId("log").children.length));
}

export async function show() {
  try {
    operations = (await call("GET", "v1/edits/log")).data;
    if (message.classList.contains("error")) say(message, "");
    byId("log").replaceChildren();
    draw(0);
    const job = byId("consolidate").disabled ? null : await running("consolidate");
    if (job) follow(job);
  } catch (error) {
    sayError(message, error, show);
  }
}

function draw(from) {
  byId("log").append(...operations.slice(from, from + SHOWN).map((operation, i) => entry(operation, from + i === 0)));
  byId("more-log").hidden = byId("log").children.length >= operations.length;
}

function entry(operation, present) {
  const { revision, kind, source } = operation;
  const changes = element("div", { class: "changes" });
  const opener = button("Changes", () => toggle(revision, changes, opener),
    { class: "quiet", "aria-expanded": "false", "aria-label": `Changes of revision ${revision}` });
  const rolls = { class: "quiet changing", "aria-label": `Roll back to revision ${revision}` };
  const back = present
    ? element("span", { class: "tag" }, "in force")
    : button("Roll back to here", () => rollBack(revision), rolls);
  const from = source ? element("span", { class: "source", dir: "auto" }, source) : null;
  return element("li", { data: { revision } },
    element("span", { class: "revision" }, String(revision)),
    element("div", { class: "what" },
      element("p", {}, element("strong", {}, KINDS[kind] ?? kind), from),
      element("p", { class: "muted" }, time(operation.time), result(operation.result))),
    element("div", { class: "actions" }, opener, back),
    changes);
}

// The time, which the server gives as UTC, where the reader is.
function time(text) {
  const datetime = `${text.replace(" ", "T")}Z`, moment = new Date(datetime);
  if (Number.isNaN(moment.valueOf())) return element("span", {}, text);
  return element("time", { datetime }, moment.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }));
}

// What came of an operation: numbers of edits, or the revision that was brought back.
function result(numbers) {
  const words = ([name, value]) => (name === "restored" ? `revision ${value} restored` : `${thousands(value)} ${name}`);
  return Object.entries(numbers ?? {}).filter(([, value]) => value).map((part) => ` · ${words(part)}`).join("");
}

async function toggle(revision, place, opener) {
  const open = opener.getAttribute("aria-expanded") === "true";
  opener.setAttribute("aria-expanded", !open);
  place.replaceChildren();
  if (open) return;
  const said = element("div", { class: "message", role: "status" });
  place.append(said);
  try {
    const { data } = await call("GET", `v1/edits/log/${revision}`);
    say(said, data.length ? "" : "No edit has another status since then.");
    const list = element("ul", { class: "plain" });
    place.append(list);
    fill(list, data, place);
  } catch (error) {
    sayError(said, error, () => { opener.setAttribute("aria-expanded", "false"); toggle(revision, place, opener); });
  }
}

// The next changes of a list, and a button for those behind them.
function fill(list, data, place) {
  const from = list.children.length;
  list.append(...data.slice(from, from + SHOWN).map((change) =>
    element("li", {}, element("span", { class: "verb" }, verb(change)), fact(change.edit.prompt, change.edit.target))));
  const left = data.length - list.children.length;
  if (left <= 0) return;
  const more = button(`Show more (${count(left, "change")})`, () => { more.remove(); fill(list, data, place); });
  place.append(more);
}

async function rollBack(revision) {
  const what = "The edits become those of that revision again. This makes a new revision, which you can undo.";
  if (!(await confirmed(`Roll back to revision ${revision}?`, what, "Roll back"))) return;
  say(message, "Rolling back …");
  try {
    const outcome = await call("POST", "v1/edits/rollback", { revision });
    say(message, outcomeWords(outcome), ...outcomeDetails(outcome));
    await show();
  } catch (error) {
    sayError(message, error);
  }
}

async function consolidate() {
  const what = "Router and generator learn what was added, which takes minutes. The weights of all that is not in force "
    + "are dropped for good, so that older revisions that need them cannot be brought back.";
  if (!(await confirmed("Consolidate?", what, "Consolidate"))) return;
  try {
    await follow(await call("POST", "v1/edits/consolidate", {}));
  } catch (error) {
    sayError(message, error);
  }
}

// Show how far a consolidation is, and what came of it.
async function follow(job) {
  byId("consolidate").disabled = true;
  try {
    const { revision, result: numbers } = await followed(job, message);
    say(message, `Consolidated. This is revision ${revision}${result(numbers)}.`);
    await show();
  } catch (error) {
    sayError(message, error);
  } finally {
    byId("consolidate").disabled = false;
  }
}
