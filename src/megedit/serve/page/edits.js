// Edits: searched, filtered, a page at a time; added, changed, removed, and the last change undone.

import { call } from "./api.js";
import { button, byId, confirmed, element, otherTexts, say, sayError, thousands } from "./dom.js";
import { outcomeDetails, outcomeWords } from "./conflicts.js";
import * as form from "./edit_form.js";
import { session } from "./session.js";

const PAGE = 50;
const PAUSE = 200; // milliseconds after the last key before a search begins
const STATUS = { active: "Active", failed: "Failed", removed: "Removed" };

// starts: the number before each page up to the present one, as the server gave it
const shown = { starts: [null], next: null, rows: 0, counts: {} };
let asking = null; // the AbortController of the page that is being read
let timer = 0;

const message = byId("edits-message"), search = byId("search"), filter = byId("status");

export function start() {
  form.start();
  byId("filters").addEventListener("submit", (event) => { event.preventDefault(); first(); });
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(first, PAUSE); });
  filter.addEventListener("change", first);
  byId("next").addEventListener("click", () => turnTo([...shown.starts, shown.next]));
  byId("previous").addEventListener("click", () => turnTo(shown.starts.slice(0, -1)));
  byId("add").addEventListener("click", () => form.open(null, changed));
  byId("undo").addEventListener("click", undo);
}

export const show = () => read();

function first() {
  clearTimeout(timer);
  shown.starts = [null];
  read();
}

async function turnTo(starts) {
  shown.starts = starts;
  await read();
  byId("title-edits").scrollIntoView({ block: "nearest" });
}

// Read the present page and show it.
async function read() {
  asking?.abort();
  const control = (asking = new AbortController());
  const asked = new URLSearchParams({ limit: PAGE });
  if (search.value.trim()) asked.set("search", search.value.trim());
  if (filter.value) asked.set("status", filter.value);
  if (shown.starts.at(-1) !== null) asked.set("after", shown.starts.at(-1));
  byId("edits-table").setAttribute("aria-busy", "true");
  try {
    draw(await call("GET", `v1/edits?${asked}`, undefined, control.signal));
  } catch (error) {
    sayError(message, error, read);
  } finally {
    if (asking === control) byId("edits-table").removeAttribute("aria-busy");
  }
}

function draw(page) {
  if (!page.data.length && shown.starts.length > 1) return turnTo(shown.starts.slice(0, -1)); // all of a page are gone
  if (message.classList.contains("error")) say(message, "");
  byId("edits-rows").replaceChildren(...page.data.map(row));
  Object.assign(shown, { next: page.next, rows: page.data.length, counts: page.counts ?? {} });
  for (const option of filter.options)
    option.textContent = `${STATUS[option.value] ?? "All"} (${thousands(total(option.value))})`;
  byId("edits-table").hidden = !page.data.length;
  byId("edits-empty").hidden = page.data.length > 0;
  byId("edits-empty").textContent = search.value || filter.value ? "No such edit." : "The adapter has no edits yet.";
  byId("previous").disabled = shown.starts.length < 2;
  byId("next").disabled = !page.has_more;
  byId("edits-range").textContent = range();
}

// The number of edits with a status, or of all.
function total(status) {
  if (status) return shown.counts[status] ?? 0;
  return Object.values(shown.counts).reduce((sum, number) => sum + number, 0);
}

function range() {
  if (!shown.rows) return "";
  const before = (shown.starts.length - 1) * PAGE;
  const of = search.value.trim() ? "" : ` of ${thousands(total(filter.value))}`;
  return `${thousands(before + 1)} to ${thousands(before + shown.rows)}${of}`;
}

function row(edit) {
  const actions = edit.status === "removed" ? [] : [
    button("Change", () => form.open(edit, changed), { class: "quiet", "aria-label": `Change ${edit.prompt}` }),
    button("Remove", () => remove(edit), { class: "quiet", "aria-label": `Remove ${edit.prompt}` }),
  ];
  const status = element("span", { class: `status ${edit.status}` }, STATUS[edit.status] ?? edit.status);
  return element("tr", { data: { id: edit.id } },
    element("td", { data: { label: "Prompt" } }, element("p", { dir: "auto" }, edit.prompt), otherTexts(edit)),
    element("td", { data: { label: "Target" } }, element("strong", { dir: "auto" }, edit.target)),
    element("td", { data: { label: "Status" } }, status),
    element("td", { data: { label: "Answered by" } }, answeredBy(edit)),
    element("td", { class: "changing" }, element("div", { class: "actions" }, actions)));
}

function answeredBy(edit) {
  if (edit.status !== "active") return "base model";
  return edit.generated ? "generated neuron" : "collected neuron";
}

async function remove(edit) {
  const what = `“${edit.prompt}” gets the base model's answer again, no longer “${edit.target}”. You can undo this.`;
  if (!(await confirmed("Remove this edit?", what, "Remove"))) return;
  await change("Removing …", () => call("DELETE", `v1/edits/${encodeURIComponent(edit.id)}`));
}

const undo = () => change("Undoing …", () => call("POST", "v1/edits/undo", {}));

// Do something that changes edits, and say what came of it. The table keeps its page.
async function change(words, action) {
  say(message, words);
  try {
    await changed(await action());
  } catch (error) {
    sayError(message, error, () => change(words, action));
  }
}

async function changed(outcome) {
  const takeBack = outcome.changes.length && session.status?.may_edit ? [button("Undo", undo, { class: "quiet" })] : [];
  say(message, outcomeWords(outcome), ...takeBack, ...outcomeDetails(outcome));
  await read();
  if (document.activeElement === document.body) (message.querySelector("button") ?? search).focus(); // its row is new
}
