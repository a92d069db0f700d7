// What a run will cost, on the nodes that decide it, before it runs: asks the pack's route with the prompt that would
// be queued, whenever the graph has changed; when a run begins the host says it once more, as it knows then.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { nodeOf, openGraph, panelOn } from "./place.js";
import { KINDS, marks } from "./lines.js";

const EVENT = "flowcache.estimate";
const PAUSE = 500; // ms without a change, before it is asked

let timer = null;
let asked = "";
let newest = 0;

async function ask() {
  const { output } = await app.graphToPrompt();
  if (!Object.values(output).some((node) => node.class_type in KINDS)) return;
  const body = JSON.stringify({ prompt: output });
  if (body === asked) return;
  asked = body;
  const mine = ++newest;
  const headers = { "Content-Type": "application/json" };
  const answer = await api.fetchApi("/flowcache/estimate", { method: "POST", headers, body });
  if (!answer.ok || mine !== newest) return; // something newer is on its way
  show((await answer.json()).nodes, (estimates) => ({ estimates, asked: marks(estimates) }));
}

function show(nodes, news) {
  for (const [id, estimates] of Object.entries(nodes)) {
    const node = nodeOf(id);
    if (node && KINDS[node.comfyClass ?? node.type]) panelOn(node).tell(news(estimates));
  }
}

export function askSoon() {
  clearTimeout(timer);
  timer = setTimeout(() => ask().catch((error) => console.warn("FlowCache: no estimate", error)), PAUSE);
}

// The same graph, perhaps, on new nodes, which show nothing yet.
export function graphOpened() {
  asked = "";
  askSoon();
}

export function listenForEstimates(changed) {
  api.addEventListener("graphChanged", changed);
  api.addEventListener("execution_success", () => {
    asked = ""; // the machine's pace is known now
    changed();
  });
  api.addEventListener(EVENT, ({ detail }) => {
    if (openGraph(detail.workflow)) show(detail.nodes, (estimates) => ({ estimates }));
  });
}
