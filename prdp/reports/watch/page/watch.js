// The page of prdp watch: it listens to the server's events, and asks for charts, pictures and prompts when a run moves.
// All text comes in by textContent; the charts alone are markup, which the server makes and escapes.

import {showCharts} from "./watch_charts.js";
import {byId, element, fill, table} from "./watch_elements.js";
import {showPictures, showPrompts} from "./watch_pictures.js";

const REFRESH = 1500; // milliseconds between two requests for charts, however fast epochs follow each other
const FIRST_SHOWN = 6;
const wide = matchMedia("(min-width: 641px)");

let state = null; // what the last event said
let chosen = 0; // the run that is told of in full
let shown = []; // places of the runs that are compared
let ticked = false; // whether a person chose them; the first ones until then
let epochs = []; // with an evaluation, of all compared runs
let epoch = null; // chosen by the slider; null follows the newest
let source = null;
let drawn = ""; // versions of what is drawn
let heard = {}; // run -> what was announced of it last

listen();
byId("epoch").addEventListener("input", (event) => {
  const place = Number(event.target.value);
  epoch = place === epochs.length - 1 ? null : epochs[place];
  tellEpoch();
  soon("pictures", refreshPictures, 60);
});
byId("more-details").addEventListener("toggle", refreshCharts);
wide.addEventListener("change", refreshCharts);

function listen() {
  source?.close();
  source = new EventSource(`events?run=${chosen}`);
  source.addEventListener("open", () => tellConnection("live", "live"));
  source.addEventListener("error", () => tellConnection("off", "not connected, trying again"));
  source.addEventListener("state", (event) => show(JSON.parse(event.data)));
}

function tellConnection(style, text) {
  const badge = byId("connection");
  if (badge.textContent !== text) badge.textContent = text;
  badge.className = `badge ${style}`;
}

function show(next) {
  state = next;
  tellConnection("live", "live");
  const places = state.runs.map((run) => run.id);
  shown = ticked ? shown.filter((place) => places.includes(place)) : places.slice(0, FIRST_SHOWN);
  if (!places.includes(chosen)) choose(0);
  showRuns();
  showHeadline();
  if (state.details?.id === chosen) showDetails(state.details);
  fill("foot", state.version, () => [`prdp ${state.version}, from the run folders alone. Nothing is loaded from elsewhere.`]);
  announce();
  const versions = JSON.stringify([compared(), state.runs.map((run) => [run.name, run.version])]);
  if (versions !== drawn) {
    drawn = versions;
    soon("all", refresh, REFRESH, true);
  }
}

function choose(place) {
  chosen = place;
  listen();
  if (state) {
    showRuns();
    showHeadline();
    refreshPrompts();
  }
}

// The compared runs in the order of their colours; the chosen one where there is none.
function compared() {
  return shown.length ? shown : [chosen];
}

function colour(place) {
  const at = compared().indexOf(place);
  return element("span", {className: at < 0 ? "swatch" : `swatch k${at}`, "aria-hidden": "true"});
}

function showRuns() {
  const section = byId("runs");
  section.hidden = state.runs.length < 2;
  if (section.hidden) return;
  const focused = document.activeElement?.dataset?.key;
  const content = state.runs.map((run) => [run.id, run.name, run.state, run.epochs, run.done, run.reward, run.heldout, run.change, run.fault, run.problems, run.alarms]);
  fill("runs-table", JSON.stringify([content, shown, chosen]), () => {
    const heads = ["", "run", "state", "epochs", "reward", "held-out", "change", "faults, alarms"];
    const head = element("tr", {}, heads.map((text) => element("th", {scope: "col"}, [text])));
    return [element("thead", {}, [head]), element("tbody", {}, state.runs.map(runRow))];
  });
  if (focused && document.activeElement === document.body) document.querySelector(`[data-key="${focused}"]`)?.focus();
}

