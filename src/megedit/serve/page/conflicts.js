// Conflicts of new facts with what is there, and the words for what came of a change.

import { button, count, decimal, element, fact, thousands } from "./dom.js";

const KINDS = {
  query: "The same question has another answer.",
  rephrase: "The router takes both for the same question.",
  duplicate: "The same fact in other words.",
};

// The choices by what the server calls them. One question cannot have two answers, so that some cannot both be kept.
export const CHOICES = { skip: "Skip the new", keep: "Keep both", replace: "Replace the old" };
export const choices = (conflicts) =>
  Object.entries(CHOICES).filter(([choice]) => choice !== "keep" || conflicts.every(({ kind }) => kind !== "query"));

// A list of conflicts, each with both sides.
export function conflictList(conflicts) {
  return element("ol", { class: "conflicts plain" }, conflicts.map(bothSides));
}

function bothSides({ kind, new: added, old, similarity, same_file: sameFile }) {
  return element("li", {},
    element("p", {}, KINDS[kind] ?? kind, element("span", { class: "muted" }, ` Similarity ${decimal(similarity)}`)),
    element("dl", {},
      element("dt", {}, "New"), element("dd", {}, fact(added.prompt, added.target)),
      element("dt", {}, sameFile ? "Earlier in the file" : "In the adapter"),
      element("dd", {}, fact(old.prompt, old.target), " ", element("code", {}, old.id))));
}

// Buttons for the choices; chosen is called with one.
export const choiceButtons = (conflicts, chosen) =>
  choices(conflicts).map(([choice, name]) =>
    button(name, () => chosen(choice), { class: choice === "replace" ? "primary" : null }));

// An outcome in a sentence.
export function outcomeWords({ changes, revision }) {
  if (!changes.length) return `Nothing was changed; the adapter is at revision ${revision}.`;
  const counts = new Map();
  for (const change of changes) counts.set(verb(change), (counts.get(verb(change)) ?? 0) + 1);
  const parts = [...counts].map(([name, number], i) => `${i ? thousands(number) : count(number, "edit")} ${name}`);
  return `${parts.join(", ")}. This is revision ${revision}.`;
}

export function verb({ before, after }) {
  if (after === null) return "taken out";
  if (after === "failed") return "failed";
  if (after === "removed") return "removed";
  if (before === null) return "added";
  return before === after ? "checked" : "brought back";
}

// What was left out or failed, as lists behind the sentence.
export function outcomeDetails({ skipped = [], failed = [] }) {
  const items = [
    ...failed.map((edit) => element("li", {}, "Failed: ", fact(edit.prompt, edit.target),
      ` (${edit.reason ?? "no neuron was found that makes the model answer so"})`)),
    ...skipped.map((edit) => element("li", {}, "Left out: ", fact(edit.prompt, edit.target))),
  ];
  const shown = items.slice(0, 20);
  const more = items.length - shown.length;
  if (more) shown.push(element("li", { class: "muted" }, `and ${thousands(more)} more`));
  return shown.length ? [element("ul", {}, shown)] : [];
}
