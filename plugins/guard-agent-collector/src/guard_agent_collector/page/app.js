// The page of the collector. Everything that arrives was written by somebody else, so it reaches
// the document through textContent only; the server forbids every other way (Trusted Types).

const $ = (id) => document.getElementById(id);

/** An element: `make("td", {class: "num"}, "text", child)`. Texts become text nodes. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children) element.append(typeof child === "object" ? child : document.createTextNode(String(child)));
  return element;
}

function setText(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

function say(text) { setText($("said"), text); }

// Numbers and times

const whole = new Intl.NumberFormat("en");
const count = (value) => whole.format(Math.round(value));
const short = new Intl.NumberFormat("en", {notation: "compact"});
const pad = (value, width = 2) => String(value).padStart(width, "0");

function clock(seconds, millis = true) {
  const moment = new Date(seconds * 1000);
  if (Number.isNaN(moment.getTime())) return "";
  const text = `${pad(moment.getHours())}:${pad(moment.getMinutes())}:${pad(moment.getSeconds())}`;
  return millis ? `${text}.${pad(moment.getMilliseconds(), 3)}` : text;
}

function bytes(value) {
  if (value === undefined || value === null) return "";
  if (value < 1024) return `${value} B`;
  return value < 1048576 ? `${(value / 1024).toFixed(1)} kB` : `${(value / 1048576).toFixed(1)} MB`;
}

function span(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** The mean time of a request, which is often far below a second. */
function brief(seconds) {
  if (seconds === null || seconds >= 1) return span(seconds);
  return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
}

/** The record's own time where it has one that can be read, else when it came. */
function momentOf(record) {
  const own = Date.parse(record.moment);
  return Number.isNaN(own) ? record.received : own / 1000;
}

// Talking to the collector

async function ask(path, body) {
  const request = body === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  };
  const response = await fetch(path, request);
  const said = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(said.error || said.detail || `the collector answered ${response.status}`);
  return said;
}

const state = {tab: "now", news: null, lastHeard: null, everArrived: false};

// Tabs

const tabs = [...document.querySelectorAll('[role="tab"]')];

function show(name, focus = false) {
  if (!$(name)) name = "now";
  state.tab = name;
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
    if (chosen && focus) tab.focus();
  }
  if (location.hash.slice(1) !== name) history.replaceState(null, "", `#${name}`);
  refresh();
}

$("tabs").addEventListener("click", (event) => {
  const tab = event.target.closest('[role="tab"]');
  if (tab) show(tab.getAttribute("aria-controls"));
});
$("tabs").addEventListener("keydown", (event) => {
  const at = tabs.findIndex((tab) => tab.getAttribute("aria-selected") === "true");
  const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1}[event.key];
  if (to === undefined) return;
  event.preventDefault();
  show(tabs[(to + tabs.length) % tabs.length].getAttribute("aria-controls"), true);
});
addEventListener("hashchange", () => show(location.hash.slice(1)));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("detail").hidden) closeDetail();
  const typing = event.target.closest?.("input:not([type=checkbox]), textarea, select");
  if (event.key === "/" && !typing && state.tab === "live") { event.preventDefault(); $("live-filter").focus(); }
});

/** What the present tab shows is asked for anew, at most once a second. */
const due = {timer: null, last: 0};
function refresh() {
  if (due.timer) return;
  due.timer = setTimeout(async () => {
    due.timer = null; due.last = Date.now();
    if (document.hidden) return;
    try {
      if (state.tab === "now") await drawNow();
      else if (state.tab === "agents") await drawAgents();
      else if (state.tab === "rules") await drawRules();
    } catch { /* the stream tells whether the collector is there */ }
  }, Math.max(0, 700 - (Date.now() - due.last)));
}
document.addEventListener("visibilitychange", () => { refresh(); });
setInterval(refresh, 5000);

// Now

const NAMESPACE = "http://www.w3.org/2000/svg";
const CLASSES = ["attack", "change", "diagnostic", "log"];

function drawing(name, attributes, text) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

async function drawNow() {
  const facts = await ask(`/ui/now?minutes=${encodeURIComponent($("now-window").value)}`);
  if (facts.records > 0) state.everArrived = true;
  $("now-empty").hidden = state.everArrived;
  $("now-full").hidden = !state.everArrived;
  setText($("now-blocked"), count(facts.blocked));
  setText($("now-passed"), count(facts.passed));
  setText($("now-requests"), count(facts.requests));
  setText($("now-time"), brief(facts.response_time));
  setText($("now-errors"), facts.error_rate === null ? "–" : `${(facts.error_rate * 100).toFixed(1)} %`);
  setText($("now-all"), count(facts.events + facts.metrics));
  setText($("now-records"), `in ${count(facts.records)} ${facts.records === 1 ? "record" : "records"}`);
  drawChart(facts.minutes);
  for (const name of ["addresses", "endpoints", "types"]) drawTop($(`now-${name}`), facts[name]);
}
$("now-window").addEventListener("change", () => { due.last = 0; refresh(); });

