// The story of one machine, in a dialog over the page.

import { count, isNumber, NONE, size, span, text, version, when } from "./format.js";
import { byId, fillList, fillTable, html, near, setHidden, show } from "./dom.js";
import { listOf } from "./sections.js";

/** @typedef {import("./dom.js").Part} Part */

const PATIENCE = 15_000; // milliseconds for the answer

byId("story-close").addEventListener("click", () => dialog().close());

/** @returns {HTMLDialogElement} */
const dialog = () => byId("story");

/** Show a machine's story; it stays as it was when it was opened. @param {string} uuid */
export async function openStory(uuid) {
  try {
    const answer = await fetch(near(`fleet.json?machine=${encodeURIComponent(uuid)}`), {
      cache: "no-store", signal: AbortSignal.timeout(PATIENCE),
    });
    if (!answer.ok) throw new Error(`${answer.status}`);
    showStory(await answer.json());
    setHidden(byId("story-trouble"), true);
  } catch {
    showStory({ uuid });
    setHidden(byId("story-trouble"), false);
    show(byId("story-trouble"), "The story of this machine is not available now.");
  }
  if (!dialog().open) dialog().showModal();
  dialog().scrollTop = 0;
}

/** @param {any} story fleet.json of one machine */
function showStory(story) {
  const now = isNumber(story.now) ? story.now : Date.now() / 1000;
  const machines = listOf(story.machines);
  show(byId("story-title"), text(story.name ?? machines[0]?.address ?? story.uuid, 64));
  setHidden(byId("story-cloned"), story.cloned !== true);
  fillList(byId("story-facts"), facts(story, machines, now), () => html("div", {}, html("dt"), html("dd")), (pair, { key, parts }) => {
    show(pair.children[0], key);
    show(pair.children[1], ...parts);
  });
  fillTable("story-versions", listOf(story.versions).map((step, n) => ({
    key: String(n),
    cells: [
      `${text(step.database, 40)} ${step.version === null ? "none" : version(step.version)}`,
      moment(step.at, now),
      isNumber(step.took) ? span(step.took) : NONE,
      text(step.address, 60),
    ],
  })));
  fillTable("story-errors", listOf(story.errors).map((error, n) => ({
    key: String(n), cells: [text(error.what), moment(error.at, now), count(error.count)],
  })));
  fillTable("story-requests", listOf(story.requests).map((one, n) => ({
    key: String(n), cells: [text(one.what, 100), moment(one.at, now), version(one.status), size(one.bytes)],
  })));
}

/** @param {any} story @param {any[]} machines @param {number} now @returns {{key: string, parts: Part[]}[]} */
function facts(story, machines, now) {
  const latest = machines[0] ?? {};
  const system = [latest.os, latest.arch].filter(Boolean).map((word) => text(word, 40)).join(" ");
  const programs = listOf(story.freshclam).map(({ version: known, at }) => `${text(known, 40)} since ${when(at, now)}`);
  const firstSeen = Math.min(...machines.map((machine) => machine.first_seen).filter(isNumber));
  return [
    { key: "UUID", parts: [text(story.uuid, 60)] },
    { key: "Group", parts: [text(story.group, 64)] },
    { key: machines.length > 1 ? "Addresses" : "Address", parts: [machines.map(({ address }) => text(address, 60)).join(", ")] },
    { key: "System", parts: [system || NONE] },
    { key: "freshclam", parts: [programs.join(", ") || text(latest.freshclam, 40)] },
    { key: "First request", parts: [moment(firstSeen, now)] },
    { key: "Last request", parts: [moment(latest.last_seen, now)] },
    { key: "Requests", parts: [`${count(story.request_count)} since ${when(story.since, now)}`] },
  ];
}

/** @returns {Part} */
const moment = (at, now) => ({ text: when(at, now), at });
