// The table of machines, which the gateway searches, sorts and gives page by page: fleet.json.

import { count, isNumber, NONE, plural, span, text, version, when } from "./format.js";
import { byId, fillList, fillTable, html, near, setAttribute, setHidden, show, tag } from "./dom.js";
import { listOf } from "./sections.js";
import { openStory } from "./story.js";

/** @typedef {import("./dom.js").Part} Part */

const SILENT_AFTER = 3600; // seconds; an hour is freshclam's shortest usual interval
const TYPING = 250; // milliseconds from the last key to the question
const PATIENCE = 15_000; // for one answer

/** Each with the key of its number; that of a state is its name in the query, too. */
const CHOICES = [
  { key: "total", label: "all" },
  { key: "overdue", label: "overdue" },
  { key: "behind", label: "behind" },
  { key: "unknown", label: "unknown" },
  { key: "up_to_date", label: "up to date" },
  { key: "end_of_life", label: "end of life" },
  { key: "cloned", label: "cloned" },
];
const NO_GROUP = "-"; // in the query

const CLONED = "Several machines have this UUID: remove freshclam.dat on each of them";

const phone = matchMedia("(max-width: 45rem)");

let chosen = CHOICES[0];
let offset = 0;
/** @type {any} */
let fleet = {};
let now = 0;
/** @type {AbortController | null} the question that counts */
let asked = null;
let typing = 0;

/** How many machines are on a page: on a phone each is a card. */
const perPage = () => (phone.matches ? 20 : 50);

/** Have the controls work. */
export function prepareFleet() {
  byId("fleet-filter").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => turnTo(0), TYPING);
  });
  byId("fleet-sort").addEventListener("change", () => turnTo(0));
  byId("fleet-gateway").addEventListener("change", () => turnTo(0));
  byId("fleet-group").addEventListener("change", () => turnTo(0));
  byId("groups").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    byId("fleet-group").value = button.title;
    turnTo(0);
  });
  byId("machines").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button) openStory(button.closest("tr").querySelector(".uuid").textContent);
  });
  byId("fleet-states").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    chosen = CHOICES.find(({ key }) => key === button.value) ?? CHOICES[0];
    showChoices();
    turnTo(0);
  });
  showChoices();
  byId("fleet-previous").addEventListener("click", () => turnPage(-1));
  byId("fleet-next").addEventListener("click", () => turnPage(1));
}

/** @param {any} status */
export function showFleet(status) {
  const known = status.fleet ?? {};
  const off = known.enabled === false;
  const empty = !off && !(known.total > 0) && listOf(status.peers).length === 0;
  setHidden(byId("fleet-off"), !off);
  setHidden(byId("fleet-empty"), !empty);
  setHidden(byId("fleet-body"), off || empty);
  setHidden(byId("fleet-tools"), off || empty);
  if (empty) showClientConfig();
}

/** @param {number} to the number of the first machine that is shown */
async function turnTo(to) {
  offset = Math.max(0, to);
  await showMachines();
}

/** @param {1 | -1} direction */
async function turnPage(direction) {
  await turnTo(offset + direction * perPage());
  const scroller = byId("machines").closest(".scroller");
  scroller.scrollTop = 0;
  scroller.focus({ preventScroll: true });
  byId("fleet").scrollIntoView();
}

/** Ask for the machines that are wanted, and show them. An earlier question that isn't answered yet counts no more. */
export async function showMachines() {
  if (byId("fleet-body").hidden) return;
  asked?.abort();
  const own = new AbortController();
  asked = own;
  const patience = setTimeout(() => own.abort(), PATIENCE);
  const found = await ask(own.signal);
  clearTimeout(patience);
  if (own !== asked) return;
  if (found) await showFound(found);
  else show(byId("fleet-count"), "The list of machines is not available now.");
}

/** fleet.json for what is wanted; null if it can't be had. @param {AbortSignal} signal */
async function ask(signal) {
  try {
    const answer = await fetch(near(`fleet.json?${wanted()}`), { cache: "no-store", signal });
    const found = answer.ok ? await answer.json() : null;
    return found && typeof found === "object" ? found : null;
  } catch {
    return null;
  }
}