/** Steps of 1, 2 or 5 times a power of ten. */
function niceTop(value) {
  for (let step = 1; ; step *= 10) for (const factor of [1, 2, 5]) if (step * factor * 4 >= value) return step * factor * 4;
}

function drawChart(minutes) {
  const box = $("now-chart");
  const width = Math.max(240, box.clientWidth), height = 170, left = 40, bottom = 20, head = 8;
  const total = (minute) => CLASSES.reduce((sum, name) => sum + (minute.counts[name] || 0), 0);
  const top = niceTop(Math.max(4, ...minutes.map(total)));
  const picture = drawing("svg", {viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true"});
  const y = (value) => head + (height - head - bottom) * (1 - value / top);
  for (let step = 0; step <= 4; step += 1) {
    const at = y(top * step / 4);
    picture.append(drawing("line", {x1: left, x2: width, y1: at, y2: at}));
    if (step % 2 === 0) picture.append(drawing("text", {x: left - 8, y: at + 4, "text-anchor": "end"}, short.format(top * step / 4)));
  }
  const slot = (width - left) / minutes.length;
  const every = Math.ceil(minutes.length / Math.max(2, Math.floor(width / 90)));
  minutes.forEach((minute, index) => {
    let base = 0;
    const time = clock(minute.at, false).slice(0, 5);
    for (const name of CLASSES) {
      const value = minute.counts[name] || 0;
      if (!value) continue;
      const bar = drawing("rect", {
        x: left + index * slot + slot * 0.12, width: slot * 0.76, y: y(base + value),
        height: Math.max(1, y(base) - y(base + value)), "data-class": name,
      });
      bar.append(drawing("title", {}, `${time}  ${name}: ${count(value)}`));
      picture.append(bar);
      base += value;
    }
    if ((minutes.length - 1 - index) % every === 0 && index > 0) {
      picture.append(drawing("text", {x: left + (index + 0.88) * slot, y: height - 5, "text-anchor": "end"}, time));
    }
  });
  const sum = minutes.reduce((all, minute) => all + total(minute), 0);
  box.setAttribute("aria-label", `${count(sum)} events in ${minutes.length - 1} minutes, at most ${count(Math.max(...minutes.map(total)))} in one`);
  box.replaceChildren(picture);
}
addEventListener("resize", () => { due.last = 0; refresh(); });

function drawTop(list, items) {
  const most = Math.max(1, ...items.map((item) => item.count));
  list.replaceChildren(...items.map((item) => make("li", {title: item.name},
    make("span", {}, item.name),
    make("span", {}, count(item.count), make("span", {class: "quiet"}, item.blocked ? `  ${count(item.blocked)} blocked` : "")),
    make("meter", {min: 0, max: most, value: item.count, "aria-hidden": "true"}))));
  if (!items.length) list.append(make("li", {class: "none"}, "none in this window"));
}

function drawPaste(facts) {
  const key = facts.api_key ? "THE-KEY-OF-THIS-COLLECTOR" : "local-key-0000";
  setText($("paste-app"), `SecurityConfig(enable_agent=True, agent_api_key="${key}", agent_endpoint="${facts.endpoint}", enable_dynamic_rules=True)`);
  const header = facts.api_key ? ` -H 'X-API-Key: ${key}'` : "";
  setText($("paste-curl"), `curl ${facts.endpoint}/api/v1/events -H 'Content-Type: application/json'${header} -d '{"events":[{"event_type":"ip_banned","ip_address":"203.0.113.9","action_taken":"banned","endpoint":"/login","reason":"sent by hand"}]}'`);
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText($(button.dataset.copy).textContent);
    setText(button, "Copied"); say("copied");
  } catch {
    getSelection().selectAllChildren($(button.dataset.copy));
    setText(button, "Selected"); say("selected: copy it with the keyboard");
  }
  setTimeout(() => setText(button, "Copy"), 1500);
});

// Live

