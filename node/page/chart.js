// Loss by round: a line for each node's training loss, and one for the shared model.

import { byId, html, keyed, loss, say, set, svg } from "./dom.js";

export const SHARED = "shared";
const HEIGHT = 360;
const EDGE = { left: 46, right: 12, top: 10, bottom: 26 };
const COLOURS = 6;

// series id -> Map of round -> loss
const series = new Map();

export function addLoss([id, round, value]) {
  if (!series.has(id)) series.set(id, new Map());
  series.get(id).set(round, value);
}

export const forget = () => series.clear();

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(at);
  return found;
}

function line(points, x, y) {
  // A first point alone is a dot: a line of no length with round ends.
  const path = points.map(([at, value], i) => `${i ? "L" : "M"}${x(at)} ${y(value)}`).join("");
  return points.length === 1 ? `${path}h0` : path;
}

export function drawLoss(mesh) {
  const chart = byId("loss");
  const names = new Map(mesh.members.map((member) => [member.id, member.name]));
  const shown = [...series]
    .filter(([id]) => id === SHARED || names.has(id))
    .map(([id, values]) => {
      const place = mesh.members.findIndex((member) => member.id === id);
      const kind = id === SHARED ? "shared" : `s${place % COLOURS} d${Math.floor(place / COLOURS) % 3}`;
      const name = names.get(id) ?? "shared model, held-out text";
      return { id, kind, name, points: [...values].sort(([a], [b]) => a - b) };
    })
    .sort((one, other) => (one.id === SHARED) - (other.id === SHARED));
  if (!shown.length) return;
  const width = chart.clientWidth || 560;
  set(chart, { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT });
  if (!chart.firstElementChild) chart.append(svg("g"), svg("g"), svg("g"), svg("g"));
  const [across, down, lines, dots] = chart.children;

  const all = shown.flatMap((one) => one.points);
  const [low, high] = range(all.map(([, value]) => value), 0.05);
  const [first, last] = range(all.map(([round]) => round), 0);
  const scale = (from, to, start, end) => (value) =>
    (start + ((value - from) / (to - from)) * (end - start)).toFixed(1);
  const x = scale(first, last, EDGE.left, width - EDGE.right);
  const y = scale(low, high, HEIGHT - EDGE.bottom, EDGE.top);

  tickMarks(across, ticks(low, high, 5), (tick) => ({
    x1: EDGE.left, x2: width - EDGE.right, y1: y(tick), y2: y(tick),
  }), (tick) => ({ x: EDGE.left - 8, y: y(tick), class: "left" }));
  const whole = ticks(first, last, 6).filter(Number.isInteger);
  tickMarks(down, whole, (tick) => ({
    x1: x(tick), x2: x(tick), y1: HEIGHT - EDGE.bottom, y2: HEIGHT - EDGE.bottom + 4,
  }), (tick) => ({ x: x(tick), y: HEIGHT - 8, class: "below" }));
  keyed(lines, shown, (one) => one.id, () => svg("path"), (path, one) => {
    set(path, { d: line(one.points, x, y), class: `line ${one.kind}` });
  });
  const certified = shown.filter((one) => one.id === SHARED).flatMap((one) => one.points);
  keyed(dots, certified, ([round]) => round, () => svg("circle", { r: 3.5 }), (dot, [at, value]) => {
    set(dot, { cx: x(at), cy: y(value), class: "dot" });
  });
  describe(chart, shown);
}

function range(values, share) {
  // Not Math.min(...values): thousands of arguments are too many for some browsers.
  const low = values.reduce((one, other) => Math.min(one, other));
  const high = values.reduce((one, other) => Math.max(one, other));
  const room = (high - low) * share;
  return high > low ? [low - room, high + room] : [low - 0.5, high + 0.5];
}

function tickMarks(group, marks, place, label) {
  keyed(group, marks, (tick) => tick.toPrecision(6), () => {
    const mark = svg("g");
    mark.append(svg("line", { class: "tick" }), svg("text"));
    return mark;
  }, (mark, tick) => {
    set(mark.firstElementChild, place(tick));
    set(say(mark.lastElementChild, Number(tick.toPrecision(4))), label(tick));
  });
}

function describe(chart, shown) {
  const last = shown.map((one) => [one, ...one.points.at(-1)]);
  const words = last.map(([one, round, value]) => `${one.name} ${loss(value)} at round ${round}`);
  set(chart, { "aria-label": `Loss: ${words.join("; ")}` });
  keyed(byId("loss-legend"), last, ([one]) => one.id, () => {
    const entry = html("li");
    const sample = svg("svg", { viewBox: "0 0 28 10", "aria-hidden": "true" });
    sample.append(svg("path", { d: "M1 5H27" }));
    entry.append(sample, html("span"));
    return entry;
  }, (entry, [one, , value]) => {
    set(entry.querySelector("path"), { class: `line ${one.kind}` });
    say(entry.lastElementChild, `${one.name} ${loss(value)}`);
  });
}
