// Asks the server every two seconds and shows what it says.

import { Charts } from "./charts.js";
import * as format from "./format.js";
import { setIcon, setText, Table } from "./table.js";

const POLL_MS = 2000;
const ANSWER_MS = 5000;
const DAY_SECONDS = 86400;
const WARNING_DAYS = 30;
const ALARM_DAYS = 7;

const byId = (id) => document.getElementById(id);
const say = (id, text) => setText(byId(id), text);

const STATES = {
  serving: ["Serving", "good"],
  draining: ["Draining: no new clients", "draining"],
  unready: ["Not ready", "warning"],
  away: ["Not reachable", "away"],
};

const EXPIRING = {
  server: "Server",
  client_ca: "Client CA",
  revocation_list: "Revocation list",
};

/** What each client had read when it was last asked: `id → { bytes, at, rate }`. */
let before = new Map();
/** When the server last answered, by its own clock in seconds. */
let askedBefore;
let startedBefore;
let status;
/** When the server last answered, by the clock of this browser in milliseconds. */
let answeredAt;
let filter = "";

const charts = new Charts();

const clients = new Table("clients", "client-row", (part, client) => {
  setText(part("identity"), client.who);
  const { fingerprint } = client;
  part("identity").title = fingerprint ? `SHA-256 ${format.foreign(fingerprint)}` : "";
  part("identity").classList.toggle("anonymous", client.identity === null);
  setText(part("peer"), client.where);
  setText(part("export"), client.what);
  part("export").classList.toggle("anonymous", client.export === null);
  setText(part("tls"), client.tls ? format.tlsVersion(client.tls.version) : "none");
  setText(part("cipher"), client.tls ? format.cipherSuite(client.tls.cipher_suite) : "plain text");
  setText(part("connected"), format.duration(status.now_unix_seconds - client.since_unix_seconds));
  const since = format.moment(client.since_unix_seconds, status.now_unix_seconds);
  part("connected").title = `since ${since}`;
  setText(part("bytes"), format.bytes(client.read_bytes));
  setText(part("reads"), format.plural(client.reads, "read", "reads"));
  setText(part("throughput"), client.rate === null ? "–" : format.rate(client.rate));
  part("share").style.transform = `scaleX(${client.share})`;
});

const exported = new Table("exports", "export-row", (part, item) => {
  setText(part("name"), format.foreign(item.name));
  setText(part("description"), format.foreign(item.description ?? ""));
  mark(part, ...item.condition);
  const number = (value, shown) => (value === undefined ? "–" : shown(value));
  setText(part("size"), number(item.size_bytes, format.bytes));
  setText(part("clients"), number(item.connections, format.count));
  setText(part("requests"), number(item.requests, format.count));
  setText(part("bytes"), number(item.read_bytes, format.bytes));
});

const certificates = new Table("certificates", "certificate-row", (part, item) => {
  setText(part("what"), EXPIRING[item.what] ?? format.foreign(item.what));
  setText(part("name"), format.foreign(item.name));
  mark(part, ...item.condition);
  setText(part("left"), item.left);
  setText(part("date"), format.day(item.unix_seconds));
});

const refusals = new Table("refusals", "refusal-row", (part, refusal) => {
  setText(part("when"), format.moment(refusal.unix_seconds, status.now_unix_seconds));
  const isNobody = refusal.identity === null;
  setText(part("identity"), isNobody ? "not identified" : format.foreign(refusal.identity));
  part("identity").classList.toggle("anonymous", isNobody);
  setText(part("peer"), format.foreign([refusal.peer, refusal.id].filter(Boolean).join(" · ")));
  setText(part("reason"), format.foreign(refusal.reason));
});

function mark(part, level, words) {
  part("mark").dataset.level = level;
  setIcon(part("mark"), level);
  setText(part("condition"), words);
}

