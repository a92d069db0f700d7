// What the pack adds to the frontend: the live map on the node that samples, and the report's text.
import { app } from "../../scripts/app.js";
import { listen, showAll } from "./panel/runs.js";
import { REPORT, watchReport } from "./report.js";

app.registerExtension({
  name: "FlowCache",
  setup: listen,
  afterConfigureGraph: showAll,
  nodeCreated(node) {
    if (node.comfyClass === REPORT) watchReport(node);
  },
});
