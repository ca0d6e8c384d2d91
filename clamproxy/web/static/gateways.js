// The gateways of fleet.peers and of the site, and the choice of whose machines are listed.

import { count, isNumber, NONE, plural, text, version, when } from "./format.js";
import { byId, fillList, fillTable, html, setAttribute, setHidden, show, tag } from "./dom.js";
import { listOf } from "./sections.js";

/** @typedef {import("./dom.js").Part} Part */

/** @param {any} status @param {number} now */
export function showGateways(status, now) {
  const peers = listOf(status.peers);
  setHidden(byId("gateways"), peers.length === 0);
  setHidden(byId("fleet-gateways"), peers.length === 0);
  showChoice(peers);
  if (peers.length === 0) return;
  const own = { ...status, up: true, answered_at: now, problems: status.problems, fleet: status.fleet };
  fillTable("gateway-list", [
    { key: "", cells: ["this gateway", ...cells(own, now)] },
    ...peers.map((peer) => ({ key: text(peer.name), cells: [name(peer), ...cells(peer, now)] })),
  ]);
  const down = peers.filter(({ up }) => up === false).length;
  show(byId("gateways-note"), down ? `${plural(down, "gateway")} not reachable: the figures are the last known` : "");
}

/** @param {any[]} peers */
function showChoice(peers) {
  const items = [
    { key: "", label: "This gateway's machines" },
    { key: "all", label: "All gateways' machines" },
    ...peers.map((peer) => ({ key: text(peer.name), label: `Those of ${text(peer.name, 60)}` })),
  ];
  fillList(byId("fleet-gateway"), items, () => html("option"), (option, { key, label }) => {
    setAttribute(option, "value", key);
    show(option, { text: label });
  });
}

/** @returns {Part[]} */
const name = ({ name: known, version: of }) => [
  { text: text(known, 80), className: "name" },
  ...(of ? [" ", { text: text(of, 40), className: "by" }] : []),
];

/** @returns {(Part | Part[])[]} */
function cells(gateway, now) {
  const at = gateway.answered_at;
  return [
    state(gateway),
    databases(gateway),
    machines(gateway.fleet),
    isNumber(at) ? [{ text: when(at, now), at }] : [NONE],
  ];
}

/** @returns {Part[]} */
function state({ up, ready, problems, reason, site }) {
  if (up === null || up === undefined) return [tag(site ? "no report yet" : "not asked yet", "plain")];
  if (up !== true) return [tag(site ? "silent" : "not reachable", "bad"), " ", { text: text(reason), className: "clamp", title: text(reason, 1000) }];
  const known = Array.isArray(problems) ? problems : [];
  const title = known.slice(0, 20).map((problem) => text(problem)).join("\n");
  if (ready !== true) return [tag("not ready", "bad", title), " ", { text: text(known[0]), className: "clamp", title }];
  return known.length ? [tag(plural(known.length, "problem"), "warn", title)] : [tag("ready", "good")];
}

/** What its machines get, and what they should get. @returns {Part[]} */
function databases({ databases: listed }) {
  const known = listOf(listed).filter(({ reached }) => isNumber(reached)).slice(0, 12);
  if (known.length === 0) return [NONE];
  return known.flatMap(({ name: of, reached, advertised }) => [
    {
      text: `${text(of, 40)} ${version(reached)}`,
      className: advertised > reached ? "database late" : "database",
      title: `advertised: ${version(advertised)}`,
    },
    " ",
  ]);
}

/** @returns {Part[]} */
function machines(fleet) {
  if (!fleet || fleet.enabled === false || !isNumber(fleet.total)) return [NONE];
  return [
    count(fleet.total),
    { text: `: ${count(fleet.up_to_date)} up to date, ${count(fleet.behind)} behind`, className: "quiet" },
    ...(fleet.overdue > 0 ? [" ", tag(`${count(fleet.overdue)} overdue`, "warn")] : []),
  ];
}
