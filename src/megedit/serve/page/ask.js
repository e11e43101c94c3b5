// Ask: a conversation whose questions are answered by the edited model and by its base model, side by side.

import { call, stream } from "./api.js";
import { button, byId, element, fact, decimal, say, sayError } from "./dom.js";
import { explained } from "./explain.js";
import * as marked from "./marked.js";
import { refresh, session } from "./session.js";

const SIDES = { edited: "Edited model", base: "Base model" };
const DECIDED = {
  words: "by the words of the edit", gate: "by the gate", verifier: "by the verifier",
  entropy: "by the entropy", similarity: "by the similarity", combined: "by entropy and similarity",
};
const SUGGESTED = 3; // edits that an empty conversation offers
const turns = []; // {question, messages, answers: by side, route}; messages are those of the edited side
let running = null; // the AbortController of the answers that stream

const form = byId("ask-form"), field = byId("question"), list = byId("turns");

export function start() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim() && !running) ask(field.value.trim());
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("new-conversation").addEventListener("click", clear);
  marked.start();
}

export async function show() {
  if (turns.length) return;
  field.focus();
  const found = call("GET", `v1/edits?status=active&limit=${SUGGESTED}`);
  const { data } = await found.catch(() => ({ data: [] })); // no more than a help
  const place = byId("suggestions");
  const buttons = data.map(({ prompt }) => button(prompt, () => running || ask(prompt), { dir: "auto" }));
  place.replaceChildren(element("span", { class: "muted" }, "Edited, for example:"), ...buttons);
  place.hidden = !data.length || turns.length > 0;
}

function clear() {
  running?.abort();
  turns.length = 0;
  list.replaceChildren();
  byId("new-conversation").hidden = true;
  byId("ask-intro").hidden = false;
  field.value = "";
  show();
}

// The turns so far as one side has seen them, and the question.
function messages(question, side) {
  const said = turns.flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.answers[side] ?? "" },
  ]);
  return [...said, { role: "user", content: question }];
}

function ask(question) {
  const turn = { question, messages: messages(question, "edited"), answers: {}, route: null };
  const base = messages(question, "base");
  turns.push(turn);
  byId("new-conversation").hidden = false;
  byId("ask-intro").hidden = byId("suggestions").hidden = true;
  field.value = "";
  const places = drawTurn(turn);
  answer(turn, places, { edited: turn.messages, base });
}

// A turn without its answers. The places are where they go.
function drawTurn(turn) {
  const places = { routed: element("div", { class: "routed" }), more: element("div") };
  const answers = Object.entries(SIDES).map(([side, name]) => {
    places[side] = element("p", { class: "text", dir: "auto" });
    places[`${side}Message`] = element("div", { class: "message", role: "alert" });
    return element("div", { class: `answer ${side}` }, element("h3", {}, name), places[side], places[`${side}Message`]);
  });
  places.live = element("div", { class: "answers", "aria-live": "polite" }, answers);
  const question = element("h2", { dir: "auto" }, turn.question);
  places.turn = element("li", { class: "turn" }, question, places.live, places.routed, places.more);
  list.append(places.turn);
  places.turn.scrollIntoView({ block: "nearest" });
  return places;
}

// Let both sides answer at once. asked: the messages of each.
async function answer(turn, places, asked) {
  const control = (running = new AbortController());
  const busy = (on) => {
    byId("send").hidden = on;
    byId("stop").hidden = !on;
    places.live.setAttribute("aria-busy", on); // read out when it is whole
  };
  busy(true);
  places.routed.replaceChildren();
  places.more.replaceChildren();
  await Promise.all(Object.keys(SIDES).map((side) => one(turn, places, side, asked, control.signal)));
  if (running === control) {
    running = null;
    busy(false);
    if (byId("stop").contains(document.activeElement) || document.activeElement === document.body) field.focus();
  }
}

// One side's answer, as it comes.
async function one(turn, places, side, asked, signal) {
  const place = places[side], said = places[`${side}Message`];
  turn.answers[side] = "";
  place.replaceChildren();
  say(said, "");
  place.classList.add("streaming");
  try {
    const { adapter } = session.status ?? (await refresh());
    const body = { model: adapter, messages: asked[side], megedit: { edits: side === "edited" } };
    for await (const chunk of stream("v1/chat/completions", body, signal)) {
      if (chunk.megedit && side === "edited") routed(turn, places, chunk.megedit);
      turn.answers[side] += chunk.choices?.[0]?.delta?.content ?? "";
      place.textContent = turn.answers[side].trimStart();
    }
    if (!turn.answers[side].trim()) place.append(element("span", { class: "muted" }, "no text"));
  } catch (error) {
    // "Try again" asks both sides, so it does nothing while one of them answers.
    if (error.name === "AbortError") say(said, "Stopped.");
    else sayError(said, error, () => running || answer(turn, places, asked));
  } finally {
    place.classList.remove("streaming");
  }
}

// Which edit the router took, in a sentence, and what can be done about it.
function routed(turn, places, route) {
  turn.route = route;
  const fired = route.edit !== null;
  places.turn.classList.toggle("fired", fired);
  const line = fired
    ? element("p", {}, "Edit ", element("code", {}, route.edit), " fired: ", fact(route.prompt, route.target))
    : element("p", {}, route.by === "off" ? "Edits are off." : "No edit fired, so the base model answers.");
  const explain = () => explained(turn.messages, places.more, why);
  const why = button("Why?", explain, { class: "quiet", "aria-expanded": "false" });
  const mark = fired ? button("Should not have fired", () => marked.add(turn, mark), { class: "quiet" }) : null;
  const actions = element("div", { class: "actions" }, why, mark);
  places.routed.replaceChildren(line, element("p", { class: "muted" }, decision(route)), actions);
}

function decision(route) {
  const parts = [`Decided ${DECIDED[route.by] ?? `by ${route.by}`}`];
  if (route.score !== null && route.threshold !== null && route.by !== "words")
    parts.push(`score ${decimal(route.score)}, threshold ${decimal(route.threshold)}`);
  if (route.neuron) parts.push(`${route.neuron} neuron`);
  return `${parts.join("; ")}.`;
}
