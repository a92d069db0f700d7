// The runs that this browser was told of, and on which nodes they are shown. Kept while the page is: a workflow that is
// opened again shows what its nodes last did; a page that is reloaded asks the host.
import { api } from "../../../scripts/api.js";
import { clear, nodeOf, rootGraph, showOn } from "./place.js";

const EVENT = "flowcache.run";
const ENDED = ["execution_interrupted", "execution_error"];

const runs = new Map();

const key = (run) => `${run.workflow ?? ""}/${run.node}`;

// The node that a run belongs to, if its graph is the one that is open.
function placeOf(run) {
  if (run.workflow && rootGraph()?.id && run.workflow !== rootGraph().id) return null;
  const node = nodeOf(run.node);
  return node && (run.kind === null || (node.comfyClass ?? node.type) === run.kind) ? node : null;
}

function told(run) {
  if (run.gone) return forget(run);
  runs.set(key(run), run);
  const node = placeOf(run);
  if (node) showOn(node, run);
}

function forget(run) {
  runs.delete(key(run));
  const node = placeOf(run);
  if (node) clear(node);
}

// A prompt broke off: whatever of it was still running is gone.
function broke({ detail }) {
  for (const run of [...runs.values()]) if (run.prompt === detail.prompt_id && !run.complete) forget(run);
}

export function showAll() {
  for (const run of runs.values()) {
    const node = placeOf(run);
    if (node) showOn(node, run);
  }
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
