// Where in the graph something is shown: nodes by the numbers that the host runs them under, and a panel on a node.
import { app } from "../../../scripts/app.js";
import { Panel } from "./view.js";

const NAME = "flowcache_run";
const MARGIN = 10; // that the classic renderer leaves around an element
const heights = new WeakMap(); // of nodes, when they were last fitted

export const rootGraph = () => app.rootGraph ?? app.graph;

// Whether the graph of this id is the one that is open; one without an id may be.
export const openGraph = (id) => !id || !rootGraph()?.id || id === rootGraph().id;

// The node of an execution id such as "12", or "40:12" for node 12 inside subgraph node 40.
export function nodeOf(id) {
  let graph = rootGraph();
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

const widgetOf = (node) => node.widgets?.find((candidate) => candidate.name === NAME);

// The panel of a node; made when there is something to show.
export function panelOn(node) {
  const found = widgetOf(node);
  if (found) return found.flowcache;
  const panel = new Panel(node.comfyClass ?? node.type, (before, now) => fit(node, before ? now - before : 0));
  const height = () => panel.height + 2 * MARGIN;
  const widget = node.addDOMWidget(NAME, NAME, panel.element, {
    serialize: false, // in prompts
    getMinHeight: height,
    getMaxHeight: height,
    getHeight: height,
    hideOnZoom: false,
  });
  widget.serialize = false; // in saved workflows
  widget.flowcache = panel;
  const removed = widget.onRemove;
  widget.onRemove = function () {
    panel.close();
    removed?.apply(this, arguments);
  };
  return panel;
}

// A run is forgotten; the panel goes where nothing else is left on it.
export function clear(node) {
  const widget = widgetOf(node);
  if (!widget) return;
  if (widget.flowcache.tell({ run: null })) return;
  const height = widget.flowcache.height;
  if (node.removeWidget) node.removeWidget(widget);
  else {
    widget.onRemove();
    node.widgets.splice(node.widgets.indexOf(widget), 1);
  }
  fit(node, -height);
}

// A node grows and shrinks with its panel, and keeps what its user gave it beyond that.
function fit(node, change) {
  // Nodes 2.0 has made room by itself, unless there was room to spare; it never takes any back.
  const done = change > 0 && LiteGraph.vueNodesMode && node.size[1] !== heights.get(node);
  const height = Math.max(node.size[1] + (done ? 0 : change), node.computeSize()[1]);
  node.setSize([node.size[0], height]); // its width is its user's
  heights.set(node, node.size[1]);
  node.setDirtyCanvas?.(true, true);
}
