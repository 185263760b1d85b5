// Charts that the server drew, with a cursor: by the pointer, and by the arrow keys once a chart has the focus.

import {element} from "./watch_elements.js";

export function showCharts(place, charts) {
  const known = new Map([...place.children].map((figure) => [figure.dataset.title, figure]));
  const figures = charts.map((chart) => {
    const figure = known.get(chart.title) ?? newFigure(chart.title);
    redraw(figure, chart);
    return figure;
  });
  // Moving an element takes the focus from it: only where their order has changed.
  const same = figures.length === place.children.length && figures.every((figure, at) => figure === place.children[at]);
  if (!same) place.replaceChildren(...figures);
}

function newFigure(title) {
  const plot = element("div", {className: "plot", tabIndex: 0, role: "slider", "aria-valuemin": 0});
  const readout = element("div", {className: "readout", "aria-hidden": "true"});
  const heading = element("h3", {}, [title]);
  const note = element("figcaption");
  const figure = element("figure", {className: "panel chartbox", "data-title": title}, [
    element("div", {className: "top"}, [heading]), note, plot, readout,
  ]);
  plot.addEventListener("pointermove", (event) => point(figure, stripOf(event.target)));
  plot.addEventListener("pointerdown", (event) => point(figure, stripOf(event.target)));
  plot.addEventListener("pointerleave", () => document.activeElement !== plot && point(figure, -1));
  plot.addEventListener("blur", () => point(figure, -1));
  plot.addEventListener("focus", () => point(figure, strips(figure).length - 1));
  plot.addEventListener("keydown", (event) => {
    const last = strips(figure).length - 1;
    const at = figure.at ?? last;
    const to = {
      ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - 10, PageUp: at + 10, Home: 0, End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    point(figure, Math.min(last, Math.max(0, to)));
  });
  return figure;
}

function redraw(figure, chart) {
  if (figure.drawn === chart.svg) return;
  const first = figure.drawn === undefined;
  figure.drawn = chart.svg;
  const [, note, plot] = figure.children;
  note.textContent = chart.note;
  note.hidden = !chart.note;
  plot.innerHTML = chart.svg;
  const svg = plot.querySelector("svg");
  svg.setAttribute("aria-hidden", "true");
  // The tooltips of the browser would lie over the cursor.
  figure.texts = strips(figure).map((strip) => {
    const title = strip.querySelector("title");
    const text = title.textContent.split("\n").join("; ");
    title.remove();
    return text;
  });
  plot.setAttribute("aria-label", `${chart.title}. ${chart.summary}`);
  plot.setAttribute("aria-valuemax", Math.max(0, figure.texts.length - 1));
  const last = figure.texts.length - 1;
  if (first || figure.at === undefined || figure.at < 0) point(figure, -1);
  else point(figure, Math.min(figure.at, last));
}

function strips(figure) {
  return [...figure.children[2].querySelectorAll("svg > g")];
}

function stripOf(target) {
  const strip = target.closest?.("svg > g");
  return strip ? [...strip.parentNode.querySelectorAll(":scope > g")].indexOf(strip) : -1;
}

// Put the cursor on a strip of the chart; -1 takes it away.
function point(figure, at) {
  const [, , plot, readout] = figure.children;
  plot.querySelector("svg > g.on")?.classList.remove("on");
  figure.at = at < 0 ? undefined : at;
  const shown = at < 0 ? figure.texts.length - 1 : at;
  if (at >= 0) strips(figure)[at]?.classList.add("on");
  readout.textContent = at < 0 ? "" : figure.texts[at] ?? "";
  plot.setAttribute("aria-valuenow", Math.max(0, shown));
  plot.setAttribute("aria-valuetext", figure.texts[shown] ?? "no values");
}
