// Import: a file of facts, what would happen with each, then all of them added in one background job.

import { call } from "./api.js";
import { button, byId, count, element, otherTexts, say, sayError, thousands } from "./dom.js";
import { choices, conflictList, outcomeDetails, outcomeWords } from "./conflicts.js";
import { followed, running } from "./jobs.js";

const SHOWN = 50;
const PIECE = 1000; // facts that the server takes in one request, each request a revision
const message = byId("import-message"), preview = byId("preview"), drop = byId("drop");
let adding = false;

export function start() {
  byId("file").addEventListener("change", (event) => {
    if (event.target.files.length) look(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  });
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) look(event.dataTransfer.files[0]);
  });
}

// Facts that are being added since before the page was loaded are followed.
export async function show() {
  if (adding) return;
  try {
    const job = await running("add");
    if (job && !adding) await done(() => followed(job, message));
  } catch (error) {
    sayError(message, error, show);
  }
}

// Let the server read a file; nothing is changed by that.
async function look(file) {
  preview.replaceChildren();
  say(message, `Reading ${file.name} …`);
  try {
    const found = await call("POST", `v1/edits/preview?${new URLSearchParams({ filename: file.name })}`, file);
    say(message, "");
    draw(file, found);
  } catch (error) {
    sayError(message, error, () => look(file));
  }
}

function draw(file, { edits, dropped, known, conflicts }) {
  const there = new Set(known), added = edits.filter((edit) => !there.has(edit.id));
  const choose = conflicts.length ? chooser(conflicts) : null;
  const parts = [element("h2", {}, file.name), element("p", {}, summary(edits, added, conflicts))];
  if (dropped.length) parts.push(element("details", {},
    element("summary", {}, `${count(dropped.length, "note")} on what was left out`),
    element("ul", {}, dropped.map((line) => element("li", { dir: "auto" }, line)))));
  if (choose) parts.push(choose);
  if (added.length) parts.push(
    element("div", { class: "buttons start" },
      button(`Add ${count(added.length, "fact")}`, () => add(file, added, choose), { class: "primary changing" }),
      button("Cancel", close)),
    table(added));
  preview.replaceChildren(...parts);
  preview.querySelector("h2").scrollIntoView({ block: "nearest" });
}

function close() {
  preview.replaceChildren();
  say(message, "");
  byId("file").focus();
}

function summary(edits, added, conflicts) {
  const parts = [`${count(edits.length, "fact")} in the file`];
  const there = edits.length - added.length;
  if (there) parts.push(`${thousands(there)} of them in the adapter already`);
  if (conflicts.length) parts.push(count(conflicts.length, "conflict"));
  return `${parts.join(", ")}.`;
}

// The conflicts with both sides, and one choice for all of them.
function chooser(conflicts) {
  const options = choices(conflicts);
  const radios = options.map(([choice, name]) => element("label", { class: "radio" },
    element("input", { type: "radio", name: "on-conflict", value: choice, checked: choice === "skip" }), name));
  const shown = conflictList(conflicts.slice(0, SHOWN));
  const more = conflicts.length - SHOWN;
  const rest = more > 0 ? element("p", { class: "muted" }, `and ${thousands(more)} more`) : null;
  return element("fieldset", {}, element("legend", {}, `What to do about ${count(conflicts.length, "conflict")}`),
    element("div", { class: "radios" }, radios), shown, rest);
}

function table(edits) {
  const rows = edits.slice(0, SHOWN).map((edit) =>
    element("tr", {},
      element("td", { data: { label: "Prompt" } }, element("p", { dir: "auto" }, edit.prompt), otherTexts(edit)),
      element("td", { data: { label: "Target" } }, element("strong", { dir: "auto" }, edit.target)),
      element("td", { data: { label: "Subject" }, dir: "auto" }, edit.subject || "–")));
  const many = edits.length > SHOWN;
  const caption = many ? `The first ${SHOWN} of ${thousands(edits.length)} facts to add` : "Facts to add";
  const head = ["Prompt", "Target", "Subject"].map((name) => element("th", { scope: "col" }, name));
  return element("table", { class: "cards" }, element("caption", {}, caption),
    element("thead", {}, element("tr", {}, head)), element("tbody", {}, rows));
}

// Add the facts, piece by piece. Those that were added stay where a later piece fails.
async function add(file, edits, choose) {
  const choice = choose?.querySelector("input:checked").value;
  say(message, "Starting …");
  const work = async () => {
    const outcomes = [];
    for (let from = 0; from < edits.length; from += PIECE) {
      const body = { edits: edits.slice(from, from + PIECE), background: true, ...(choice && { on_conflict: choice }) };
      const before = edits.length > PIECE ? `Facts from ${thousands(from + 1)} of ${thousands(edits.length)}` : "";
      outcomes.push(await followed(await call("POST", "v1/edits", body), message, before));
    }
    return together(outcomes);
  };
  try {
    await done(work);
  } catch (error) {
    sayError(message, error, () => look(file)); // what was added already is left out of the new preview
  }
}

// Tell what came of adding facts; until then there is nothing to choose.
async function done(work) {
  adding = preview.hidden = true;
  try {
    const outcome = await work();
    say(message, outcomeWords(outcome), ...outcomeDetails(outcome));
    preview.replaceChildren();
  } finally {
    adding = preview.hidden = false;
  }
}

const together = (outcomes) => ({
  revision: outcomes.at(-1).revision,
  changes: outcomes.flatMap(({ changes }) => changes),
  skipped: outcomes.flatMap(({ skipped }) => skipped),
  failed: outcomes.flatMap(({ failed }) => failed),
});
