// The notes and titles in our templates, in Chinese where the frontend is. A note that its user has changed stays as it is.
import { api } from "../../scripts/api.js";
import { rootGraph } from "./panel/place.js";
import { isChinese, learn, reason } from "./panel/words.js";

const NAME = "flowcache_note"; // property of the note: the template that it belongs to
const PACK = new URL(import.meta.url).pathname.split("/").at(-2);

const notesIn = (nodes) => nodes.filter((node) => node.type === "MarkdownNote" && node.properties?.[NAME]);

async function translate(note) {
  const name = note.properties[NAME];
  const answers = await Promise.all([
    api.fetchApi(`/workflow_templates/${PACK}/${name}.json`),
    fetch(new URL("./notes.zh.json", import.meta.url)),
  ]);
  if (!answers.every((answer) => answer.ok)) return;
  const [template, chinese] = await Promise.all(answers.map((answer) => answer.json()));
  const [original] = notesIn(template.nodes);
  const widget = note.widgets?.[0];
  if (widget && chinese[name] && widget.value === original?.widgets_values[0]) widget.value = chinese[name];
}

// Titles of groups and nodes; those that their user gave are not in the table.
async function translateTitles(graph) {
  await learn();
  for (const one of [...(graph.groups ?? graph._groups ?? []), ...graph.nodes]) {
    const said = one.title && reason(one.title);
    if (said !== one.title) one.title = said;
  }
  graph.setDirtyCanvas?.(true, true);
}

export function translateNotes() {
  const graph = rootGraph();
  const notes = isChinese() ? notesIn(graph?.nodes ?? []) : [];
  for (const done of [...notes.map(translate), ...(notes.length ? [translateTitles(graph)] : [])]) {
    done.catch((error) => console.warn("FlowCache: a text stays English", error));
  }
}
