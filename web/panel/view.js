// The panel of one run as an element: a headline, the map, K/V against its budget, and what the colours mean.
import { details, headline, memory } from "./lines.js";
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

export class RunView {
  // resized: called when the panel needs another height.
  constructor(resized) {
    this.run = null;
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
    this.content = child(this.element, "div", { padding: "6px 8px" });
    this.headline = child(this.content, "div", { fontWeight: "600", fontSize: "12px" });
    this.details = child(this.content, "div", { opacity: "0.8" });
    this.fault = child(this.content, "div", { color: "#e06c6c", fontWeight: "600" });
    this.canvas = child(this.content, "canvas", { display: "block", width: "100%", margin: "4px 0" });
    this.canvas.setAttribute("role", "img");
    this.legend = child(this.content, "div", { display: "flex", flexWrap: "wrap", gap: "0 10px", opacity: "0.9" });
    this.bar = child(this.content, "div", {
      position: "relative",
      height: "6px",
      margin: "5px 0 2px",
      borderRadius: "2px",
      overflow: "hidden",
    });
    this.held = child(this.bar, "div", { position: "absolute", inset: "0 auto 0 0" });
    this.budget = child(this.bar, "div", { position: "absolute", top: "0", bottom: "0", width: "2px" });
    this.memory = child(this.content, "div", { opacity: "0.8" });
    this.needed = 0;
    this.watch = new ResizeObserver(() => {
      this.paint();
      if (!this.content.offsetHeight || this.content.offsetHeight === this.needed) return;
      this.needed = this.content.offsetHeight;
      resized();
    });
    this.watch.observe(this.content);
  }

  // The newest message of the run.
  show(run) {
    this.run = run;
    this.headline.textContent = headline(run);
    this.details.textContent = details(run);
    this.fault.textContent = run.fault ? words().fault(run.fault) : "";
    this.memory.textContent = memory(run) ?? "";
    this.canvas.setAttribute("aria-label", `${words().map}: ${headline(run)}`);
    this.paint();
  }

  paint() {
    if (!this.run || !this.element.isConnected) return;
    const theme = themeOf(this.element);
    draw(this.canvas, this.run, theme);
    this.explain(theme);
    this.fill(theme);
  }

  explain(theme) {
    const names = words().legend;
    const present = new Set(this.run.rows.join(""));
    const letters = Object.keys(names).filter((letter) => present.has(letter));
    this.legend.replaceChildren();
    for (const letter of letters) {
      const entry = child(this.legend, "span", { display: "inline-flex", alignItems: "center", gap: "4px" });
      child(entry, "span", { width: "9px", height: "9px", background: theme[letter], display: "inline-block" });
      entry.append(names[letter]);
    }
  }

  fill(theme) {
    const kv = this.run.kv;
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
    if (!this.run) return 0;
    return this.needed || LINE * 6 + heightFor(this.run.rows.length);
  }

  close() {
    this.watch.disconnect();
  }
}