function wanted() {
  const query = new URLSearchParams({ sort: byId("fleet-sort").value, offset: String(offset), limit: String(perPage()) });
  const searched = byId("fleet-filter").value.trim();
  if (searched) query.set("q", searched);
  const gateway = byId("fleet-gateway").value;
  if (gateway) query.set("gateway", gateway);
  if (chosen !== CHOICES[0]) query.set("state", chosen.key);
  if (byId("fleet-group").value) query.set("group", byId("fleet-group").value);
  return query;
}

/** @param {any} found fleet.json */
async function showFound(found) {
  const machines = listOf(found.machines).slice(0, perPage());
  if (machines.length === 0 && found.found > 0 && offset > 0) {
    // The last pages are gone.
    return turnTo(found.found <= offset ? found.found - (found.found % perPage() || perPage()) : 0);
  }
  fleet = found;
  now = isNumber(found.now) ? found.now : Date.now() / 1000;
  showChoices();
  showGroups();
  fillTable("machines", machines.map((machine) => ({ key: `${text(machine.uuid)} ${text(machine.address)}`, cells: cells(machine) })));
  showPlace(machines.length);
}

function showChoices() {
  const choices = CHOICES.filter((choice) => choice.key !== "cloned" || fleet.cloned > 0 || choice === chosen);
  fillList(byId("fleet-states"), choices, () => html("button", { type: "button" }), (button, choice) => {
    setAttribute(button, "value", choice.key);
    show(button, { text: choice.label }, " ", { tag: "b", text: count(fleet[choice.key]) });
    setAttribute(button, "aria-pressed", choice === chosen);
    if (choice.key === "overdue") setAttribute(button, "title", `Behind for more than ${span(fleet.behind_for)}`);
  });
}

/** The groups of machines, in a table and to choose from. */
function showGroups() {
  const groups = listOf(fleet.groups);
  const options = groups.map(({ group }) => ({ key: group ?? NO_GROUP, words: group === null ? "no group" : text(group, 64) }));
  setHidden(byId("fleet-groups"), groups.length === 0);
  setHidden(byId("fleet-group").parentElement, groups.length === 0);
  fillList(byId("fleet-group"), [{ key: "", words: "All groups" }, ...options], () => html("option"), (option, { key, words }) => {
    setAttribute(option, "value", key);
    show(option, words);
  });
  fillTable("groups", groups.map((group, n) => ({
    key: options[n].key,
    cells: [
      { tag: "button", text: options[n].words, className: "open", title: options[n].key },
      count(group.total), count(group.up_to_date), count(group.behind), count(group.overdue), count(group.unknown),
    ],
  })));
}

/** Which part of the list this is. @param {number} listed */
function showPlace(listed) {
  const found = isNumber(fleet.found) ? fleet.found : listed;
  const all = found === fleet.total ? plural(found, "machine") : `${count(found)} of ${plural(fleet.total, "machine")}`;
  const part = listed < found ? `; showing ${count(offset + 1)} to ${count(offset + listed)}` : "";
  show(byId("fleet-count"), `${all}${part}.`);
  setHidden(byId("fleet-pages"), listed >= found);
  setAttribute(byId("fleet-previous"), "disabled", offset > 0 ? null : "");
  setAttribute(byId("fleet-next"), "disabled", offset + listed < found ? null : "");
}

/** By how many releases a machine is behind with its worst database, null if that isn't known. */
function lag(machine) {
  const behind = Object.values(machine.databases ?? {}).map((known) => known?.behind).filter(isNumber);
  const worst = Math.max(0, ...behind);
  const all = behind.length > 0 && behind.length === Object.keys(machine.databases).length;
  return worst > 0 || all ? worst : null;
}