function runRow(run) {
  const box = element("input", {
    type: "checkbox", checked: shown.includes(run.id), "aria-label": `compare ${run.name}`, "data-key": `box${run.id}`,
    disabled: !shown.includes(run.id) && shown.length >= state.most,
    onchange: (event) => {
      ticked = true;
      shown = event.target.checked ? [...shown, run.id].sort((a, b) => a - b) : shown.filter((one) => one !== run.id);
      show(state);
    },
  });
  const name = element("button", {
    type: "button", className: "name", "aria-pressed": String(run.id === chosen), "data-key": `name${run.id}`,
    onclick: () => choose(run.id),
  }, [run.name]);
  const cell = (label, ...parts) => {
    const full = parts.filter((part) => part !== null && part !== "");
    return element("td", full.length ? {"data-label": label} : {className: "void"}, [element("span", {}, full)]);
  };
  const heldout = run.heldout && element("span", {className: "num"}, [run.heldout.score, element("span", {className: "muted"}, [` ${run.heldout.interval}`])]);
  const notes = [run.fault, run.alarms.length && `alarms: ${run.alarms.length}`, ...run.problems].filter(Boolean).join("; ");
  return element("tr", {className: run.id === chosen ? "chosen" : ""}, [
    element("td", {className: "pick"}, [box, colour(run.id)]),
    element("td", {}, [name]),
    cell("state", element("span", {className: `badge ${run.style}`}, [run.state])),
    cell("epochs", run.epochs),
    cell("reward", run.reward ? element("span", {className: "num"}, [run.reward.score]) : null),
    cell("held-out", heldout),
    cell("change", run.change ? element("span", {className: `num ${run.change.tone}`}, [run.change.difference]) : null),
    cell("faults, alarms", notes),
  ]);
}

function showHeadline() {
  const run = state.runs[chosen];
  document.title = `${run.state}: ${run.name} \u2013 prdp watch`;
  const details = state.details?.id === chosen ? state.details : null;
  const facts = [run.name, run.state, run.style, run.epochs, run.done, run.reward, run.heldout, run.change, run.fault, run.problems, run.reading, run.alarms];
  fill("headline", JSON.stringify([facts, details?.now, details?.silent, details?.started, details?.worked]), () => {
    const number = (label, value, note, tone = "") => element("div", {}, [
      element("div", {className: "label"}, [label]),
      element("div", {className: `big num ${tone}`}, [value]),
      element("div", {className: "ci num"}, [note]),
    ]);
    const numbers = [];
    const {change, heldout, reward} = run;
    if (change) {
      numbers.push(number(change.since ? `Held-out score at epoch ${change.since}` : "Held-out score before", change.before, change.before_interval));
      numbers.push(number(`at epoch ${heldout.epoch}`, change.after, change.after_interval));
      numbers.push(number("paired difference", change.difference, change.interval, change.tone));
    } else if (heldout) {
      numbers.push(number(`Held-out score at epoch ${heldout.epoch}`, heldout.score, heldout.interval));
    }
    if (reward) numbers.push(number("reward in training", reward.score, `epoch ${reward.epoch}`));
    const line = [details?.started && `started ${details.started}`, details?.worked && `${details.worked} at work`];
    const bar = run.done === null ? [] : [element("progress", {max: 1, value: run.done, "aria-label": "epochs done"})];
    const panel = element("div", {className: "panel headline"}, [
      element("div", {className: "who"}, [
        element("strong", {}, [run.name]),
        element("span", {className: `badge ${run.style}`}, [run.state]),
        element("span", {}, [run.epochs]),
        ...line.filter(Boolean).map((text) => element("span", {}, [text])),
      ]),
      ...bar,
      element("div", {className: "pair"}, numbers),
      ...(details?.now ? [element("p", {className: "note"}, [`Now: ${details.now}`])] : []),
    ]);
    const notice = (text, calm = "") => element("p", {className: `notice ${calm}`}, [text]);
    return [
      panel,
      ...(run.state === "gone" ? [notice("The folder is not there any more; below is what was read last.")] : []),
      ...(run.state === "not begun" ? [notice("No run has begun in this folder yet.", "calm")] : []),
      ...(run.fault ? [notice(`Last fault: ${run.fault}`)] : []),
      ...run.alarms.map((text) => notice(`Look at it: ${text}.`)),
      ...(details?.silent ?? []).map((text) => notice(`Silent: ${text}`)),
      ...run.problems.map((text) => notice(text)),
      ...(run.reading ? [notice(run.reading, "calm")] : []),
    ];
  });
}

