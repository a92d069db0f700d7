// The runs that this browser was told of, and on which nodes they are shown. Kept while the page is: a workflow that is
// opened again shows what its nodes last did; a page that is reloaded asks the host.
import { api } from "../../../scripts/api.js";
import { clear, nodeOf, openGraph, panelOn } from "./place.js";
import { KINDS } from "./lines.js";

const EVENT = "flowcache.run";
const ENDED = ["execution_interrupted", "execution_error"];

const runs = new Map();

const key = (run) => `${run.workflow ?? ""}/${run.node}`;

// The nodes that a run is shown on, if its graph is the one that is open: the one that samples, and those behind it.
function placesOf(run) {
  if (!openGraph(run.workflow)) return [];
  const node = nodeOf(run.node);
  if (!node || (run.kind !== null && (node.comfyClass ?? node.type) !== run.kind)) return [];
  const behind = (run.nodes ?? []).map(nodeOf).filter((one) => one && KINDS[one.comfyClass ?? one.type]);
  return [node, ...behind];
}

function told(run) {
  if (run.gone) return forget(run);
  runs.set(key(run), run);
  show(run);
}

function show(run) {
  for (const node of placesOf(run)) panelOn(node).tell({ run });
}

function forget(run) {
  const known = runs.get(key(run)) ?? run; // "gone" names the sampling node only
  runs.delete(key(run));
  for (const node of placesOf(known)) clear(node);
}

// A prompt broke off: whatever of it was still running is gone.
function broke({ detail }) {
  for (const run of [...runs.values()]) if (run.prompt === detail.prompt_id && !run.complete) forget(run);
}

export function showAll() {
  for (const run of runs.values()) show(run);
}

// What was told while this page was not there.
async function ask() {
  const client = api.clientId ?? api.initialClientId;
  if (!client) return;
  const answer = await api.fetchApi(`/flowcache/runs?client=${encodeURIComponent(client)}`);
  if (!answer.ok) return;
  for (const run of await answer.json()) if (!runs.has(key(run))) told(run);
}

export function listen() {
  api.addEventListener(EVENT, ({ detail }) => told(detail));
  for (const event of ENDED) api.addEventListener(event, broke);
  api.addEventListener("reconnected", ask);
  ask().catch((error) => console.warn("FlowCache: the host's last runs are not known", error));
}