function showClients() {
  if (startedBefore !== status.started_unix_seconds) {
    before = new Map();
    askedBefore = undefined;
  }
  startedBefore = status.started_unix_seconds;
  const now = status.now_unix_seconds;
  const rates = new Map();
  for (const client of status.clients) {
    const old = before.get(client.id) ?? { bytes: 0, at: askedBefore, rate: null };
    // Of who was there before this page was, it is not known yet.
    const seconds = now - Math.max(old.at ?? now, client.since_unix_seconds);
    const rate = seconds > 0 ? Math.max(0, client.read_bytes - old.bytes) / seconds : old.rate;
    const isKnown = old.at !== undefined;
    rates.set(client.id, { bytes: client.read_bytes, at: now, rate: isKnown ? rate : null });
  }
  askedBefore = now;
  before = rates;
  drawClients();
}

function drawClients() {
  if (!status) return;
  const greatest = Math.max(1, ...[...before.values()].map(({ rate }) => rate));
  const shown = status.clients.map((client) => ({
    ...client,
    who: client.identity === null
      ? client.tls ? "no certificate" : "anonymous"
      : format.foreign(client.identity),
    where: [client.peer === "unix" ? "local socket" : client.peer, client.id]
      .map(format.foreign)
      .join(" · "),
    what: client.export === null ? "not chosen yet" : format.foreign(client.export),
    rate: before.get(client.id).rate,
    share: (before.get(client.id).rate ?? 0) / greatest,
  }));
  const wanted = filter.toLowerCase();
  const found = shown.filter(({ who, where, what }) =>
    `${who}\n${where}\n${what}`.toLowerCase().includes(wanted));
  clients.show(found, (client) => client.id);
  const { connections, connections_max: most } = status;
  const listed = status.clients.length;
  const isFiltered = filter !== "" && listed > 0;
  byId("clients-empty").hidden = found.length > 0 || isFiltered;
  say("clients-note", isFiltered
    ? `${format.count(found.length)} of ${format.count(listed)} match`
    : listed < connections
      ? `the ${format.count(listed)} oldest of ${format.count(connections)}`
      : "");
  say("clients-count", `${format.count(connections)} / ${format.count(most)}`);
}

function showExports() {
  const good = status.exports.map((item) => ({
    ...item,
    condition: item.damaged_blocks > 0
      ? ["alarm", format.plural(item.damaged_blocks, "request met damage", "requests met damage")]
      : ["good", "good"],
  }));
  const broken = status.broken_exports.map((name) => ({
    name,
    description: "The log says why.",
    condition: ["alarm", "cannot be opened"],
  }));
  // What is wrong stands first.
  const damaged = good.filter((item) => item.damaged_blocks > 0);
  const fine = good.filter((item) => !(item.damaged_blocks > 0));
  exported.show([...broken, ...damaged, ...fine], (item) => item.name);
  say("exports-note", format.plural(good.length, "export", "exports"));
  const names = (items) => items.map((item) => format.foreign(item.name)).join(", ");
  return [
    broken.length > 0 && ["alarm", `cannot be opened: ${names(broken)}`],
    damaged.length > 0 && ["alarm", `damaged blocks: ${names(damaged)}`],
  ];
}

function showCertificates() {
  const items = status.expiries
    .map((item) => {
      const seconds = item.unix_seconds - status.now_unix_seconds;
      const days = seconds / DAY_SECONDS;
      const left = seconds <= 0
        ? `${format.duration(-seconds)} ago`
        : days < 2 ? `in ${format.duration(seconds)}` : `in ${format.count(Math.floor(days))} days`;
      const condition = seconds <= 0
        ? ["alarm", "expired"]
        : days < ALARM_DAYS
          ? ["alarm", "renew now"]
          : days < WARNING_DAYS ? ["warning", "renew soon"] : ["good", "valid"];
      return { ...item, left, condition };
    })
    .sort((one, other) => one.unix_seconds - other.unix_seconds);
  certificates.show(items, (item) => `${item.what} ${item.name}`);
  return items
    .filter((item) => item.condition[0] !== "good")
    .map((item) => {
      const isList = item.what === "revocation_list";
      const what = isList ? "revocation list of" : "certificate";
      const verb = item.condition[1] === "expired" ? "expired" : "expires";
      return [item.condition[0], `${what} ${format.foreign(item.name)} ${verb} ${item.left}`];
    });
}

