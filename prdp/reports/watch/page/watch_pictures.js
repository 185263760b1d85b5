// Held-out pictures beside those from before, and lists of prompts.

import {byId, element, fill, table} from "./watch_elements.js";

const PIXELS = 160; // narrower pictures are shown pixel by pixel

// `colour`: the mark of a run, by its place; nothing where there is one run.
export function showPictures({columns, cards}, colour) {
  const place = byId("cards");
  const form = JSON.stringify([columns.length, cards.map((card) => [card.text, card.rows.length])]);
  if (place.form !== form) {
    place.form = form;
    place.className = columns.length > 3 ? "cards wide" : "cards";
    place.replaceChildren(...cards.map((card) => newCard(card, columns.length)));
  }
  cards.forEach((card, number) => {
    const shots = place.children[number].querySelector(".shots");
    columns.forEach((column, at) => {
      const mark = column.epoch === 0 && at === 0 ? null : colour(column.run);
      const text = column.epoch === 0 ? "before" : `epoch ${column.epoch}`;
      const head = shots.children[at];
      const key = `${text} ${mark?.className}`;
      if (head.dataset.key === key) return;
      Object.assign(head, {title: `${column.name}, ${column.when}`}).dataset.key = key;
      head.replaceChildren(...(mark ? [mark, " "] : []), text);
    });
    card.rows.flat().forEach((shot, at) => showShot(shots.children[columns.length + at], shot));
  });
}

function newCard(card, columns) {
  const heads = Array.from({length: columns}, () => element("div", {className: "head"}));
  const shots = Array.from({length: columns * card.rows.length}, () => element("div", {className: "shot"}));
  const grid = element("div", {className: "shots"}, [...heads, ...shots]);
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(64px, 1fr))`;
  return element("figure", {className: "panel card"}, [element("figcaption", {}, [card.text]), grid]);
}

function showShot(place, shot) {
  const key = JSON.stringify(shot);
  if (place.shot === key) return;
  place.shot = key;
  if (!shot) return place.replaceChildren(element("div", {className: "missing"}, ["no picture"]));
  let [image, value] = place.children;
  if (image?.tagName !== "IMG") {
    [image, value] = [picture(), element("span", {className: "num"})];
    place.replaceChildren(image, value);
  }
  image.alt = shot.alt;
  image.src = shot.picture;
  value.textContent = shot.score;
  value.className = `num ${shot.tone}`;
}

function picture() {
  return element("img", {
    decoding: "async",
    onload: (event) => event.target.classList.toggle("pixels", event.target.naturalWidth < PIXELS),
    onerror: (event) => event.target.replaceWith(element("div", {className: "missing"}, ["no picture"])),
  });
}

// `name`: of the run, where there are several.
export function showPrompts({epoch, since, lists, skills}, name) {
  const run = name ? `Of ${name}` : "By the mean score of a prompt's images";
  const beside = since === null ? "" : `, beside epoch ${since}: the same prompts and noise`;
  byId("prompts-told").textContent = epoch === null ? "No evaluation yet." : `${run}, at epoch ${epoch}${beside}.`;
  fill("lists", JSON.stringify(lists), () => lists.map((list) => element("div", {className: "panel list"}, [
    element("h3", {}, [list.title]), element("ol", {}, list.rows.map((row) => promptRow(row, since !== null))),
  ])));
  byId("skills").hidden = !skills.length;
  fill("skills", JSON.stringify(skills), () => {
    const heads = ["skill", "before", "now", "difference"];
    const made = table(heads, skills.map((skill) => [skill.name, skill.before, skill.after, `${skill.difference} ${skill.interval}`]));
    skills.forEach((skill, at) => skill.tone && made.tBodies[0].rows[at].lastChild.classList.add(skill.tone));
    return [made];
  });
}

function promptRow(row, compared) {
  const thumb = row.picture ? picture() : null;
  if (thumb) {
    thumb.alt = "";
    thumb.src = row.picture;
  }
  const was = compared ? [element("small", {}, [`${row.before} `, element("span", {className: row.tone}, [row.difference])])] : [];
  return element("li", {}, [
    ...(thumb ? [element("div", {className: "thumb"}, [thumb])] : []),
    element("span", {className: "text"}, [row.text]),
    element("span", {className: "value num"}, [row.now, ...was]),
  ]);
}
