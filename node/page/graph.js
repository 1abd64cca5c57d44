// The mesh as a picture: a circle of members, and the links between them. What a colour says, a
// shape and a word say too.

import { byId, html, keyed, say, set, svg } from "./dom.js";

const HEIGHT = 400;
const NAME_SHOWN = 18;
const SHAPES = {
  alive: (r) => circle(r),
  behind: (r) => circle(r),
  unknown: (r) => circle(r),
  suspect: (r) => `M0 ${-1.25 * r}L${1.25 * r} 0L0 ${1.25 * r}L${-1.25 * r} 0Z`,
  dead: (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`,
};
const SIGNS = { suspect: "?", dead: "✕", unknown: "…" };

function circle(r) {
  return `M${-r} 0a${r} ${r} 0 1 1 ${2 * r} 0a${r} ${r} 0 1 1 ${-2 * r} 0Z`;
}

function places(count, width) {
  const [x, y] = [width / 2, HEIGHT / 2];
  const [across, down] = count > 1 ? [Math.min(170, x - 60), 135] : [0, 0];
  return Array.from({ length: count }, (_, index) => {
    // Four members stand in a square; labels are on the outside, so that no link runs through.
    const turn = (2 * Math.PI * (index + 0.5)) / count - Math.PI / 2;
    return [x + across * Math.cos(turn), y + down * Math.sin(turn)];
  });
}

function makeMember() {
  const group = svg("g", { role: "listitem", tabindex: 0 });
  for (const name of ["title", "path", "text", "text", "text"]) group.append(svg(name));
  set(group.children[3], { class: "name" });
  set(group.children[4], { class: "about" });
  return group;
}

function drawMember(group, member, [x, y], r) {
  const [title, shape, sign, name, about] = group.children;
  set(group, {
    class: `member ${member.shown} ${member.role === "validator" ? "votes" : ""}`,
    transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
    "aria-label": `${member.name}: ${member.words}, ${member.role}, checkpoint ${member.height}`,
  });
  say(title, member.why || member.words);
  set(shape, { d: SHAPES[member.shown](r) });
  say(sign, r < 14 ? "" : SIGNS[member.shown] ?? member.height);
  const short = member.name.length > NAME_SHOWN;
  say(name, short ? `${member.name.slice(0, NAME_SHOWN - 1)}…` : member.name);
  const outside = y < HEIGHT / 2 ? [-r - 30, -r - 14] : [r + 18, r + 34];
  set(name, { y: outside[0] });
  say(about, r < 14 && member.shown === "alive" ? "" : member.words);
  set(about, { y: outside[1] });
}

export function drawGraph(mesh) {
  const graph = byId("graph");
  if (!graph.firstElementChild) {
    graph.append(svg("g", { "aria-hidden": "true" }), svg("g", { role: "presentation" }));
    drawLegend();
  }
  const [links, members] = graph.children;
  const width = graph.clientWidth || 480;
  set(graph, { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT });
  const at = places(mesh.members.length, width);
  const spots = new Map(mesh.members.map((member, index) => [member.id, at[index]]));
  const r = mesh.members.length <= 8 ? 26 : mesh.members.length <= 20 ? 15 : 8;
  keyed(links, mesh.links, (link) => `${link.a}-${link.b}`, () => svg("line"), (line, link) => {
    const [[x1, y1], [x2, y2]] = [spots.get(link.a), spots.get(link.b)];
    set(line, { x1, y1, x2, y2, class: link.up ? "link" : "link down" });
  });
  keyed(members, mesh.members, (member) => member.id, makeMember, (group, member) => {
    drawMember(group, member, spots.get(member.id), r);
  });
}

function drawLegend() {
  const words = {
    alive: "alive, with its height",
    behind: "behind",
    suspect: "suspect",
    dead: "dead",
    unknown: "not heard of yet",
  };
  keyed(byId("graph-legend"), Object.keys(words), (name) => name, (name) => {
    const entry = html("li");
    const picture = svg("svg", { viewBox: "-14 -14 28 28", "aria-hidden": "true" });
    picture.append(svg("path", { d: SHAPES[name](9) }));
    set(picture, { class: `member votes ${name}` });
    entry.append(picture, words[name]);
    return entry;
  }, () => {});
}