const MAX_RECORDS = 3000, MAX_GROUPS = 2000, MAX_ROWS = 250;
const live = {
  records: [], groups: new Map(), types: new Map(), off: new Set(["metrics", "diagnostics"]), rows: new Map(),
  paused: false, waiting: [], arrived: 0, frozen: 0, open: null, opener: null, missed: 0, planned: false,
};
const TOGETHER = {metric: "metrics", diagnostic: "diagnostics"};
const chipOf = (record) => TOGETHER[record.class] || record.type;

function take(records) {
  if (live.paused) {
    live.waiting.push(...records);
    live.frozen += Math.max(0, live.waiting.length - 5000);
    live.waiting = live.waiting.slice(-5000);
    for (const record of records) live.arrived += record.count;
    setText($("live-pause"), `Resume (${count(live.arrived)} new)`);
    return;
  }
  for (const record of records) {
    const chip = chipOf(record);
    const known = live.types.get(chip) || {count: 0, class: record.class};
    known.count += record.count;
    live.types.set(chip, known);
    collapse(record);
  }
  live.records.push(...records);
  live.records = live.records.slice(-MAX_RECORDS);
  for (const key of live.groups.keys()) {
    if (live.groups.size <= MAX_GROUPS) break;
    live.groups.delete(key);
  }
  planLive();
}

/** What the records of a row have in common; of a sample that is the type alone. */
function likeness(record) {
  if (!$("live-collapse").checked) return `#${record.id}`;
  if (record.rollup === "sample") return JSON.stringify([record.type]);
  return JSON.stringify([record.type, record.ip, record.endpoint, record.method, record.action, record.reason.replace(/\d+/g, "#")]);
}

/** Put a record into the row of those that say the same, or into one of its own. */
function collapse(record) {
  const key = likeness(record), group = live.groups.get(key);
  const first = record.first ?? momentOf(record), last = record.last ?? momentOf(record);
  live.groups.delete(key);  // a map keeps the order of insertion: the newest is the last
  live.groups.set(key, {
    key, record, count: (group?.count ?? 0) + record.count, records: (group?.records ?? 0) + 1,
    first: Math.min(group?.first ?? first, first), last: Math.max(group?.last ?? last, last),
    lasted: Boolean(group?.lasted) || record.first !== null,
  });
}

/** "12:00:03 to 12:00:13, a sample: 1 in 100 is sent"; empty for what stands for itself. */
function during(group) {
  const parts = group.lasted ? [`${clock(group.first, false)} to ${clock(group.last, false)}`] : [];
  if (group.record.rollup === "sample") parts.push(sample(group.record));
  return parts.join(", ");
}

function sample(record) {
  return record.rate ? `a sample: 1 in ${count(1 / record.rate)} is sent` : "a sample";
}

function planLive() {
  if (live.planned) return;
  live.planned = true;
  requestAnimationFrame(() => { live.planned = false; drawLive(); });
}

