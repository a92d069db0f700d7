// What a run will cost, on the nodes that decide it, before it runs: asks the pack's route with the prompt that would
// be queued, whenever the graph has changed, and hands the answers to the frontend's own text on nodes.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const KINDS = ["FlowCacheChunkwiseReuse", "FlowCacheKVCompressor", "FlowCacheARSampler"];
const PAUSE = 700; // ms without a change, before it is asked

let timer = null;
let asked = "";
let newest = 0;

async function ask() {
  const { output } = await app.graphToPrompt();
  if (!Object.values(output).some((node) => KINDS.includes(node.class_type))) return;
  const body = JSON.stringify({ prompt: output });
  if (body === asked) return;
  asked = body;
  const mine = ++newest;
  const headers = { "Content-Type": "application/json" };
  const answer = await api.fetchApi("/flowcache/estimate", { method: "POST", headers, body });
  if (!answer.ok || mine !== newest) return; // something newer is on its way
  const { texts } = await answer.json();
  for (const [nodeId, text] of Object.entries(texts)) {
    api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId, text } }));
  }
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(() => ask().catch((error) => console.warn("FlowCache: no estimate", error)), PAUSE);
}

app.registerExtension({
  name: "FlowCache.Estimate",
  setup() {
    api.addEventListener("graphChanged", soon);
  },
  afterConfigureGraph() {
    asked = ""; // the same graph on new nodes, which show nothing yet
    soon();
  },
});