function showRefusals() {
  refusals.show(status.refusals, ({ unix_seconds: when, id, peer, reason }) =>
    [when, id, peer, reason].join(" "));
  say("refusals-note", status.refusals.length >= 50 ? "the last 50" : "");
}

function showCache() {
  const { bytes, capacity_bytes: capacity, hits, misses, evictions } = status.cache;
  say("cache-used", format.bytes(bytes));
  say("cache-capacity", `of ${format.bytes(capacity)}`);
  byId("cache-bar").style.transform = `scaleX(${capacity > 0 ? Math.min(1, bytes / capacity) : 0})`;
  say("cache-hits", format.count(hits));
  say("cache-misses", format.count(misses));
  say("cache-evictions", format.count(evictions));
  say("inflight", format.bytes(status.inflight_bytes));
  say("hit-rate", format.percent(hits, hits + misses));
}

function showAttention(troubles) {
  const found = troubles.filter(Boolean);
  const level = ["alarm", "warning"].find((one) => found.some(([of]) => of === one)) ?? "good";
  byId("attention").dataset.level = level;
  setIcon(byId("attention"), level);
  const sorted = [...found].sort(([one], [other]) => one.localeCompare(other));
  const text = sorted.map(([, words]) => words).join(" · ") || "nothing needs attention";
  say("attention-text", `${text[0].toUpperCase()}${text.slice(1)}.`);
}

function showState(state) {
  const [words, icon] = STATES[state];
  document.body.dataset.state = state;
  setIcon(byId("state"), icon);
  // It is read aloud when it changes, so it has no times in it.
  say("state-text", words);
  document.title = `${location.host}: ${words.toLowerCase()}`;
}

function show(newStatus, history) {
  status = newStatus;
  answeredAt = Date.now();
  const now = status.now_unix_seconds;
  showState(status.draining ? "draining" : status.ready ? "serving" : "unready");
  say("version", format.foreign(status.version));
  say("started", format.moment(status.started_unix_seconds, now));
  byId("started").dateTime = new Date(status.started_unix_seconds * 1000).toISOString();
  say("uptime", format.duration(now - status.started_unix_seconds));
  say("seen", format.clock(now));
  const { connections, connections_max: most } = status;
  showClients();
  showAttention([
    status.draining && ["warning", "the server is stopping"],
    !status.ready && !status.draining && ["alarm", "there is no export that can be read"],
    connections >= 0.9 * most && ["warning", `${byId("clients-count").textContent} clients`],
    ...showExports(),
    ...showCertificates(),
  ]);
  showRefusals();
  showCache();
  say("throughput", format.rate(history.read_bytes_per_second.at(-1) ?? 0));
  say("reads", `${format.count(history.reads_per_second.at(-1) ?? 0)} /s`);
  say("latency", format.latency(history.latency_p99_seconds.at(-1)));
  charts.show(history);
}

function showAway() {
  showState("away");
  if (!answeredAt) {
    say("attention-text", "The server does not answer. It is asked again every two seconds.");
    return;
  }
  const ago = format.duration((Date.now() - answeredAt) / 1000);
  byId("attention").dataset.level = "warning";
  setIcon(byId("attention"), "away");
  say(
    "attention-text",
    `The server does not answer. What is below is ${ago} old. It is asked again every two seconds.`,
  );
}

async function ask(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

async function poll() {
  const answers = await Promise.all([ask("status.json"), ask("history.json")]).catch(() => null);
  try {
    if (answers) {
      show(...answers);
    } else {
      showAway();
    }
  } finally {
    setTimeout(poll, POLL_MS);
  }
}

byId("clients-filter").addEventListener("input", (event) => {
  filter = event.target.value.trim();
  drawClients();
});
say("host", location.host);
say("zone", Intl.DateTimeFormat().resolvedOptions().timeZone ?? "this browser");
poll();