function showDetails(details) {
  const pairs = [
    ["folder", details.folder], ["process", details.process], ["supervisor", details.supervisor], ...details.rates,
  ].filter(([, value]) => value);
  byId("machines").hidden = !(pairs.length || details.actors.length || details.lines.length);
  const open = byId("machines").querySelector("details")?.open ?? false;
  const key = JSON.stringify([pairs, details.actors, details.warnings, details.lines]);
  fill("machines-told", key, () => {
    const words = element("dl", {}, pairs.flatMap(([name, value]) => [element("dt", {}, [name]), element("dd", {}, [value])]));
    const actors = element("div", {className: "panel scroll", tabIndex: 0, role: "region", "aria-label": "Actors"}, [
      table(details.actor_columns, details.actors),
    ]);
    const warnings = element("ul", {className: "panel messages", "aria-label": "Warnings"}, details.warnings.map((text) => element("li", {}, [text])));
    const log = element("details", {className: "panel", open}, [
      element("summary", {}, ["Last lines of progress.log"]), element("pre", {}, [details.lines.join("\n")]),
    ]);
    return [
      element("div", {className: "panel words"}, [words]),
      ...(details.warnings.length ? [warnings] : []),
      ...(details.actors.length ? [actors] : []),
      ...(details.lines.length ? [log] : []),
    ];
  });
  byId("configuration").hidden = !details.facts.length;
  fill("facts", JSON.stringify(details.facts), () => details.facts.map(([name, value]) =>
    element("div", {}, [element("dt", {}, [name]), element("dd", {}, [value])])));
}

function announce() {
  const run = state.runs[chosen];
  const last = heard[run.id];
  const now = {state: run.state, epoch: run.heldout?.epoch};
  heard[run.id] = now;
  if (!last || (last.state === now.state && last.epoch === now.epoch)) return;
  const score = run.heldout ? `, held-out score ${run.heldout.score} at epoch ${run.heldout.epoch}` : "";
  byId("announced").textContent = `${run.name}: ${run.state}, ${run.epochs}${score}`;
}

async function refresh() {
  await refreshCharts();
  await refreshPictures();
}

async function refreshCharts() {
  const runs = compared();
  if (!state?.runs.length) return;
  document.body.classList.toggle("several", runs.length > 2);
  const found = await asked("charts", `charts?runs=${runs}&more=${byId("more-details").open ? 1 : 0}&wide=${wide.matches ? 1 : 0}`);
  if (!found) return;
  for (const section of ["heldout", "parts", "looks", "training", "speed", "more"]) {
    byId(section).hidden = section !== "more" && !found[section].length;
    showCharts(byId(section).querySelector(".charts, .lead-chart"), found[section]);
  }
  epochs = found.epochs;
  byId("pictures").hidden = byId("prompts").hidden = !epochs.length;
  const slider = byId("epoch");
  slider.max = Math.max(0, epochs.length - 1);
  // Where the evaluation that was looked at has gone, the newest one is shown.
  if (epoch !== null && !epochs.includes(epoch)) epoch = null;
  slider.value = epoch === null ? slider.max : epochs.indexOf(epoch);
  tellEpoch();
  const names = ["key", ...runs.map((place) => state.runs[place]?.name ?? "")];
  byId("differences").hidden = !found.differences.length;
  fill("differences", JSON.stringify([names, found.differences]), () => [table(names, found.differences)]);
  if (found.differences.length) byId("configuration").hidden = false;
}

function tellEpoch() {
  const at = epoch ?? epochs.at(-1) ?? 0;
  const text = epoch === null ? `${at}, the newest` : `${at} of ${epochs.at(-1)}`;
  byId("epoch-told").textContent = text;
  byId("epoch").setAttribute("aria-valuetext", `epoch ${text}`);
}

async function refreshPictures() {
  if (!epochs.length) return;
  const found = await asked("pictures", `pictures?runs=${compared()}&epoch=${epoch ?? epochs.at(-1)}`);
  if (found) showPictures(found, (place) => (compared().length > 1 ? colour(place) : null));
  await refreshPrompts();
}

async function refreshPrompts() {
  if (!epochs.length) return;
  const found = await asked("prompts", `prompts?run=${chosen}&epoch=${epoch ?? epochs.at(-1)}`);
  if (found) showPrompts(found, state.runs.length > 1 ? state.runs[chosen].name : "");
}

const latest = {}; // what is asked -> number of its last request
// The JSON at an address; null where it failed, or where a later question of the same kind was asked meanwhile.
async function asked(kind, address) {
  const mine = (latest[kind] ?? 0) + 1;
  latest[kind] = mine;
  try {
    const answer = await fetch(address);
    if (!answer.ok || latest[kind] !== mine) return null;
    return await answer.json();
  } catch {
    return null; // the badge tells of a server that is away
  }
}

const timers = {};
// Call a function in some milliseconds at the latest: once for all who ask meanwhile. `first`: at once where it rested.
function soon(name, action, delay, first = false) {
  if (timers[name]?.waiting) return;
  const since = Date.now() - (timers[name]?.called ?? 0);
  const wait = first && since >= delay ? 0 : delay;
  timers[name] = {waiting: true, called: timers[name]?.called ?? 0};
  setTimeout(() => {
    timers[name] = {waiting: false, called: Date.now()};
    action();
  }, wait);
}
