// "Insert FlowCache before the sampler": an entry in the menu of AR samplers and of the nodes that sample with them.
import { app } from "../../scripts/app.js";
import { words } from "./panel/words.js";

const SAMPLERS = ["FlowCacheARSampler", "SamplerARVideo"];
const SAMPLINGS = ["SamplerCustomAdvanced", "SamplerCustom"];
const PARTS = ["FlowCacheChunkwiseReuse", "FlowCacheKVCompressor"];
const MODEL = "MODEL";
const [GAP, TITLE] = [40, 30]; // in the graph's units
const LONGEST = 1000; // nodes in a row; a longer chain goes in a circle

const typeOf = (node) => node.comfyClass ?? node.type;

// The node and the slot that an input is linked to, and the link.
function behind(node, name) {
  const slot = node.findInputSlot?.(name) ?? -1;
  const id = slot < 0 ? null : node.inputs[slot].link;
  const link = id === null || id === undefined ? null : (node.graph.getLink?.(id) ?? node.graph.links[id]);
  const source = link ? node.graph.getNodeById(link.origin_id) : null;
  return source ? { node: source, slot: link.origin_slot } : null;
}

// The nodes that sample with the AR sampler that was clicked.
function samplings(node) {
  if (SAMPLERS.includes(typeOf(node))) {
    const all = node.graph._nodes ?? node.graph.nodes;
    return all.filter((one) => SAMPLINGS.includes(typeOf(one)) && behind(one, "sampler")?.node === node);
  }
  const sampler = SAMPLINGS.includes(typeOf(node)) ? behind(node, "sampler")?.node : null;
  return sampler && SAMPLERS.includes(typeOf(sampler)) ? [node] : [];
}

// Where MODEL enters a sampling: at its guider, or at itself.
function entries(node) {
  const found = new Map();
  for (const sampling of samplings(node)) {
    const taker = behind(sampling, "guider")?.node ?? sampling;
    if (behind(taker, "model")) found.set(taker, true);
  }
  return [...found.keys()];
}

// Which of our nodes a MODEL has not come through.
function missing(taker) {
  const types = new Set();
  let here = behind(taker, "model");
  for (let count = 0; here && count < LONGEST; count++) {
    types.add(typeOf(here.node));
    here = behind(here.node, "model");
  }
  return PARTS.filter((type) => !types.has(type));
}

function insert(takers) {
  const graph = takers[0].graph;
  app.canvas.emitBeforeChange?.();
  graph.beforeChange?.();
  for (const taker of takers) {
    let { node, slot } = behind(taker, "model");
    let [x, y] = [taker.pos[0], lowest(graph) + GAP + TITLE];
    for (const type of missing(taker)) {
      const made = window.LiteGraph.createNode(type);
      graph.add(made);
      made.pos = [x, y];
      x += made.size[0] + GAP;
      node.connect(slot, made, made.findInputSlot("model"));
      [node, slot] = [made, made.findOutputSlot(MODEL)];
    }
    node.connect(slot, taker, taker.findInputSlot("model"));
  }
  graph.afterChange?.();
  app.canvas.emitAfterChange?.();
  graph.setDirtyCanvas?.(true, true);
}

// Below every node, where nothing is covered.
function lowest(graph) {
  return Math.max(...(graph._nodes ?? graph.nodes).map((node) => node.pos[1] + node.size[1]));
}

// The entries of a node's menu; called by the frontend.
export function insertions(node) {
  if (!node?.graph) return [];
  const takers = entries(node).filter((taker) => missing(taker).length);
  return takers.length ? [{ content: words().insert, callback: () => insert(takers) }] : [];
}
