// The dialog that adds an edit or changes one, and asks what to do about conflicts.

import { call } from "./api.js";
import { byId, element, fact, lines, say, sayError } from "./dom.js";
import { choiceButtons, conflictList } from "./conflicts.js";

const dialog = byId("edit-dialog"), error = byId("edit-error");
const NAMES = ["prompt", "target", "subject", "wordings", "aliases"];
const fields = Object.fromEntries(NAMES.map((name) => [name, byId(name)]));
let edit = null; // the one that is changed; none where one is added
let finish = () => {}; // takes the outcome
let control = null; // the AbortController of the request under way

// Open the dialog. changed: the edit to change, or null to add one. done: called with the outcome.
export function open(changed, done) {
  [edit, finish] = [changed, done];
  byId("edit-title").textContent = edit ? "Change the edit" : "Add an edit";
  byId("edit-save").textContent = edit ? "Change" : "Add";
  byId("edit-prompt").hidden = !edit;
  byId("edit-prompt").textContent = edit?.prompt ?? "";
  byId("field-prompt").hidden = byId("field-subject").hidden = Boolean(edit);
  fields.prompt.value = fields.subject.value = "";
  fields.target.value = edit?.target ?? "";
  fields.wordings.value = (edit?.wordings ?? []).join("\n");
  fields.aliases.value = (edit?.aliases ?? []).join("\n");
  showFields();
  say(error, "");
  dialog.showModal();
  (edit ? fields.target : fields.prompt).focus();
}

function showFields() {
  byId("edit-fields").hidden = false;
  byId("edit-save").hidden = false;
  byId("edit-conflicts").hidden = byId("edit-choices").hidden = true;
  byId("edit-conflicts").replaceChildren();
}

export function start() {
  byId("edit-cancel").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => control?.abort());
  byId("edit-form").addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
}

// What is missing is said before the server is asked.
function complete() {
  for (const name of edit ? ["target"] : ["prompt", "target"]) {
    const missing = !fields[name].value.trim();
    fields[name].setAttribute("aria-invalid", missing);
    if (missing) {
      sayError(error, new Error(`The ${name} is missing.`));
      fields[name].focus();
      return false;
    }
  }
  return true;
}

const given = () => ({
  target: fields.target.value.trim(),
  wordings: lines(fields.wordings.value),
  aliases: lines(fields.aliases.value),
});

// Only what is another than before; the server collects a neuron for it.
function difference() {
  const differs = ([name, value]) => JSON.stringify(value) !== JSON.stringify(edit[name]);
  return Object.fromEntries(Object.entries(given()).filter(differs));
}

function send(choice, signal) {
  if (edit) return call("PATCH", `v1/edits/${encodeURIComponent(edit.id)}`, difference(), signal);
  const subject = fields.subject.value.trim();
  const added = { prompt: fields.prompt.value.trim(), ...given(), ...(subject ? { subject } : {}) };
  return call("POST", "v1/edits", { edits: [added], ...(choice ? { on_conflict: choice } : {}) }, signal);
}

async function save(choice = null) {
  if (!complete()) return;
  if (edit && !Object.keys(difference()).length) return dialog.close();
  control = new AbortController();
  working(true);
  try {
    const outcome = await send(choice, control.signal);
    dialog.close();
    finish(outcome);
  } catch (problem) {
    if (problem.conflicts?.length && !edit) conflicting(problem.conflicts);
    else sayError(error, problem, () => save(choice));
  } finally {
    working(false);
  }
}

function working(on) {
  for (const control of dialog.querySelectorAll("button:not(#edit-cancel), input, textarea")) control.disabled = on;
  if (on) say(error, "Finding a neuron …");
  else if (!error.classList.contains("error")) say(error, "");
}

function conflicting(conflicts) {
  const place = byId("edit-conflicts"), buttons = choiceButtons(conflicts, save);
  const added = fact(fields.prompt.value.trim(), fields.target.value.trim());
  byId("edit-fields").hidden = byId("edit-save").hidden = true;
  place.hidden = byId("edit-choices").hidden = false;
  place.replaceChildren(
    element("p", {}, "Nothing was changed yet: ", added, " contradicts what is there."),
    conflictList(conflicts));
  byId("edit-choices").replaceChildren(...buttons);
  say(error, "");
  buttons.at(-1).focus(); // replace
}
