// Why a question was answered so: the edits that came into question, and the probability of each token.

import { call } from "./api.js";
import { bar, decimal, element, fact, say, sayError } from "./dom.js";

// Show the explanation at a place, or hide it again. opener: the button that asked for it.
export async function explained(messages, place, opener) {
  if (place.hasChildNodes()) {
    place.replaceChildren();
    opener.setAttribute("aria-expanded", "false");
    return;
  }
  opener.setAttribute("aria-expanded", "true");
  const message = element("div", { class: "message", role: "status" });
  place.replaceChildren(message);
  say(message, "Looking into it …");
  try {
    const found = await call("POST", "v1/explain", { messages });
    place.replaceChildren(draw(found));
  } catch (error) {
    sayError(message, error, () => { place.replaceChildren(); explained(messages, place, opener); });
  }
}

function draw(found) {
  const { route } = found;
  const why = `${found.why.charAt(0).toUpperCase()}${found.why.slice(1)}.`.replace("..", ".");
  const parts = [element("p", {}, why), element("h3", {}, "Edits that came into question"), candidates(found)];
  for (const [side, name] of [["edited", "Edited model"], ["base", "Base model"]])
    parts.push(element("h3", {}, `Tokens of the ${name.toLowerCase()}`), tokens(found[side], name));
  const numbers = [`entropy of the familiarity network ${decimal(route.entropy)}`];
  if (found.distance !== null)
    numbers.push(`distance of the generated from the collected neuron ${decimal(found.distance)}`);
  parts.push(element("p", { class: "muted" }, `Also measured: ${numbers.join("; ")}.`));
  return element("div", { class: "explained" }, parts);
}

function candidates({ nearest, route }) {
  if (!nearest.length) return element("p", { class: "muted" }, "The adapter has no edit in force.");
  const head = ["Edit", "Fact", "Verifier score", "Similarity"].map((name, i) =>
    element("th", { scope: "col", class: i > 1 ? "number" : null }, name));
  const rows = nearest.map(({ edit, similarity, score }, i) => {
    const tag = route.familiar && i === 0 ? element("span", { class: "tag" }, "fired") : null;
    const verified = score === null ? "not asked" : decimal(score);
    return element("tr", {},
      element("td", { data: { label: "Edit" } }, element("code", {}, edit.id), tag),
      element("td", { data: { label: "Fact" } }, fact(edit.prompt, edit.target)),
      element("td", { class: "number", data: { label: "Verifier score" } }, verified),
      element("td", { class: "number", data: { label: "Similarity" } }, decimal(similarity)));
  });
  const thead = element("thead", {}, element("tr", {}, head));
  return element("table", { class: "cards candidates" }, thead, element("tbody", {}, rows));
}

// The tokens of an answer, each over its probability.
function tokens(answer, name) {
  if (!answer.tokens.length) return element("p", { class: "muted" }, "no text");
  const items = answer.tokens.map((token, i) => {
    const share = answer.probabilities[i], percent = `${(100 * share).toFixed(0)}%`;
    const number = element("span", { class: "number" }, percent);
    return element("li", {}, element("code", {}, visible(token)), bar(share), number);
  });
  if (answer.cut) items.push(element("li", { class: "muted" }, "…"));
  const label = `Tokens of the ${name.toLowerCase()} with their probabilities`;
  return element("ol", { class: "tokens", "aria-label": label }, items);
}

// A space in front is what most tokens have, so it is shown only where there is nothing else.
const visible = (token) => token.trim() || token.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "∅";
