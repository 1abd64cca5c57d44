// What the page's server says of the mesh once a second, and what this page makes of it.

import { addLoss, drawLoss, forget } from "./chart.js";
import { byId, html, keyed, loss, rows, say, size } from "./dom.js";
import { drawGraph } from "./graph.js";

const NEWS_MAX = 50;
let news = [];

const stream = new EventSource("events");
// A server that was started again tells everything anew.
stream.addEventListener("open", () => {
  forget();
  news = [];
});
stream.addEventListener("error", () => line("bad", "this page's server does not answer"));
stream.addEventListener("message", (event) => show(JSON.parse(event.data)));

function line(kind, text) {
  byId("line").className = `pill ${kind}`;
  say(byId("line"), text);
}

function show({ mesh, entries }) {
  for (const entry of entries) {
    if (entry.loss) addLoss(entry.loss);
    else news.unshift(entry);
  }
  news.length = Math.min(news.length, NEWS_MAX);
  drawNews();
  if (mesh.trouble) {
    line("bad", mesh.trouble);
    return;
  }
  line("good", "live");
  const { id, version, parameters } = mesh;
  say(byId("mesh"), `mesh ${id.slice(0, 12)}, ${parameters.toLocaleString("en")} parameters, Shoal ${version}`);
  drawTiles(mesh);
  drawGraph(mesh);
  drawLoss(mesh);
  drawMembers(mesh);
  drawFlight(mesh);
  drawTraffic(mesh);
  drawCheckpoints(mesh);
}

function drawTiles(mesh) {
  const alive = mesh.members.filter((member) => member.state === "alive").length;
  const sent = mesh.bytes.reduce((sum, each) => sum + each.sent, 0);
  const tiles = [
    ["Members alive", `${alive} of ${mesh.members.length}`, alive < mesh.members.length && "bad"],
    ["Checkpoint", mesh.height],
    ["Shared model’s loss", loss(mesh.loss)],
    ["Quorum", `${mesh.quorum} of ${mesh.validators}`],
    ["Epoch, view", `${mesh.epoch}, ${mesh.view}${mesh.view_active ? "" : " (changing)"}`],
    ["Sent so far", size(sent)],
  ];
  keyed(byId("tiles"), tiles, ([name]) => name, ([name]) => {
    const tile = html("div");
    tile.append(say(html("dt"), name), html("dd"));
    return tile;
  }, (tile, [, value, kind]) => {
    tile.className = kind || "";
    say(tile.lastElementChild, value);
  });
}

function drawMembers(mesh) {
  const names = new Map(mesh.members.map((member) => [member.id, member.name]));
  const neighbours = (id) => mesh.links
    .filter((link) => link.up && (link.a === id || link.b === id))
    .map((link) => names.get(link.a === id ? link.b : link.a))
    .join(", ");
  rows(byId("members"), mesh.members, (member) => member.id, (member) => [
    { text: `${member.name} (${member.role})`, kind: "name" },
    { text: member.words, kind: `state ${member.shown}` },
    neighbours(member.id) || "none",
    { text: member.round || "–", kind: "n" },
    { text: loss(member.loss), kind: "n" },
    { text: Math.round(member.tokens_per_second).toLocaleString("en"), kind: "n" },
    { text: member.height, kind: "n" },
    { text: size(member.sent), kind: "n" },
    { text: size(member.received), kind: "n" },
    { text: member.why || (member.answers ? "" : "this page cannot ask it"), kind: "words" },
  ]);
}

function drawFlight(mesh) {
  const wanted = mesh.rounds_per_checkpoint;
  say(byId("flight-title"), `Deltas in flight, to checkpoint ${mesh.height + 1}`);
  say(byId("waiting"), `waiting for the cut, due from ${wanted}`);
  rows(byId("flight"), mesh.members, (member) => member.id, (member) => [
    member.name,
    { text: member.newest || "–", kind: "n" },
    { text: member.newest ? `${member.held_by} of ${mesh.answering}` : "–", kind: "n" },
    {
      text: member.pending,
      kind: "share",
      share: member.pending / wanted,
    },
  ]);
}

function drawTraffic(mesh) {
  const sent = mesh.bytes.reduce((sum, each) => sum + each.sent, 0) || 1;
  rows(byId("traffic"), mesh.bytes, (each) => each.kind, (each) => [
    each.kind,
    { text: size(each.sent), kind: "n" },
    { text: size(each.received), kind: "n" },
    { text: `${((100 * each.sent) / sent).toFixed(1)} %`, kind: "share", share: each.sent / sent },
  ]);
}

function drawCheckpoints(mesh) {
  const names = new Map(mesh.members.map((member) => [member.id, member.name]));
  const signers = (each) =>
    each.signers.map((id) => names.get(id) ?? id.slice(0, 8)).sort().join(", ");
  rows(byId("checkpoints"), mesh.checkpoints, (each) => each.height, (each) => [
    each.height,
    { text: each.round, kind: "n" },
    { text: loss(each.loss), kind: "n" },
    { text: each.deltas, kind: "n" },
    each.roots === 1
      ? { text: each.root.slice(0, 12), kind: "root" }
      : { text: `${each.roots} DIFFERENT ROOTS`, kind: "state dead" },
    signers(each) || `${each.signatures} validators`,
  ]);
}

function drawNews() {
  const list = byId("news");
  keyed(list, news, (entry) => entry.number, (entry) => {
    const item = html("li", entry.tone);
    const at = new Date(entry.at * 1000);
    const time = say(html("time"), at.toLocaleTimeString("en-GB"));
    time.dateTime = at.toISOString();
    item.append(time, " ", entry.text);
    return item;
  }, () => {});
  // Only what comes from now on is read out.
  requestAnimationFrame(() => list.setAttribute("aria-live", "polite"));
}