function drawLive() {
  drawChips();
  const words = $("live-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [];
  let matching = 0;
  for (const group of [...live.groups.values()].reverse()) {
    const record = group.record;
    if (live.off.has(chipOf(record))) continue;
    const text = [record.type, record.ip, record.endpoint, record.method, record.status, record.action, record.reason, record.project].join(" ").toLowerCase();
    if (!words.every((word) => text.includes(word))) continue;
    matching += 1;
    if (wanted.length < MAX_ROWS) wanted.push(group);
  }
  const body = $("live-rows");
  const keep = new Set(wanted.map((group) => group.key));
  for (const [key, row] of live.rows) if (!keep.has(key)) { row.remove(); live.rows.delete(key); }
  let place = body.firstChild;
  for (const group of wanted) {
    let row = live.rows.get(group.key);
    if (!row) { row = newRow(); live.rows.set(group.key, row); }
    fillRow(row, group);
    if (row === place) place = place.nextSibling;
    else {
      const focused = document.activeElement === row;
      body.insertBefore(row, place);
      if (focused) row.focus({preventScroll: true});
    }
  }
  const empty = $("live-empty");
  empty.hidden = wanted.length > 0;
  setText(empty, live.groups.size ? "Nothing fits the filter and the chosen types." : "Nothing has arrived yet: the first tab has a line to paste.");
  const notes = [];
  if (live.missed) notes.push(`${count(live.missed)} older records are stored and not listed here`);
  if (matching > wanted.length) notes.push(`the newest ${count(wanted.length)} of ${count(matching)} rows are shown`);
  $("live-missed").hidden = !notes.length;
  setText($("live-missed"), notes.join("; "));
}

function newRow() {
  const row = make("tr", {tabindex: 0, class: "new"});
  for (let cell = 0; cell < 6; cell += 1) row.append(make("td"));
  row.cells[1].append(make("span", {class: "type"}), make("span", {class: "times", hidden: true}), make("span", {class: "during"}));
  return row;
}

function fillRow(row, group) {
  const record = group.record, cells = row.cells;
  row.dataset.id = record.id;
  setText(cells[0], clock(momentOf(record)));
  const [type, times, lasting] = cells[1].children;
  setText(type, record.type);
  type.dataset.class = record.class;
  times.hidden = group.count < 2;
  setText(times, `×${count(group.count)}`);
  times.title = `${count(group.count)} like this in ${count(group.records)} ${group.records === 1 ? "record" : "records"}`;
  setText(lasting, during(group));
  setText(cells[2], record.ip);
  setText(cells[3], `${record.method} ${record.endpoint}`.trim() + (record.status ? ` → ${record.status}` : ""));
  setText(cells[4], record.action);
  cells[4].className = record.outcome;
  setText(cells[5], record.class === "metric" ? String(record.value ?? "") : record.reason);
  for (const cell of [cells[3], cells[5]]) cell.title = cell.textContent;
  row.setAttribute("aria-selected", String(live.open === record.id));
}

function drawChips() {
  const box = $("live-chips");
  const known = [...live.types].sort((one, other) => other[1].count - one[1].count).slice(0, 24);
  for (const [name, {count: total, class: kind}] of known) {
    let chip = [...box.children].find((child) => child.dataset.type === name);
    if (!chip) {
      chip = make("button", {class: "chip", "data-type": name, "data-class": kind}, `${name} `, make("b"));
      box.append(chip);
    }
    chip.setAttribute("aria-pressed", String(!live.off.has(name)));
    setText(chip.lastChild, count(total));
  }
}

$("live-chips").addEventListener("click", (event) => {
  const chip = event.target.closest(".chip");
  if (!chip) return;
  const name = chip.dataset.type;
  if (!live.off.delete(name)) live.off.add(name);
  drawLive();
});
$("live-filter").addEventListener("input", planLive);
$("live-collapse").addEventListener("change", () => {
  live.groups.clear();
  for (const record of live.records) collapse(record);
  planLive();
});
$("live-pause").addEventListener("click", () => {
  live.paused = !live.paused;
  $("live-pause").setAttribute("aria-pressed", String(live.paused));
  if (live.paused) { setText($("live-pause"), "Resume"); return; }
  setText($("live-pause"), "Pause");
  const waiting = live.waiting;
  live.missed += live.frozen;
  live.waiting = []; live.frozen = live.arrived = 0;
  take(waiting);
});
$("live-rows").addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row) openDetail(row);
});
$("live-rows").addEventListener("keydown", (event) => {
  const row = event.target.closest("tr");
  if (!row) return;
  const to = {ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling}[event.key];
  if (to) { event.preventDefault(); to.focus(); }
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); openDetail(row); }
});

// What redaction and truncation leave behind.
const MARKS = /\[REDACTED[^\]\n]{0,60}\]|\[TRUNCATED\]|\[truncated\]|\[filtered\]|hmac:[0-9a-f]{16,64}/g;
const LONGEST = 65536;

