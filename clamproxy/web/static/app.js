// The status page: asks for status.json again and again, and shows it.

import { byId, fillList, html, near, setAttribute, setHidden, show } from "./dom.js";
import { isNumber, plural, span, text, when } from "./format.js";
import { makeCharts } from "./charts.js";
import { showGateways } from "./gateways.js";
import { prepareFleet, showFleet, showMachines } from "./fleet.js";
import {
  showCooldowns, showDatabases, showFeeds, showFigures, showFiles, showQuarantine, showReleases, showTransfers,
} from "./sections.js";

const EVERY = 2000; // milliseconds from an answer to the next question
const LONGEST = 30_000; // the same after many failures
const PATIENCE = 15_000; // for one answer

const SECTIONS = [
  showFigures, showDatabases, showReleases, showTransfers, showCooldowns, showQuarantine, showFleet, showFeeds,
  showFiles, showGateways, showCharts,
];
const charts = makeCharts([byId("request-chart"), byId("byte-chart"), byId("fleet-chart")]);

let failures = 0;
let answered = false;
let answeredAt = Date.now() / 1000; // the last good answer, or the page itself; by this browser's clock
let asking = false;
let timer = 0;

function showCharts(status) {
  setHidden(byId("fleet-chart"), !status.fleet_history);
  for (const chart of charts) chart.update(status[chart.kind.source]);
}

/** What could not be had, in words for the reader. */
class Refusal extends Error {}

async function ask() {
  const answer = await fetch(near("status.json?machines=0"), { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 401) throw new Refusal("The gateway requires its token (status.token): reload this page to enter it.");
  if (!answer.ok) throw new Refusal(`The gateway answers with an error (${answer.status}); its log says why.`);
  const status = await answer.json().catch((error) => {
    if (error instanceof SyntaxError) return null;
    throw error; // the connection broke
  });
  if (!status || typeof status !== "object") throw new Refusal("The gateway's answer can't be read.");
  return status;
}

/** Ask now, and again later while the page is looked at. */
async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  try {
    const status = await ask();
    [failures, answered, answeredAt] = [0, true, Date.now() / 1000];
    showStatus(status);
    await showMachines();
  } catch (error) {
    failures += 1;
    showSilence(error instanceof Refusal ? error.message : "");
  } finally {
    asking = false;
    // Here, so that nothing ends the asking for good.
    if (!document.hidden) timer = setTimeout(poll, Math.min(EVERY * 2 ** failures, LONGEST));
  }
}

/** @param {any} status status.json */
function showStatus(status) {
  const gateway = status.gateway ?? {};
  // The gateway's clock counts; the browser's may be wrong.
  const now = isNumber(gateway.now) ? gateway.now : Date.now() / 1000;
  setHidden(byId("silence"), true);
  setAttribute(byId("data"), "class", null);
  showState(status, gateway);
  // The usual name says nothing: the place where the page is does.
  const names = [gateway.host, location.host].filter((name) => name && name !== "clamproxy");
  show(byId("host"), names.length ? text(names[0], 80) : "");
  show(byId("version"), text(gateway.version, 40));
  show(byId("uptime"), isNumber(gateway.started_at) ? span(now - gateway.started_at) : "–");
  show(byId("as-of"), { text: clock(now), at: now });
  for (const section of SECTIONS) {
    try {
      section(status, now);
    } catch (error) {
      console.warn(`${section.name}: ${error}`); // the other sections are right nevertheless
    }
  }
}

const seconds = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const clock = (at) => seconds.format(new Date(at * 1000));

function showState(status, gateway) {
  const problems = Array.isArray(status.problems) ? status.problems : [];
  const ready = status.ready === true;
  let [words, mood] = ready ? ["Ready", "good"] : ["Not ready", "bad"];
  if (ready && problems.length) [words, mood] = [`Ready, with ${plural(problems.length, "problem")}`, "warn"];
  if (gateway.offline === true) words += ", offline by configuration";
  showWord(words, mood);
  setHidden(byId("problems"), problems.length === 0);
  setAttribute(byId("problems"), "class", `notice ${ready ? "warn" : "bad"}`);
  const items = problems.map((problem) => ({ key: text(problem, 1000) }));
  fillList(byId("problem-list"), items, () => html("li"), (line, { key }) => show(line, { text: key }));
}

/** @param {string} reason in words, or "" */
function showSilence(reason) {
  const since = when(answeredAt, Date.now() / 1000);
  const silence = byId("silence");
  setHidden(silence, false);
  const missing = reason ? `${reason} No figures since ${since}.` : `No answer from the gateway since ${since}.`;
  show(silence, answered ? `${missing} The figures below are from then.` : missing);
  setAttribute(byId("data"), "class", "stale");
  showWord(reason ? "No figures" : "No answer", "bad");
}

/** The state in a word, in the header and in the tab. @param {string} words @param {string} mood */
function showWord(words, mood) {
  const state = byId("state");
  setAttribute(state, "class", `state ${mood}`);
  show(state, words);
  document.title = `clamproxy: ${words.toLowerCase()}`;
}

prepareFleet();
document.addEventListener("visibilitychange", poll);
window.addEventListener("online", poll);
poll();
