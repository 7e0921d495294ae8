// Values as people read them. All of it goes into the page as text, never as markup.

/** Characters that do not show themselves or that turn the text around them about. */
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}\p{Cn}]/gu;

/** The most of a text that is shown, in characters. A name of an export may have 4096 bytes. */
const TEXT_MAX = 300;

const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/** What a client or a certificate says of itself. What cannot be seen becomes `\u{…}`. */
export function foreign(text) {
  const shown = String(text).replace(
    INVISIBLE,
    (character) => `\\u{${character.codePointAt(0).toString(16)}}`,
  );
  return shown.length > TEXT_MAX ? `${shown.slice(0, TEXT_MAX)}…` : shown;
}

export function count(number) {
  return Math.round(number).toLocaleString("en");
}

/** Three digits, so that the width stays the same. */
function digits(number) {
  return number.toFixed(number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2);
}

export function bytes(number) {
  let unit = 0;
  while (number >= 999.5 && unit < BYTE_UNITS.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(number) : digits(number)} ${BYTE_UNITS[unit]}`;
}

export function rate(bytesPerSecond) {
  return `${bytes(bytesPerSecond)}/s`;
}

/** A short time, such as a latency. */
export function latency(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0009995) return `${digits(seconds * 1e6)} µs`;
  if (seconds < 0.9995) return `${digits(seconds * 1e3)} ms`;
  return `${digits(seconds)} s`;
}

/** A long time, such as an uptime: its two greatest units. */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(whole / unit));
  if (days > 0) return `${count(days)} d ${hours % 24} h`;
  if (hours > 0) return `${hours} h ${minutes % 60} min`;
  if (minutes > 0) return `${minutes} min ${whole % 60} s`;
  return `${whole} s`;
}

export function percent(part, whole) {
  return whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : "–";
}

function two(number) {
  return String(number).padStart(2, "0");
}

export function clock(unixSeconds) {
  const date = new Date(unixSeconds * 1000);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":");
}

export function day(unixSeconds) {
  const date = new Date(unixSeconds * 1000);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

/** The time of day, and the day if it is another one than `now`'s. */
export function moment(unixSeconds, now) {
  const time = clock(unixSeconds);
  return day(unixSeconds) === day(now) ? time : `${day(unixSeconds)} ${time}`;
}

/** `TLSv1_3` is what rustls calls it. */
export function tlsVersion(version) {
  return foreign(version).replace(/^TLSv(\d)_(\d)$/, "TLS $1.$2");
}

export function cipherSuite(suite) {
  return foreign(suite).replace(/^TLS(13)?_/, "").replaceAll("_", " ");
}

export function plural(number, one, many) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
