// The rival of a run with reuse, as nodes beside it: the same sampling without reuse in fewer steps, and a comparison.
const REUSE = "FlowCacheChunkwiseReuse";
const SAMPLINGS = ["SamplerCustomAdvanced", "SamplerCustom"];
const BELOW = 60; // between the nodes that are there and their copies
const FAR = 1000; // nodes in a row; a longer chain goes in a circle

const kind = (node) => node.comfyClass ?? node.type;
const place = (node, name) => node.inputs?.findIndex((input) => input.name === name) ?? -1;

// [node, output] that an input is linked to; null where there is none.
function source(node, name) {
  const at = place(node, name);
  const link = at < 0 ? null : node.graph.getLink?.(node.inputs[at].link) ?? node.graph.links?.get?.(node.inputs[at].link);
  const from = link ? node.graph.getNodeById(link.origin_id) : null;
  return from ? [from, link.origin_slot] : null;
}

const sources = (node) => (node.inputs ?? []).map((input) => source(node, input.name)?.[0]).filter(Boolean);

function upstream(node, wanted, left = FAR) {
  if (wanted(node)) return node;
  for (const from of left > 0 ? sources(node) : []) {
    const found = upstream(from, wanted, left - 1);
    if (found) return found;
  }
  return null;
}

// What a comparison's result was sampled by: {sampling, steps: the widget that says how many}; null where some of it is
// missing, or no reuse lies before it.
export function rivalOf(compare) {
  const result = source(compare, "result")?.[0];
  const sampling = result && upstream(result, (node) => SAMPLINGS.includes(kind(node)));
  const levels = sampling && source(sampling, "sigmas")?.[0];
  const steps = levels?.widgets?.find((widget) => widget.name === "steps");
  if (!steps || !upstream(sampling, (node) => kind(node) === REUSE)) return null;
  return { sampling, levels, steps };
}

// Copies of everything between the model without reuse and the comparison, in fewer steps; the rest is shared, the noise
// most of all. Undone as one change.
export function addRival(compare, count) {
  const { levels } = rivalOf(compare);
  const graph = compare.graph;
  const copies = new Map();
  const bottom = Math.max(...graph.nodes.map((node) => node.pos[1] + node.size[1])) + BELOW;
  const top = Math.min(...changed(compare, levels).map((node) => node.pos[1]));

  // [node, output] that stands for one of the graph's in the rival.
  function instead(node, output) {
    if (kind(node) === REUSE) return source(node, "model");
    if (node !== levels && !upstream(node, (one) => one === levels || kind(one) === REUSE)) return [node, output];
    if (!copies.has(node)) copies.set(node, copy(node));
    return [copies.get(node), output];
  }

  function copy(node) {
    const made = node.clone();
    made.pos = [node.pos[0], node.pos[1] - top + bottom];
    graph.add(made);
    for (const input of node.inputs ?? []) {
      const from = source(node, input.name);
      const kept = node === compare && !["result", "model_result"].includes(input.name);
      const [at, output] = from ? (kept ? from : instead(...from)) : [];
      if (at) at.connect(output, made, place(made, input.name));
    }
    if (node === levels) setSteps(made, count);
    return made;
  }

  graph.beforeChange?.();
  const made = copy(compare);
  graph.afterChange?.();
  graph.setDirtyCanvas?.(true, true);
  return made;
}

// The nodes that will be copied: the comparison and what lies between it and the reuse or the levels.
function changed(compare, levels) {
  const found = new Set();
  const visit = (node) => {
    if (found.has(node) || kind(node) === REUSE) return;
    if (node !== levels && !upstream(node, (one) => one === levels || kind(one) === REUSE)) return;
    found.add(node);
    sources(node).forEach(visit);
  };
  visit(compare);
  return [...found];
}

function setSteps(node, count) {
  const widget = node.widgets.find((one) => one.name === "steps");
  const choices = widget.options?.values;
  const value = Array.isArray(choices)
    ? choices.reduce((best, one) => (Math.abs(one - count) < Math.abs(best - count) ? one : best))
    : count;
  widget.value = value;
  widget.callback?.(value);
}
