// What people read: numbers, sizes and times in words. Values that are missing become a dash.

export const NONE = "–";

const LOCALE = "en-GB"; // the language of the page; the time zone is the reader's
const LONGEST_TEXT = 300;
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const DAY = 86400;

const numbers = new Intl.NumberFormat(LOCALE);
const clock = new Intl.DateTimeFormat(LOCALE, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short" });
const year = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short", year: "numeric" });
const full = new Intl.DateTimeFormat(LOCALE, { dateStyle: "full", timeStyle: "long" });

/** @param {unknown} value @returns {value is number} */
export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/**
 * Text from outside, made harmless to read: no characters that hide, reorder or break lines, and not endless.
 * @param {unknown} value
 */
export function text(value, limit = LONGEST_TEXT) {
  if (value === null || value === undefined || value === "") return NONE;
  const clipped = String(value).slice(0, limit + 1);
  const line = clipped.replace(/\s+/gu, " ").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd");
  return line.length > limit ? `${line.slice(0, limit)}…` : line;
}

/** @param {unknown} value */
export const count = (value) => (isNumber(value) ? numbers.format(value) : NONE);

/** A version is a name: no separators. @param {unknown} value */
export const version = (value) => (isNumber(value) ? String(value) : NONE);

/** @param {unknown} ratio from 0 to 1 */
export function percent(ratio) {
  if (!isNumber(ratio)) return NONE;
  // Only what is perfect is called 100%.
  return `${(ratio < 1 ? Math.min(ratio * 100, 99.9) : 100).toFixed(ratio === 0 || ratio >= 1 ? 0 : 1)}%`;
}

/** @param {unknown} bytes */
export function size(bytes) {
  if (!isNumber(bytes)) return NONE;
  const power = Math.min(Math.floor(Math.log2(Math.max(Math.abs(bytes), 1)) / 10), UNITS.length - 1);
  const value = bytes / 1024 ** power;
  return `${power === 0 || value >= 100 ? numbers.format(Math.round(value)) : value.toFixed(1)} ${UNITS[power]}`;
}

/** A duration with its two largest units. @param {unknown} seconds */
export function span(seconds) {
  if (!isNumber(seconds)) return NONE;
  const rest = Math.max(0, Math.round(seconds));
  if (rest < 60) return `${rest} s`;
  if (rest < 3600) return `${Math.floor(rest / 60)} min`;
  if (rest < DAY) return pair(rest, 3600, "h", 60, "min");
  return rest < 10 * DAY ? pair(rest, DAY, "d", 3600, "h") : `${numbers.format(Math.floor(rest / DAY))} d`;
}

/** @param {number} seconds @param {number} large @param {number} small */
function pair(seconds, large, largeUnit, small, smallUnit) {
  const [first, second] = [Math.floor(seconds / large), Math.floor((seconds % large) / small)];
  return second ? `${first} ${largeUnit} ${second} ${smallUnit}` : `${first} ${largeUnit}`;
}

/** A date, or null for what no calendar has. @param {unknown} seconds Unix time */
export function date(seconds) {
  const found = isNumber(seconds) ? new Date(seconds * 1000) : null;
  return found && !Number.isNaN(found.getTime()) ? found : null;
}

/** A time as short as it is clear today. @param {unknown} seconds Unix time @param {number} now Unix time */
export function when(seconds, now) {
  const at = date(seconds);
  if (!at) return NONE;
  const today = new Date(now * 1000);
  if (at.toDateString() === today.toDateString()) return clock.format(at);
  if (Math.abs(now - seconds) < 180 * DAY) return `${day.format(at)}, ${clock.format(at)}`;
  return year.format(at);
}

/** Day and month. @param {number} seconds Unix time */
export const dayOf = (seconds) => day.format(new Date(seconds * 1000));

/** Hours and minutes. @param {number} seconds Unix time */
export const time = (seconds) => clock.format(new Date(seconds * 1000));

/** Everything about a time, for a title. @param {unknown} seconds Unix time */
export function wholeDate(seconds) {
  const at = date(seconds);
  return at ? full.format(at) : NONE;
}

/** "1 machine", "2 machines". @param {unknown} n @param {string} one @param {string} many */
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
