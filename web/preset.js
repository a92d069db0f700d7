// Presets of one's own travel with the workflow. FlowCache Preset's field ``lists`` takes what was linked when it has
// run, and a graph from another machine keeps a preset whose file is not here: Chunkwise Reuse then takes what it holds.
import { app } from "../../scripts/app.js";

const PRESET = "FlowCachePreset";
const REUSE = "FlowCacheChunkwiseReuse";
const OWN = "my: ";
const HELD = "held in this workflow";

// The names that this machine's list has.
function known() {
  const inputs = LiteGraph.registered_node_types[REUSE]?.nodeData?.input?.required;
  const options = inputs?.preset?.[1]?.options ?? [];
  return options.map((option) => option.key ?? option);
}

// A preset that is not here, with its lists in the next field, is one that the workflow holds.
function keep(node, names) {
  const values = node.widgets_values;
  if (node.type !== REUSE || !Array.isArray(values)) return;
  const [name, lists] = values;
  const gone = typeof name === "string" && name.startsWith(OWN) && !names.includes(name);
  if (gone && typeof lists === "string" && lists.trim()) node.widgets_values = [HELD, ...values.slice(1)];
}

app.registerExtension({
  name: "FlowCache.Preset",
  beforeConfigureGraph(graph) {
    const names = known();
    const inner = (graph?.definitions?.subgraphs ?? []).flatMap((one) => one.nodes ?? []);
    for (const node of names.length ? [...(graph?.nodes ?? []), ...inner] : []) keep(node, names);
  },
  nodeCreated(node) {
    if (node.comfyClass !== PRESET) return;
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      const lists = this.widgets?.find((widget) => widget.name === "lists");
      if (!lists || !output?.lists?.[0] || lists.value === output.lists[0]) return;
      lists.value = output.lists[0];
      lists.callback?.(lists.value);
      app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
    };
  },
});
