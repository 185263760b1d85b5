// Elements made without markup: every text is a text node.

export function byId(id) {
  return document.getElementById(id);
}

export function element(tag, attributes = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

// Replace what an element holds, where its content has changed.
export function fill(id, key, children) {
  const place = byId(id);
  if (place.filledBy === key) return;
  place.filledBy = key;
  place.replaceChildren(...children());
}

export function table(heads, rows) {
  const head = element("tr", {}, heads.map((text) => element("th", {scope: "col"}, [text])));
  const body = rows.map((row) => element("tr", {}, row.map((text) => element("td", {}, [text]))));
  return element("table", {}, [element("thead", {}, [head]), element("tbody", {}, body)]);
}
