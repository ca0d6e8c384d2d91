// Elements made and kept up to date. Whatever comes from data becomes a text node or an attribute's value.

import { date, NONE, text, wholeDate } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

/**
 * A piece of a line: a text, or a text with what it looks like and means.
 * @typedef {string | {text: string, tag?: string, className?: string, title?: string, at?: number}} Part
 * @typedef {{key: string, cells: (Part | Part[])[], className?: string}} Row
 */

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/** @param {string} name @param {Record<string, unknown>} attributes @param {(Node | string)[]} children */
export function html(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** @param {string} name @param {Record<string, unknown>} attributes @param {(Node | string)[]} children */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

/** @template {Element} T @param {T} element @param {Record<string, unknown>} attributes @param {(Node | string)[]} children */
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) setAttribute(element, name, value);
  element.append(...children);
  return element;
}

/** Set, or remove with null; nothing is touched that is as it should be. @param {Element} element */
export function setAttribute(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

/** A short word on a ground of its own. @param {string} words @param {"good" | "warn" | "bad" | "plain"} mood */
export const tag = (words, mood, title = "") => ({ text: words, className: `tag ${mood}`, title });

/** @type {WeakMap<Element, string>} */
const shown = new WeakMap();

/** Make an element show these parts; it is left alone if it does already. @param {Element} element @param {Part[]} parts */
export function show(element, ...parts) {
  const signature = JSON.stringify(parts);
  if (shown.get(element) === signature) return;
  shown.set(element, signature);
  element.replaceChildren(...parts.filter((part) => part !== "").map(partNode));
}

/** @param {Part} part */
function partNode(part) {
  if (typeof part === "string") return document.createTextNode(text(part));
  const at = date(part.at);
  const attributes = {
    class: part.className,
    title: at ? wholeDate(part.at) : part.title && text(part.title, 1000),
    datetime: at?.toISOString(),
  };
  return html(part.tag ?? (at ? "time" : "span"), attributes, text(part.text));
}

/**
 * Make a table's body show these rows. Rows stay the same elements as long as their key is there, so that selected
 * text and the scroll position survive.
 * @param {string} id of the tbody @param {Row[]} rows
 */
export function fillTable(id, rows) {
  const body = byId(id);
  const heads = [...(body.closest("table")?.tHead?.rows[0].cells ?? [])];
  fillList(body, rows, () => newRow(heads), (line, row) => {
    setAttribute(line, "class", row.className);
    row.cells.forEach((cell, column) => {
      const parts = [cell].flat();
      line.children[column].classList.toggle("nothing", parts.length === 1 && parts[0] === NONE);
      show(line.children[column], ...parts);
    });
  });
  const empty = document.getElementById(`${id}-empty`);
  const scroller = body.closest(".scroller");
  if (!empty || !scroller) return;
  setHidden(empty, rows.length > 0);
  setHidden(scroller, rows.length === 0);
}

/** @param {HTMLTableCellElement[]} heads */
function newRow(heads) {
  const cells = heads.map((head, column) => {
    const attributes = { class: head.className || null, "data-label": head.textContent };
    return column === 0
      ? html("th", { ...attributes, scope: "row", role: "rowheader" })
      : html("td", { ...attributes, role: "cell" });
  });
  return html("tr", { role: "row" }, ...cells);
}

/** The address of another page of this gateway: a token that is part of this page's address is in the way of fetch. */
export const near = (name) => new URL(name, location.origin + location.pathname);

/** @param {Element} element @param {boolean} hidden */
export const setHidden = (element, hidden) => setAttribute(element, "hidden", hidden ? "" : null);

/** @type {WeakMap<Element, Map<string, Element>>} */
const listed = new WeakMap();

/**
 * Give a parent one child for each item, in their order; children of known keys are kept.
 * @template {{key: string}} T
 * @param {Element} parent @param {T[]} items @param {() => Element} make @param {(child: Element, item: T) => void} update
 */
export function fillList(parent, items, make, update) {
  const known = listed.get(parent) ?? new Map();
  const kept = new Map();
  for (const item of items) {
    let key = item.key;
    for (let n = 2; kept.has(key); n += 1) key = `${item.key} ${n}`;
    kept.set(key, known.get(key) ?? make());
    update(kept.get(key), item);
  }
  for (const [key, child] of known) if (!kept.has(key)) child.remove();
  listed.set(parent, kept);
  let place = parent.firstElementChild;
  for (const child of kept.values()) {
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
}