async function openDetail(row) {
  live.opener = row;
  const id = Number(row.dataset.id);
  live.open = id;
  drawLive();
  $("detail").hidden = false;
  setText($("detail-title"), "Record");
  setText($("detail-marks"), "loading");
  $("detail-facts").replaceChildren(); $("detail-text").replaceChildren(); $("detail-block").hidden = true;
  $("detail").focus();
  let found;
  try { found = await ask(`/ui/records/${id}`); }
  catch (error) { setText($("detail-marks"), `It cannot be shown: ${error.message}`); return; }
  if (live.open !== id) return;
  const record = found.record;
  setText($("detail-title"), record.type);
  const text = found.text.slice(0, LONGEST);
  let marked = 0, at = 0;
  const parts = [];
  for (const match of text.matchAll(MARKS)) {
    parts.push(text.slice(at, match.index), make("mark", {}, match[0]));
    at = match.index + match[0].length;
    marked += 1;
  }
  $("detail-text").replaceChildren(...parts, text.slice(at));
  const cut = found.text.length > LONGEST || found.bytes > found.text.length;
  setText($("detail-marks"), (marked ? `${marked} ${marked === 1 ? "place was" : "places were"} redacted or cut off before it left the app.` : "Nothing in it was redacted.")
    + (cut && found.text.length >= LONGEST ? ` Only the first ${bytes(LONGEST)} of ${bytes(found.bytes)} are shown.` : ""));
  const facts = [["received", clock(record.received)], ["agent", record.agent || "unknown"], ["project", record.project || "–"], ["size", bytes(found.bytes)]];
  if (record.count > 1) facts.unshift(["stands for", `×${[count(record.count), during({record, ...record, lasted: record.first !== null})].filter(Boolean).join(", ")}`]);
  $("detail-facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  $("detail-raw").href = `/ui/records/${id}/raw`;
  const blockable = /^[0-9a-fA-F.:]{3,45}$/.test(record.ip);
  $("detail-block").hidden = !blockable;
  if (blockable) { setText($("detail-block"), `Block ${record.ip} …`); $("detail-block").dataset.ip = record.ip; }
}

function closeDetail() {
  $("detail").hidden = true;
  live.open = null;
  drawLive();
  if (live.opener?.isConnected) live.opener.focus();
}
$("detail-close").addEventListener("click", closeDetail);
$("detail-block").addEventListener("click", () => {
  const lines = $("rule-ips").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const address = $("detail-block").dataset.ip;
  if (!lines.includes(address)) lines.push(address);
  $("rule-ips").value = lines.join("\n");
  formToJson();
  closeDetail();
  show("rules");
  $("rule-publish").focus();
});

// Agents

async function drawAgents() {
  const {now, agents} = await ask("/ui/agents");
  const groups = new Map();
  for (const agent of agents) {
    const key = `${agent.agent}\n${agent.project}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(agent);
  }
  $("agents-empty").hidden = groups.size > 0;
  $("agents-list").replaceChildren(...[...groups.values()].map((members) => agentCard(members, now)));
}

const HEALTH = {healthy: "good", degraded: "warn", failed: "bad"};
const BREAKER = {closed: "good", half_open: "warn", open: "bad", paused: "warn"};

function agentCard(members, now) {
  const whole = members.find((member) => member.pid === 0) || members[0];
  const seen = Math.max(...members.map((member) => member.seen));
  const reports = members.filter((member) => member.report);
  const facts = [
    whole.version || "unknown version",
    `${count(whole.counted)} events and metrics in ${count(whole.records)} records`,
    `last seen ${span(now - seen)} ago`,
    whole.watching ? "watches for rules" : whole.asked_for_rules ? `asked for rules ${span(now - whole.asked_for_rules)} ago` : "did not ask for rules",
  ];
  const card = make("article", {class: "card agent"},
    make("div", {class: "bar"}, make("h2", {}, whole.project || "no project"),
      make("code", {class: "quiet"}, whole.agent), make("span", {class: "grow"}), make("span", {class: "quiet"}, facts.join(" · "))));
  if (!reports.length) {
    card.append(make("p", {class: "note"}, "No status report yet. Agents of this version report every few seconds while this collector asks for it; others at their status_interval."));
    return card;
  }
  const rows = reports.flatMap((member) => reportRows(member, now));
  card.append(make("div", {class: "scroll"}, make("table", {}, make("thead", {}, make("tr", {},
    ...["Process", "State", "Up", "Reported", "Destination", "Delivered", "Waiting", "Oldest", "Dropped", "Breaker", "Plan"].map((name) => make("th", {scope: "col"}, name)))),
  make("tbody", {}, ...rows))));
  const errors = reports.flatMap((member) => member.report.errors || []).slice(0, 5);
  for (const error of errors) card.append(make("p", {class: "note", "data-state": "warn"}, error));
  return card;
}

function reportRows(member, now) {
  const report = member.report;
  const places = Object.entries(report.destinations || {});
  if (!places.length) places.push(["–", {}]);
  return places.map(([name, books], index) => {
    const first = index === 0;
    const dropped = Object.entries(books.dropped || {}).filter(([, value]) => value).map(([reason, value]) => `${reason} ${count(value)}`);
    if (books.buried) dropped.push(`buried ${count(books.buried)}`);
    const plan = report.plan || {};
    const steps = ["aggregator", "enrichers", "store", "transports", "rules"].flatMap((part) => (Array.isArray(plan[part]) ? plan[part] : []).map((step) => String(step).split(" ")[0]));
    const cell = (label, look, ...children) => make("td", {"data-label": label, class: look}, ...children);
    const badge = (text, look) => make("span", {class: "badge", "data-state": look}, text);
    return make("tr", {},
      cell("Process", null, first ? (member.pid > 0 ? member.pid : "–") : ""),
      cell("State", null, first ? badge(report.status ?? "–", HEALTH[report.status]) : ""),
      cell("Up", null, first ? span(report.uptime) : ""),
      cell("Reported", null, first ? `${span(now - member.reported)} ago` : ""),
      cell("Destination", null, name), cell("Delivered", null, count(books.delivered || 0) + (books.merged ? ` (${count(books.merged)} merged)` : "")),
      cell("Waiting", null, `${count(books.pending || 0)} (${bytes(books.pending_bytes || 0)})`),
      cell("Oldest", null, span(books.oldest_seconds)),
      cell("Dropped", "wraps", dropped.join(", ") || "none"),
      cell("Breaker", null, badge(books.breaker ?? "–", BREAKER[books.breaker])),
      cell("Plan", "wraps", first ? steps.join(" → ") : ""));
  });
}

// Wire

const FAULTS = [
  ["500", "500", "answer 500 Internal Server Error"],
  ["429", "429", "answer 429 with Retry-After: 3"],
  ["413", "413", "refuse batches of more than one record as too large"],
  ["hang", "hang", "do not answer for up to a minute"],
  ["drop", "drop connection", "hang up before anything is stored"],
  ["lose_ack", "lose acknowledgement", "store the records, then hang up instead of answering: the agent must send them again"],
];
const wire = {requests: []};
$("wire-reports").addEventListener("change", () => $("wire-table").classList.toggle("all", $("wire-reports").checked));

for (const [kind, label, hint] of FAULTS) {
  $("wire-faults").append(make("button", {"data-fault": kind, title: hint, "aria-pressed": "false"}, label));
}
$("wire-faults").addEventListener("click", (event) => {
  const button = event.target.closest("[data-fault]");
  if (button) breakIt(button.dataset.fault);
});
$("wire-mend").addEventListener("click", () => breakIt(null));
$("broken-mend").addEventListener("click", () => breakIt(null));

async function breakIt(kind) {
  const wanted = $("wire-count").value;
  try { drawFault(await ask("/ui/fault", {kind, count: kind && wanted ? Number(wanted) : null})); }
  catch (error) { setText($("wire-hint"), `That did not work: ${error.message}`); }
}

function drawFault(fault) {
  for (const button of $("wire-faults").children) button.setAttribute("aria-pressed", String(button.dataset.fault === fault.kind));
  $("wire-mend").disabled = fault.kind === null;
  $("broken").hidden = fault.kind === null;
  const known = FAULTS.find(([kind]) => kind === fault.kind);
  if (known) setText($("broken-text"), `Broken on purpose: ${known[1]}, ${fault.left === null ? "until you mend it" : `for ${fault.left} more ${fault.left === 1 ? "request" : "requests"}`}.`);
}

function takeRequests(requests) {
  wire.requests.push(...requests);
  wire.requests = wire.requests.slice(-500);
  $("wire-empty").hidden = wire.requests.length > 0;
  const refused = wire.requests.filter((request) => request.status >= 400);
  $("now-refused").hidden = !refused.length;
  if (refused.length) setText($("now-refused"), `Requests came, but were refused: ${refused.at(-1).status} ${refused.at(-1).detail}. See Wire.`);
  const body = $("wire-rows");
  const newest = wire.requests.slice(-requests.length).map(requestRow).reverse();
  body.prepend(...newest);
  while (body.children.length > 500) body.lastChild.remove();
}

const SIGNATURES = {none: "–", valid: "valid", wrong: "wrong", missing: "missing", unchecked: "not checked"};

function requestRow(request) {
  const ratio = request.wire && request.size > request.wire ? ` (${(request.size / request.wire).toFixed(1)}×)` : "";
  const remarks = [];
  if (request.fault) remarks.push(`broken: ${request.fault.replace("_", " ")}`);
  if (request.encrypted) remarks.push("encrypted");
  if (request.replayed) remarks.push("replayed");
  if (request.detail && !request.fault) remarks.push(request.detail);
  const look = request.status === null || request.status === undefined ? "warn" : request.status < 300 ? "good" : request.status < 500 ? "warn" : "bad";
  const cells = [
    clock(request.received), `${request.method} ${request.path}`, request.status ?? "hung up",
    request.records === undefined ? "" : count(request.records), request.duplicates ? count(request.duplicates) : "",
    bytes(request.size), bytes(request.wire) + ratio, request.ms === undefined ? "" : request.ms.toFixed(1),
    SIGNATURES[request.signature] ?? "–", remarks.join(", "),
  ];
  const row = make("tr", {"data-state": look, "data-report": request.report || request.path.endsWith("/status")}, ...cells.map((text, index) => make("td", {class: index > 2 && index < 8 ? "num" : null}, text)));
  return row;
}

function drawForward(forward) {
  $("wire-forward").hidden = !forward;
  if (!forward) return;
  $("wire-forward").dataset.state = forward.last_error ? "warn" : "";
  setText($("wire-forward"), `Forwarding to ${forward.url}: ${count(forward.forwarded)} passed on, ${count(forward.waiting)} waiting, ${count(forward.given_up)} given up${forward.last_error ? ` (${forward.last_error})` : ""}.`);
}

// Rules

const rules = {publications: "", checking: 0, timer: null, busy: false};
const lines = (id) => $(id).value.split(/[\n,]/).map((line) => line.trim()).filter(Boolean);

function readJson() {
  const document_ = JSON.parse($("rule-json").value || "{}");
  if (typeof document_ !== "object" || document_ === null || Array.isArray(document_)) throw new Error("it is not an object");
  return document_;
}

function formToJson() {
  let rule;
  try { rule = readJson(); } catch { rule = {}; }
  const set = (name, value, isSet) => { if (isSet) rule[name] = value; else delete rule[name]; };
  const list = (name, values) => set(name, values, values.length);
  list("ip_blacklist", lines("rule-ips"));
  list("ip_whitelist", lines("rule-allow"));
  list("blocked_user_agents", $("rule-agents").value.split("\n").map((line) => line.trim()).filter(Boolean));
  list("blocked_countries", lines("rule-countries").map((name) => name.toUpperCase()));
  const limit = Number($("rule-limit").value), seconds = Number($("rule-window").value) || 60;
  set("global_rate_limit", limit, limit > 0);
  set("global_rate_window", seconds, limit > 0);
  set("emergency_mode", true, $("rule-emergency").checked);
  set("message", $("rule-message").value, $("rule-message").value);
  const life = Number($("rule-expires").value);
  set("expires_at", new Date(Date.now() + life * 1000).toISOString(), life > 0);
  $("rule-json").value = JSON.stringify(rule, null, 2);
  checkSoon();
}

function jsonToForm() {
  let rule;
  try { rule = readJson(); }
  catch (error) { verdict("bad", `The JSON cannot be read: ${error.message}`); return; }
  const text = (value) => (Array.isArray(value) ? value.join("\n") : "");
  $("rule-ips").value = text(rule.ip_blacklist);
  $("rule-allow").value = text(rule.ip_whitelist);
  $("rule-agents").value = text(rule.blocked_user_agents);
  $("rule-countries").value = Array.isArray(rule.blocked_countries) ? rule.blocked_countries.join(", ") : "";
  $("rule-limit").value = rule.global_rate_limit ?? "";
  $("rule-window").value = rule.global_rate_window ?? "";
  $("rule-emergency").checked = rule.emergency_mode === true;
  $("rule-message").value = typeof rule.message === "string" ? rule.message : "";
  $("rule-expires").value = "";
  checkSoon();
}

function verdict(look, text) {
  $("rule-verdict").dataset.state = look;
  setText($("rule-verdict"), text);
}

/** What is published: the JSON without what the collector fills in by itself. */
function request() {
  const signature = $("rule-signature").value.trim();
  if (signature) return {text: $("rule-json").value, signature};
  return {text: $("rule-json").value || "{}"};
}

function isEmpty() {
  try { return !Object.keys(readJson()).some((name) => !["rule_id", "version", "timestamp", "ttl"].includes(name)); } catch { return false; }
}

function checkSoon() {
  clearTimeout(rules.timer);
  rules.timer = setTimeout(check, 350);
}

async function check() {
  if (rules.busy) return;
  if (isEmpty()) { verdict("", "Without an entry these rules take back what was published before. Bans last until they end, or are lifted here."); return; }
  const number = rules.checking += 1;
  try {
    const found = await ask("/ui/rules/check", request());
    if (number === rules.checking) told(found, "Agents would take these rules.");
  } catch (error) { if (number === rules.checking) verdict("bad", `Agents would refuse them: ${error.message}`); }
}

function told(found, text) {
  if (found.left_out?.length) verdict("warn", `${text} They would leave out: ${found.left_out.join("; ")}`);
  else verdict("good", text);
}

$("rules-form").addEventListener("input", (event) => {
  if (event.target.id === "rule-json") jsonToForm();
  else if (event.target.id === "rule-signature") checkSoon();
  else formToJson();
});
$("rules-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (rules.busy) return;
  clearTimeout(rules.timer);
  rules.checking += 1;
  rules.busy = true;
  $("rule-publish").disabled = true;
  try {
    const found = await ask("/ui/rules", request());
    told(found, `Published: ${found.rule_id} version ${found.version}.`);
    due.last = 0;
    refresh();
  } catch (error) { verdict("bad", `Not published: ${error.message}`); }
  rules.busy = false;
  $("rule-publish").disabled = false;
});
$("rule-reset").addEventListener("click", () => {
  $("rules-form").reset();
  $("rule-json").value = "{}";
  checkSoon();
});

async function drawRules() {
  const {publications} = await ask("/ui/rules");
  const text = JSON.stringify(publications);
  if (text === rules.publications) return;
  rules.publications = text;
  $("rules-empty").hidden = publications.length > 0;
  const open = new Set([...document.querySelectorAll("#rules-history details[open]")].map((details) => details.dataset.id));
  $("rules-history").replaceChildren(...publications.map((publication, index) => publicationCard(publication, index === 0, open)));
}

function publicationCard(publication, present, open) {
  const since = (moment) => (moment === null ? "–" : span(moment - publication.published));
  const card = make("article", {class: "publication"},
    make("div", {class: "bar wrap"}, make("h3", {}, `${publication.rule_id} version ${publication.version}`),
      present ? make("span", {class: "badge", "data-state": "good"}, "in force") : "",
      publication.signed ? make("span", {class: "badge"}, "signed") : "",
      make("span", {class: "quiet"}, `at ${clock(publication.published, false)}`)));
  if (publication.agents.length) {
    card.append(make("table", {}, make("thead", {}, make("tr", {}, ...["Agent", "Fetched after", "Applied after"].map((name) => make("th", {scope: "col"}, name)))),
      make("tbody", {}, ...publication.agents.map((agent) => make("tr", {},
        make("td", {}, agent.project || "no project", " ", make("code", {class: "quiet"}, agent.agent.slice(0, 8))),
        make("td", {class: "fetched"}, since(agent.fetched)), make("td", {class: "applied"}, since(agent.applied)))))));
  } else card.append(make("p", {class: "note"}, "No agent has fetched it yet."));
  card.append(make("details", {"data-id": publication.id, open: open.has(String(publication.id))},
    make("summary", {}, "JSON"), make("pre", {}, publication.text),
    make("button", {type: "button", on: {click: () => {
      let rule;
      try { rule = JSON.parse(publication.text); } catch { return; }
      for (const name of ["version", "timestamp"]) delete rule[name];
      $("rule-json").value = JSON.stringify(rule, null, 2);
      jsonToForm();
      $("rule-publish").focus();
    }}}, "Edit this one")));
  return card;
}

// The stream

function connect() {
  const stream = new EventSource("/ui/stream");
  stream.addEventListener("open", () => linked("live"));
  stream.addEventListener("error", () => {
    linked("lost");
    // Refused for good, as with 401 or 503: the browser does not try again by itself then.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  });
  stream.addEventListener("news", (event) => {
    const news = JSON.parse(event.data);
    state.lastHeard = Date.now();
    linked("live");
    if (news.fresh && (live.groups.size || wire.requests.length)) forget();
    if (news.records.length) state.everArrived = true;
    live.missed += news.missed;
    take(news.records);
    if (news.requests.length) takeRequests(news.requests);
    drawFault(news.state.fault);
    drawForward(news.state.forward);
    drawPaste(news.state);
    setText($("foot"), `guard-agent ${news.state.version} · ${news.state.endpoint} · ${bytes(news.state.used_bytes)} of ${bytes(news.state.max_bytes)} used`);
    refresh();
  });
}

/** Another database than the last time: what is listed is not in it. */
function forget() {
  live.groups.clear(); live.types.clear(); live.rows.clear(); live.records = []; live.waiting = []; live.missed = live.arrived = live.frozen = 0;
  $("live-rows").replaceChildren(); $("live-chips").replaceChildren();
  wire.requests = []; $("wire-rows").replaceChildren();
}

function linked(how) {
  const link = $("link");
  if (link.dataset.state === how) return;
  link.dataset.state = how;
  setText(link, {live: "live", lost: "connection lost", connecting: "connecting"}[how]);
  $("lost").hidden = how !== "lost";
  setText($("lost-since"), state.lastHeard ? clock(state.lastHeard / 1000, false) : "before");
}

show(location.hash.slice(1) || "now");
drawLive();
formToJson();
connect();
