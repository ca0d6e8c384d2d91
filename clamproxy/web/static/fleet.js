// The table of machines, with its filter.

import { count, isNumber, NONE, plural, span, text, version, when } from "./format.js";
import { byId, fillList, fillTable, html, near, setAttribute, setHidden, show, tag } from "./dom.js";
import { listOf } from "./sections.js";

/** @typedef {import("./dom.js").Part} Part */

const SILENT_AFTER = 3600; // seconds; an hour is freshclam's shortest usual interval
const SEARCHED = ["address", "uuid", "freshclam", "os", "arch"];

/** Each with the key of its number in status.json and the machines that it means. */
const CHOICES = [
  { key: "total", label: "all", holds: () => true },
  { key: "behind", label: "behind", holds: (machine) => lag(machine) > 0 },
  { key: "unknown", label: "unknown", holds: (machine) => lag(machine) === null },
  { key: "up_to_date", label: "up to date", holds: (machine) => lag(machine) === 0 },
  { key: "end_of_life", label: "end of life", holds: (machine) => machine.end_of_life === true },
];

let chosen = CHOICES[0];
/** @type {any} */
let fleet = {};
let now = 0;

/** Have the filter work. */
export function prepareFleet() {
  byId("fleet-filter").addEventListener("input", showMachines);
  fillList(byId("fleet-states"), CHOICES, () => html("button", { type: "button" }), (button, choice) => {
    button.addEventListener("click", () => {
      chosen = choice;
      showMachines();
    });
  });
}

/** @param {any} status @param {number} time Unix time */
export function showFleet(status, time) {
  fleet = status.fleet ?? {};
  now = time;
  const off = fleet.enabled === false;
  const empty = !off && listOf(fleet.machines).length === 0 && !(fleet.total > 0);
  setHidden(byId("fleet-off"), !off);
  setHidden(byId("fleet-empty"), !empty);
  setHidden(byId("fleet-body"), off || empty);
  setHidden(byId("fleet-tools"), off || empty);
  if (empty) showClientConfig();
  showMachines();
}

function showMachines() {
  const machines = listOf(fleet.machines);
  const searched = byId("fleet-filter").value.trim().toLowerCase();
  const found = machines.filter((machine) => chosen.holds(machine) && (!searched || words(machine).includes(searched)));
  [...byId("fleet-states").children].forEach((button, n) => {
    show(button, { text: CHOICES[n].label }, " ", { tag: "b", text: count(fleet[CHOICES[n].key]) });
    setAttribute(button, "aria-pressed", CHOICES[n] === chosen);
  });
  fillTable("machines", found.map((machine) => ({ key: `${text(machine.uuid)} ${text(machine.address)}`, cells: cells(machine) })));
  show(byId("fleet-count"), shownCount(found.length, machines.length));
}

/** @param {number} found @param {number} listed */
function shownCount(found, listed) {
  const more = fleet.total > listed
    ? ` The ${count(listed)} worst of ${count(fleet.total)} are here; “clamproxy fleet” lists them all.`
    : "";
  return found === listed ? `${plural(listed, "machine")}.${more}` : `${count(found)} of ${plural(listed, "machine")}.${more}`;
}

/** All that is searched, in lower case. */
function words(machine) {
  const versions = Object.entries(machine.databases ?? {}).map(([name, known]) => `${name} ${known?.version}`);
  return [...SEARCHED.map((key) => machine[key] ?? ""), ...versions, machine.last_error?.what ?? ""]
    .join("\n")
    .toLowerCase();
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
      { text: text(machine.address, 60), className: "name" }, " ",
      { text: text(machine.uuid, 60), className: "uuid", title: text(machine.uuid, 1000) },
    ],
    state(machine),
    databases(machine),
    software(machine),
    lastRequest(machine.last_seen),
    lastError(machine.last_error),
  ];
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

/** @returns {Part[]} */
function state(machine) {
  const worst = lag(machine);
  if (worst === null) return [tag("unknown", "plain", "No request has told its versions yet")];
  if (worst === 0) return [tag("up to date", "good")];
  const since = Object.values(machine.databases).map((known) => known?.behind_since).filter(isNumber);
  const lasting = since.length ? [" ", { text: `for ${span(now - Math.min(...since))}`, className: "quiet" }] : [];
  return [tag(`${count(worst)} behind`, "warn"), ...lasting];
}

/** @returns {Part[]} */
function databases(machine) {
  const known = Object.entries(machine.databases ?? {}).slice(0, 12);
  if (known.length === 0) return [NONE];
  return known.flatMap(([name, { version: has, behind, seen_at: at } = {}]) => [
    {
      text: `${text(name, 40)} ${version(has)}`,
      className: behind > 0 ? "database late" : "database",
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

let asked = false;

/** The very lines for this gateway, once: what the page has in their place is right nearly everywhere. */
async function showClientConfig() {
  if (asked) return;
  asked = true;
  try {
    const answer = await fetch(near("client-config"), { signal: AbortSignal.timeout(10_000) });
    const lines = answer.ok ? (await answer.text()).trim() : "";
    if (lines) byId("client-config").textContent = lines.slice(0, 4000);
  } catch {
    asked = false; // asked again with the next figures
  }
}
