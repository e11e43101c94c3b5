// Questions that fired an edit and should not have: kept in this browser, saved in the schema of docs/contrast.md.

import { call } from "./api.js";
import { button, byId, count, element, fact, say } from "./dom.js";

const STORED = "megedit.false-fires";
const message = () => byId("marked-message");

// [{question: a text or turns, edit: {id, prompt, target, subject, wordings}}]
function load() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? [];
  } catch {
    return []; // what is no JSON was not written here
  }
}

function keep(entries) {
  localStorage.setItem(STORED, JSON.stringify(entries));
  draw();
}

// Two questions that the schema takes for the same, nearly as megedit.edits.normalise_query does.
const same = (text) => text.normalize("NFKC").trim().replace(/\s+/g, " ").toLowerCase().replace(/[?.!: ]+$/, "");
const spoken = (question) => (Array.isArray(question) ? question.at(-1).content : question);
const equal = (one, other) => JSON.stringify(one) === JSON.stringify(other);

// Mark the question of a turn. opener: the button, which then says that it is done.
export async function add(turn, opener) {
  const { edit: id, prompt, target } = turn.route;
  const question = turn.messages.length > 1 ? turn.messages : turn.question;
  const known = await call("GET", `v1/edits/${encodeURIComponent(id)}`).catch(() => null); // it may be gone by now
  const edit = { id, prompt, target, subject: known?.subject ?? "", wordings: known?.wordings ?? [] };
  if (!Array.isArray(question) && [prompt, ...edit.wordings].some((text) => same(text) === same(question))) {
    say(message(), "This question is the edit's own, so that it should fire. Change or remove the edit instead.");
    return;
  }
  const entries = load();
  const there = entries.some((entry) => equal(entry.question, question) && entry.edit.id === id);
  if (!there) keep([...entries, { question, edit }]);
  opener.disabled = true;
  opener.textContent = "Marked";
  say(message(), `Marked. ${count(load().length, "question")} in the list.`);
}

function remove(entry) {
  keep(load().filter((other) => !equal(other, entry)));
  say(message(), "Taken off the list.");
  (byId("marked").hidden ? byId("question") : byId("marked").querySelector("summary")).focus();
}

function draw() {
  const entries = load();
  byId("marked").hidden = !entries.length;
  byId("marked-count").textContent = `Should not have fired: ${count(entries.length, "question")}`;
  byId("marked-list").replaceChildren(...entries.map(item));
}

function item(entry) {
  const { question, edit } = entry, text = spoken(question);
  const id = element("code", {}, edit.id);
  const fired = element("p", { class: "muted" }, "fired ", id, " ", fact(edit.prompt, edit.target));
  const off = button("Take off", () => remove(entry), { class: "quiet", "aria-label": `Take off: ${text}` });
  return element("li", {}, element("div", {}, element("p", { dir: "auto" }, text), fired), off);
}

// One record a fact. Its own prompt and wordings are what asks for it; the marked questions do not.
export function contrastFile(entries) {
  const records = new Map();
  for (const { question, edit } of entries) {
    const { prompt, target, subject, wordings } = edit, name = same(prompt);
    if (!records.has(name)) {
      const fire = { prompt: [prompt], ...(wordings.length ? { wording: wordings } : {}) };
      records.set(name, { prompt, target, ...(subject ? { subject } : {}), fire, not: { marked: [] } });
    }
    records.get(name).not.marked.push(question);
  }
  return [...records.values()].map((record) => `${JSON.stringify(record)}\n`).join("");
}

function save() {
  const file = new Blob([contrastFile(load())], { type: "application/jsonl" });
  const link = element("a", { href: URL.createObjectURL(file), download: "contrast.jsonl" });
  link.click();
  URL.revokeObjectURL(link.href);
  say(message(), "Saved as contrast.jsonl.");
}

export function start() {
  byId("save-marked").addEventListener("click", save);
  window.addEventListener("storage", (event) => event.key === STORED && draw()); // another tab
  draw();
}
