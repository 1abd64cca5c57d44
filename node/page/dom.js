// The only ways in which this page changes itself. What peers sent goes into textContent and
// attributes that cannot run anything; the server's Content-Security-Policy forbids the rest.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function html(name, className = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  return made;
}

export function svg(name, attributes = {}) {
  return set(document.createElementNS(SVG, name), attributes);
}

export function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
  return node;
}

// Untouched where it says so already: a screen reader would read it again.
export function say(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
  return node;
}

// The children of `parent`, one for each item, changed in place: focus and reading position stay.
export function keyed(parent, items, key, make, update) {
  const left = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    const child = left.get(name) ?? make(item);
    child.dataset.key = name;
    left.delete(name);
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
    update(child, item);
  }
  for (const child of left.values()) child.remove();
}

// A table's rows. A cell is a text, or {text, kind: a class, share: 0 to 1 for a bar}.
export function rows(section, items, key, cells) {
  const body = section.querySelector("tbody");
  keyed(body, items, key, () => html("tr"), (row, item) => {
    cells(item).forEach((given, index) => {
      const cell = given?.text === undefined ? { text: given } : given;
      const made = row.children[index] ?? row.appendChild(html(index ? "td" : "th"));
      if (!index) made.scope = "row";
      if (made.className !== (cell.kind ?? "")) made.className = cell.kind ?? "";
      if (cell.share === undefined) {
        say(made, cell.text);
        return;
      }
      if (!made.firstElementChild) made.append(html("span", "bar"), html("span"));
      made.firstElementChild.style.setProperty("--share", Math.min(1, cell.share));
      say(made.lastElementChild, cell.text);
    });
  });
}

export function size(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000) return `${unit === "B" ? count : count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} TB`;
}

export const loss = (value) => (value ? value.toFixed(3) : "–");