/** @returns {(Part | Part[])[]} */
function cells(machine) {
  return [
    [
      heading(machine), " ",
      ...(machine.name ? [{ text: text(machine.address, 60), className: "quiet" }, " "] : []),
      ...(machine.group ? [{ text: text(machine.group, 64), className: "tag plain" }, " "] : []),
      { text: text(machine.uuid, 60), className: "uuid", title: text(machine.uuid, 1000) },
      ...(machine.gateway ? [" ", { text: `by ${text(machine.gateway, 60)}`, className: "by" }] : []),
    ],
    [...state(machine), ...(machine.cloned === true ? [" ", tag("cloned", "warn", CLONED)] : [])],
    databases(machine),
    software(machine),
    lastRequest(machine.last_seen),
    lastError(machine.last_error),
  ];
}

/** Its name, which opens its story. Only the gateway that saw it can tell that. @returns {Part} */
function heading({ name, address, gateway }) {
  const known = text(name ?? address, 64);
  return gateway
    ? { text: known, title: `Its story is on the page of ${text(gateway, 60)}` }
    : { tag: "button", text: known, className: "open", title: "Its story" };
}

/** @returns {Part[]} */
function software({ freshclam, end_of_life: old, os, arch }) {
  const system = [os, arch].filter(Boolean).map((word) => text(word, 40)).join(" ");
  if (!freshclam && !system) return [NONE];
  return [
    text(freshclam, 40),
    ...(old === true ? [" ", tag("end of life", "bad", "ClamAV's servers refuse this version, or will soon")] : []),
    ...(system ? [" ", { text: system, className: "system" }] : []),
  ];
}

/** Whether a database has been behind for longer than it may be; it has if nobody knows since when. */
function isOverdue({ behind, behind_since: since } = {}) {
  return behind > 0 && !(isNumber(since) && now - since < fleet.behind_for);
}

/** @returns {Part[]} */
function state(machine) {
  const worst = lag(machine);
  if (worst === null) return [tag("unknown", "plain", "No request has shown its versions yet")];
  if (worst === 0) return [tag("up to date", "good")];
  const databases = Object.values(machine.databases);
  const overdue = databases.some((known) => isOverdue(known ?? {}));
  const since = Math.min(...databases.map((known) => known?.behind_since).filter(isNumber));
  const lasting = isNumber(since) ? [" ", { text: `for ${span(now - since)}`, at: since, className: "quiet" }] : [];
  return [tag(`${count(worst)} behind`, overdue ? "warn" : "plain"), ...lasting];
}

/** @returns {Part[]} */
function databases(machine) {
  const known = Object.entries(machine.databases ?? {}).slice(0, 12);
  if (known.length === 0) return [NONE];
  return known.flatMap(([name, { version: has, behind, behind_since: since, seen_at: at } = {}]) => [
    {
      text: `${text(name, 40)} ${version(has)}`,
      className: isOverdue({ behind, behind_since: since }) ? "database late" : "database",
      title: `${behind > 0 ? `${count(behind)} behind; ` : ""}shown by a request of ${when(at, now)}`,
    },
    " ",
  ]);
}

/** Silence is told as what it is: nobody knows whether the machine is there. @returns {Part[]} */
function lastRequest(at) {
  if (!isNumber(at)) return [NONE];
  if (now - at < SILENT_AFTER) return [{ text: `${span(now - at)} ago`, at }];
  return [{ text: `no request since ${when(at, now)}`, at }];
}

/** @returns {Part[]} */
function lastError(error) {
  if (!error || typeof error !== "object") return [NONE];
  return [
    { text: text(error.what), className: "clamp", title: text(error.what, 1000) }, " ",
    { text: when(error.at, now), at: error.at, className: "quiet" },
  ];
}

let configAsked = false;

/** The very lines for this gateway, once: what the page has in their place is right nearly everywhere. */
async function showClientConfig() {
  if (configAsked) return;
  configAsked = true;
  try {
    const answer = await fetch(near("client-config"), { signal: AbortSignal.timeout(10_000) });
    const lines = answer.ok ? (await answer.text()).trim() : "";
    if (lines) byId("client-config").textContent = lines.slice(0, 4000);
  } catch {
    configAsked = false; // configAsked again with the next figures
  }
}
