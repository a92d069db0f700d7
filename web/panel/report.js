// The text of FlowCache Report goes into its panel, under the unfolding details; the picture is shown by ComfyUI itself.
import { panelOn } from "./place.js";

export const REPORT = "FlowCacheReport";

// Show what the node answers when it has run.
export function watchReport(node) {
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.apply(this, arguments);
    if (output?.text) panelOn(this).tell({ text: output.text.join("\n") });
  };
}
