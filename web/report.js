// Writes the text of FlowCache Report on its node; the picture is shown by ComfyUI itself.
// A DOM widget, so that it works in the classic renderer and in Nodes 2.0.
export const REPORT = "FlowCacheReport";
const NAME = "flowcache_text";
const LINE = 14;
const FEWEST_LINES = 4;
const MOST_LINES = 12;

function textElement() {
  const element = document.createElement("pre");
  Object.assign(element.style, {
    margin: "0",
    padding: "6px",
    overflow: "auto",
    boxSizing: "border-box",
    font: `11px/${LINE}px monospace`,
    color: "var(--input-text, #ddd)",
    background: "var(--comfy-input-bg, #222)",
    borderRadius: "4px",
  });
  return element;
}

function show(node, text) {
  let widget = node.widgets?.find((candidate) => candidate.name === NAME);
  if (!widget) {
    const element = textElement();
    const height = () => 32 + LINE * Math.min(Math.max(element.dataset.lines, FEWEST_LINES), MOST_LINES);
    widget = node.addDOMWidget(NAME, NAME, element, {
      serialize: false, // in prompts
      getMinHeight: height,
      getMaxHeight: height,
    });
    widget.serialize = false; // in saved workflows
  }
  widget.element.dataset.lines = text.split("\n").length;
  widget.element.textContent = text;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

// Show what the node answers when it has run.
export function watchReport(node) {
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.apply(this, arguments);
    if (output?.text) show(this, output.text.join("\n"));
  };
}
