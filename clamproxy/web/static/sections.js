// The parts of the page below the header, one function for each, from the parts of status.json.

import { count, isNumber, NONE, percent, plural, size, span, text, version, when } from "./format.js";
import { byId, fillList, fillTable, html, setAttribute, setHidden, show, tag } from "./dom.js";

/** @typedef {import("./dom.js").Part} Part */

/** What should be a list, if it is one. @param {unknown} value @returns {any[]} */
export const listOf = (value) => (Array.isArray(value) ? value.filter((item) => item && typeof item === "object") : []);

/** @returns {Part} */
const moment = (at, now) => ({ text: when(at, now), at });

/** @returns {Part} */
const quiet = (words, title = "") => ({ text: words, className: "quiet", title });

/** @param {any} status */
export function showFigures(status) {
  const stats = status.stats ?? {};
  const free = ["hits", "collapsed", "stale", "negative"].reduce((total, key) => total + (stats[key] ?? 0), 0);
  show(byId("hit-ratio"), percent(status.hit_ratio));
  show(byId("hit-ratio-note"), isNumber(status.hit_ratio)
    ? `${count(free)} answers cost the origin nothing`
    : "no requests yet");
  show(byId("saved"), size(status.bytes_saved));
  show(byId("saved-note"), [
    `${size(stats.bytes_served)} served`, `${size(stats.upstream_bytes)} fetched`,
    ...(isNumber(stats.byte_hit_ratio) ? [`byte hit ratio ${percent(stats.byte_hit_ratio)}`] : []),
  ].join(", "));
  show(byId("requests"), count(stats.requests));
  show(byId("requests-note"), [
    plural(stats.hits, "hit"), plural(stats.misses, "miss", "misses"), plural(stats.errors, "error"),
  ].join(", "));
  show(byId("cache"), size(stats.cache_bytes));
  show(byId("cache-note"), plural(stats.objects, "object"));
}

/** @param {any} status @param {number} now */
export function showDatabases(status, now) {
  const databases = listOf(status.databases);
  const here = databases.filter(isHere);
  fillTable("databases", here.map((database) => ({
    key: text(database.name),
    cells: [
      text(database.name), databaseState(database), version(database.advertised), version(database.cached),
      version(database.reached), moment(database.built_at, now), size(database.size),
    ],
  })));
  // A database that nobody asks for is advertised for ever: safebrowsing, say.
  const missing = databases.filter((database) => !isHere(database)).map(({ name }) => text(name, 40));
  setHidden(byId("databases-missing"), missing.length === 0);
  show(byId("databases-missing"), `Advertised, nothing cached: ${missing.slice(0, 20).join(", ")}.`);
}

const isHere = ({ reached, cached }) => isNumber(reached) || isNumber(cached);

/** @returns {Part} */
function databaseState({ advertised, reached, cached }) {
  if (!isNumber(advertised)) return tag("not advertised", "plain", "The current version is not known");
  const behind = advertised - (reached ?? cached);
  return behind > 0 ? tag(`${count(behind)} behind`, "warn") : tag("up to date", "good");
}

/** @param {any} status */
export function showTransfers(status) {
  const items = listOf(status.transfers).map((transfer) => ({ ...transfer, key: text(transfer.name) }));
  fillList(byId("transfers"), items, newTransfer, (line, transfer) => {
    const [name, figures, bar] = line.firstElementChild.children;
    const known = isNumber(transfer.size) && transfer.size > 0 && isNumber(transfer.have);
    show(name, transfer.key);
    show(figures, known
      ? `${size(transfer.have)} of ${size(transfer.size)}, ${Math.floor((100 * transfer.have) / transfer.size)}%`
      : `${size(transfer.have)} so far`);
    setAttribute(bar, "max", known ? transfer.size : null);
    setAttribute(bar, "value", known ? transfer.have : null);
  });
  setHidden(byId("transfers-empty"), items.length > 0);
  showRates(status.rates);
}

