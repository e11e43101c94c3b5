// Small helpers for the document. Text is only ever put in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

// An element. attributes: `on` maps events to listeners, `data` fills data attributes, true and false set and leave
// out an attribute, and a null child is left out.
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") Object.entries(value).forEach(([type, listener]) => node.addEventListener(type, listener));
    else if (name === "data") Object.assign(node.dataset, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const button = (text, click, attributes = {}) =>
  element("button", { type: "button", on: { click }, ...attributes }, text);

// A bar from 0 to 1. It is a drawing, since the page may not use style attributes.
export function bar(share) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "bar");
  svg.setAttribute("viewBox", "0 0 100 6");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const [name, width] of [["track", 100], ["value", 100 * Math.min(Math.max(share, 0), 1)]]) {
    const rect = document.createElementNS(SVG, "rect");
    rect.setAttribute("class", name);
    rect.setAttribute("width", width.toFixed(1));
    rect.setAttribute("height", 6);
    svg.append(rect);
  }
  return svg;
}

// A fact in one line: prompt, arrow, target.
export function fact(prompt, target) {
  const arrow = element("span", { class: "arrow" }, " → "), answer = element("strong", { dir: "auto" }, target);
  return element("span", { class: "fact" }, element("span", { dir: "auto" }, prompt), arrow, answer);
}

// Say something at a place. more: buttons or lists behind the text.
export function say(place, text, ...more) {
  place.className = "message";
  place.replaceChildren(...(text ? [element("span", {}, text)] : []), ...more);
}

// Say in words what failed, where it failed. retry: what to do on "Try again", which is offered where it may help.
export function sayError(place, error, retry) {
  if (error.name === "AbortError") return;
  place.className = "message error";
  const again = retry && mayPass(error) ? [button("Try again", () => { place.replaceChildren(); retry(); })] : [];
  place.replaceChildren(element("span", {}, sentence(error)), ...again);
}

const mayPass = ({ code, status, retryAfter }) => code === "away" || status === 401 || status >= 500 || Boolean(retryAfter);

function sentence(error) {
  if (error.code === "invalid_api_key") return "The server asks for a key, and this is not the one.";
  if (error.code === "editing_disabled") return "Edits can be changed with the server's edit key only.";
  if (error.retryAfter) return `${error.message} Try again in ${error.retryAfter} s.`;
  return error.message;
}

// A question in the page that is answered with yes or no. Escape is no.
export function confirmed(title, text, yes) {
  const dialog = byId("confirm-dialog");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// The other ways in which an edit is asked for, in small lines under its prompt.
export function otherTexts({ wordings = [], aliases = [] }) {
  return [["Also asked: ", wordings.join(" · ")], ["Also called: ", aliases.join(", ")]]
    .filter(([, texts]) => texts)
    .map(([name, texts]) => element("p", { class: "more", dir: "auto" }, name + texts));
}

export const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
export const thousands = (number) => number.toLocaleString("en");
export const count = (number, noun) => `${thousands(number)} ${noun}${number === 1 ? "" : "s"}`;
export const decimal = (number) => (Number.isFinite(number) ? number.toFixed(2).replace("-", "−") : "–");
