// A panel as an element: a headline, lines, the map and the K/V of a run where it samples, and details that unfold.
import { content, KINDS, memory } from "./lines.js";
import { draw, heightFor } from "./map.js";
import { themeOf } from "./theme.js";
import { words } from "./words.js";

const LINE = 15;

function child(parent, tag, style = {}) {
  const element = document.createElement(tag);
  Object.assign(element.style, style);
  parent.append(element);
  return element;
}

export class Panel {
  // kind: class of the node. resized(before, now): called when the panel needs another height.
  constructor(kind, resized) {
    this.kind = kind;
    this.state = { run: null, estimates: null, asked: null, ran: null, text: null };
    this.frame = null;
    this.needed = 0;
    this.told = 0;
    this.element = document.createElement("div");
    this.element.className = "flowcache-panel";
    Object.assign(this.element.style, {
      boxSizing: "border-box",
      width: "100%",
      overflow: "hidden",
      font: `11px/${LINE}px sans-serif`,
      color: "var(--input-text, #ddd)",
      background: "var(--comfy-input-bg, #222)",
      borderRadius: "4px",
      pointerEvents: "none", // the node below is dragged and scrolled as if it were not there
    });
    this.content = child(this.element, "div", { padding: "6px 8px", overflowWrap: "anywhere" });
    this.headline = child(this.content, "div", { fontWeight: "600", fontSize: "12px" });
    this.lines = child(this.content, "div", { opacity: "0.85" });
    this.fault = child(this.content, "div", { color: "#e06c6c", fontWeight: "600" });
    this.drawing = child(this.content, "div", { display: "none" });
    this.canvas = child(this.drawing, "canvas", { display: "block", width: "100%", margin: "4px 0" });
    this.canvas.setAttribute("role", "img");
    this.legend = child(this.drawing, "div", { display: "flex", flexWrap: "wrap", gap: "0 10px", opacity: "0.9" });
    this.bar = child(this.drawing, "div", {
      position: "relative",
      height: "6px",
      margin: "5px 0 2px",
      borderRadius: "2px",
      overflow: "hidden",
    });
    this.held = child(this.bar, "div", { position: "absolute", inset: "0 auto 0 0" });
    this.budget = child(this.bar, "div", { position: "absolute", top: "0", bottom: "0", width: "2px" });
    this.memory = child(this.drawing, "div", { opacity: "0.85" });
    this.folding = child(this.content, "details", { opacity: "0.85", display: "none" });
    this.summary = child(this.folding, "summary", { cursor: "pointer", pointerEvents: "auto" });
    this.details = child(this.folding, "pre", {
      margin: "2px 0 0",
      font: `11px/${LINE}px sans-serif`,
      whiteSpace: "pre-wrap",
      overflow: "auto",
      maxHeight: "320px",
      pointerEvents: "auto",
      userSelect: "text",
    });
    this.watch = new ResizeObserver(() => {
      const height = this.content.offsetHeight;
      if (!height) return; // not on the screen
      this.paintSoon();
      if (height === this.needed) return;
      this.needed = height;
      const before = this.told;
      this.told = height;
      resized(before, height);
    });
    this.watch.observe(this.content);
  }

  // News, whole or in part: {run} its newest message, {estimates} of what runs will cost ({asked}: marks of those that
  // follow from the graph alone), {text} of a report. False where nothing is left to show.
  tell(news) {
    const begins = news.run && news.run.prompt !== this.state.run?.prompt;
    Object.assign(this.state, news);
    if (begins || (this.state.run && !this.state.ran)) this.state.ran = this.state.asked;
    this.said = content(this.kind, this.state);
    this.paintSoon();
    return this.said !== null;
  }

  get run() {
    return this.state.run;
  }

  // At most once a frame, however many messages come.
  paintSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.said && this.element.isConnected) this.paint();
    });
  }

  paint() {
    const { headline, lines, details } = this.said;
    write(this.headline, headline);
    write(this.lines, lines.join("\n"));
    this.lines.style.whiteSpace = "pre-wrap";
    const run = this.state.run;
    write(this.fault, run?.fault ? words().fault(run.fault) : "");
    const drawn = run && !KINDS[this.kind];
    this.drawing.style.display = drawn ? "block" : "none";
    if (drawn) this.map(run, headline);
    this.folding.style.display = details.length ? "block" : "none";
    write(this.summary, words().details);
    write(this.details, details.join("\n"));
    // A table keeps its columns; sentences are not cut.
    const columns = /\S {2,}\S/.test(this.state.text ?? "");
    this.details.style.fontFamily = columns ? "monospace" : "sans-serif";
    this.details.style.whiteSpace = columns ? "pre" : "pre-wrap";
  }

  map(run, headline) {
    const theme = themeOf(this.element);
    this.canvas.setAttribute("aria-label", `${words().map}: ${headline}`);
    draw(this.canvas, run, theme);
    this.explain(run, theme);
    this.fill(run, theme);
    write(this.memory, memory(run) ?? "");
  }

  explain(run, theme) {
    const names = words().legend;
    const present = new Set(run.rows.join(""));
    const letters = Object.keys(names).filter((letter) => present.has(letter));
    const shown = JSON.stringify([letters, letters.map((letter) => [names[letter], theme[letter]])]);
    if (shown === this.explained) return;
    this.explained = shown;
    this.legend.replaceChildren();
    for (const letter of letters) {
      const entry = child(this.legend, "span", { display: "inline-flex", alignItems: "center", gap: "4px" });
      child(entry, "span", { width: "9px", height: "9px", background: theme[letter], display: "inline-block" });
      entry.append(names[letter]);
    }
  }

  fill(run, theme) {
    const kv = run.kv;
    this.bar.style.display = kv ? "block" : "none";
    if (!kv) return;
    this.bar.style.background = theme[" "];
    const percent = (tokens) => `${(100 * Math.min(1, tokens / kv.allocated)).toFixed(1)}%`;
    Object.assign(this.held.style, { width: percent(kv.held), background: theme["#"] });
    const shown = kv.budget !== null && kv.budget < kv.allocated;
    Object.assign(this.budget.style, {
      display: shown ? "block" : "none",
      left: shown ? percent(kv.budget) : "0",
      background: theme.budget,
    });
  }

  // Height in CSS pixels that everything needs; a guess until it has been laid out.
  get height() {
    const rows = this.state.run && !KINDS[this.kind] ? heightFor(this.state.run.rows.length) + 4 * LINE : 0;
    return this.needed || 3 * LINE + rows;
  }

  close() {
    this.watch.disconnect();
    if (this.frame !== null) cancelAnimationFrame(this.frame);
  }
}

// Text that has not changed is left alone, so that nothing is laid out anew.
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