/** The limits in force; nothing while there are none. */
function showRates(rates) {
  const link = rates?.upstream, clients = rates?.clients, parts = [];
  if (isNumber(link?.limit)) parts.push(`The link: ${size(link.rate)}/s of ${size(link.limit)}/s.`);
  if (isNumber(clients?.limit)) parts.push(`Each client: ${size(clients.limit)}/s; ${count(clients.waiting)} waiting.`);
  setHidden(byId("rates"), parts.length === 0);
  show(byId("rates"), parts.join(" "));
}

function newTransfer() {
  const label = html("label", {}, html("span", { class: "name" }), html("span", { class: "muted" }), html("progress"));
  return html("li", {}, label);
}

/** @param {any} status @param {number} now */
export function showCooldowns(status, now) {
  fillTable("cooldowns", listOf(status.cooldowns).map((cooldown) => ({
    key: text(cooldown.what),
    cells: [
      { text: text(cooldown.what === "origin" ? "anything: the origin itself" : cooldown.what) },
      until(cooldown.until, now),
      [tag(text(cooldown.failure, 40), "warn"), " ", { text: text(cooldown.reason), title: text(cooldown.reason, 1000) }],
    ],
  })));
}

/** @returns {Part[]} */
function until(at, now) {
  return isNumber(at) ? [moment(at, now), " ", quiet(at > now ? `in ${span(at - now)}` : "now")] : [NONE];
}

/** @param {any} status @param {number} now */
export function showReleases(status, now) {
  const limits = listOf(status.releases);
  setHidden(byId("releases"), limits.length === 0);
  fillTable("release-limits", limits.map((limit) => {
    const held = isNumber(limit.since);
    const who = [limit.by, limit.why].filter(Boolean).map((part) => text(part)).join(": ");
    return {
      key: text(limit.database),
      cells: [
        text(limit.database), version(limit.version),
        held ? tag("hold", limit.forgotten === true ? "bad" : "warn") : tag("delay", "plain", "releases.delay"),
        held ? [moment(limit.since, now), " ", quiet(span(now - limit.since))] : until(limit.until, now),
        who ? { text: who, title: text(who, 1000) } : NONE,
        spread(limit.machines),
      ],
    };
  }));
}

function spread(machines) {
  if (!machines) return NONE;
  return `${count(machines.same)} this one, ${count(machines.newer)} a newer one, ${count(machines.older)} an older one`;
}

/** @param {any} status @param {number} now */
export function showQuarantine(status, now) {
  fillTable("quarantine", listOf(status.quarantine).map((file) => ({
    key: `${text(file.name)} ${file.at}`,
    cells: [
      text(file.name), moment(file.at, now), size(file.size),
      { text: text(file.reason), title: text(file.reason, 1000) },
    ],
  })));
}

/** @param {any} status @param {number} now */
export function showFeeds(status, now) {
  const hosts = listOf(status.feeds?.hosts);
  setHidden(byId("feeds"), hosts.length === 0);
  show(byId("feeds-note"), `${plural(status.feeds?.objects, "object")}, ${size(status.feeds?.bytes)}`);
  fillTable("feed-hosts", hosts.map((host) => ({
    key: text(host.host),
    cells: [
      text(host.host), count(host.requests), count(host.hits), count(host.errors),
      isNumber(host.cooldown_until) && host.cooldown_until > now ? until(host.cooldown_until, now) : NONE,
    ],
  })));
}

const FILE_MOODS = { published: "good", refused: "bad", waiting: "warn" };

/** @param {any} status @param {number} now */
export function showFiles(status, now) {
  const files = listOf(status.files?.files);
  setHidden(byId("files"), files.length === 0);
  const published = files.filter(({ published_at: at }) => isNumber(at)).length;
  show(byId("files-note"), [
    `${count(published)} published`, plural(status.stats?.file_requests, "request"),
    `${size(status.stats?.file_bytes_served)} served`,
  ].join(", "));
  fillTable("site-files", files.map((file) => ({
    key: text(file.name),
    cells: [
      text(file.name, 100), tag(text(file.state, 40), FILE_MOODS[file.state] ?? "plain"),
      isNumber(file.published_at) ? moment(file.published_at, now) : NONE,
      isNumber(file.size) ? size(file.size) : NONE,
      file.reason ? { text: text(file.reason), title: text(file.reason, 1000) } : NONE,
    ],
  })));
}
