// Where in the graph a run is shown: nodes by the numbers that the host runs them under, and a panel on a node.
import { app } from "../../../scripts/app.js";
import { RunView } from "./view.js";

const NAME = "flowcache_run";
const MARGIN = 10; // that the classic renderer leaves around an element

export const rootGraph = () => app.rootGraph ?? app.graph;

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

// Show a run on a node; the panel is made when the first run comes.
export function showOn(node, run) {
  let widget = node.widgets?.find((candidate) => candidate.name === NAME);
  if (!widget) {
    const view = new RunView(() => fit(node));
    const height = () => view.height + 2 * MARGIN;
    widget = node.addDOMWidget(NAME, NAME, view.element, {
      serialize: false, // in prompts
      getMinHeight: height,
      getMaxHeight: height,
      getHeight: height,
      hideOnZoom: false,
    });
    widget.serialize = false; // in saved workflows
    widget.flowcache = view;
    const removed = widget.onRemove;
    widget.onRemove = function () {
      view.close();
      removed?.apply(this, arguments);
    };
    fit(node);
  }
  widget.flowcache.show(run);
}

export function clear(node) {
  const widget = node.widgets?.find((candidate) => candidate.name === NAME);
  if (!widget) return;
  if (node.removeWidget) node.removeWidget(widget);
  else {
    widget.onRemove();
    node.widgets.splice(node.widgets.indexOf(widget), 1);
  }
  fit(node);
}

// As high as its widgets need.
function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas?.(true, true);
}
