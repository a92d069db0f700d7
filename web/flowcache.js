// What the pack adds to the frontend: panels on its nodes and on the node that samples, and an action in menus.
import { app } from "../../scripts/app.js";
import { insertions } from "./insert.js";
import { askSoon, graphOpened, listenForEstimates } from "./panel/estimates.js";
import { listen, showAll } from "./panel/runs.js";
import { REPORT, watchReport } from "./panel/report.js";
import { learn, tellLanguage } from "./panel/words.js";
import { translateNotes } from "./notes.js";

app.registerExtension({
  name: "FlowCache",
  setup() {
    for (const asked of [learn(), tellLanguage()])
      asked.catch((error) => console.warn("FlowCache: some sentences stay English", error));
    listen();
    listenForEstimates(askSoon);
  },
  afterConfigureGraph() {
    translateNotes();
    showAll();
    graphOpened();
  },
  nodeCreated(node) {
    if (node.comfyClass === REPORT) watchReport(node);
  },
  getNodeMenuItems: insertions, // frontends that lack it never call it
});
