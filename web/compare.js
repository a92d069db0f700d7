// FlowCache Compare on its node: a slider over the frame that differs most, and a button that runs the rival, as many
// plain steps as cost the same. DOM widgets, so that they work in both renderers and in every version of the frontend.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addRival, rivalOf } from "./rival.js";

const COMPARE = "FlowCacheCompare";
const SLIDER = "flowcache_slider";
const BUTTON = "flowcache_rival";
const HEIGHT = 260;

const TEXTS = {
  en: {
    frame: (number) => `frame ${number}, the one that differs most: reference left, result right`,
    rival: (steps) => `Compare with ${steps} plain steps, which cost the same`,
    slider: "Drag to see more of the reference or of the result",
  },
  zh: {
    frame: (number) => `第 ${number} 帧，差别最大的一帧：左为参考，右为结果`,
    rival: (steps) => `与花费相同的 ${steps} 个普通步比较`,
    slider: "拖动以多看参考或结果",
  },
};

function say() {
  const locale = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en";
  return locale.startsWith("zh") ? TEXTS.zh : TEXTS.en;
}

// One picture over the other, the upper one cut off where the pointer is.
class Slider {
  constructor() {
    this.element = document.createElement("div");
    this.element.className = "flowcache-slider";
    Object.assign(this.element.style, { display: "flex", flexDirection: "column", gap: "4px", height: "100%" });
    this.frame = document.createElement("div");
    Object.assign(this.frame.style, { position: "relative", flex: "1", minHeight: "0", overflow: "hidden" });
    this.result = picture();
    this.reference = picture();
    this.line = document.createElement("div");
    Object.assign(this.line.style, { position: "absolute", top: "0", bottom: "0", width: "2px", background: "#FF8A3D" });
    this.range = document.createElement("input");
    Object.assign(this.range, { type: "range", min: "0", max: "100", value: "50" });
    this.range.setAttribute("aria-label", say().slider);
    this.caption = document.createElement("div");
    Object.assign(this.caption.style, { font: "12px sans-serif", color: "var(--input-text, #ddd)" });
    this.frame.append(this.result, this.reference, this.line);
    this.element.append(this.frame, this.range, this.caption);
    this.range.addEventListener("input", () => this.cut(Number(this.range.value)));
    this.frame.addEventListener("pointermove", (event) => {
      const box = this.frame.getBoundingClientRect();
      this.cut((100 * (event.clientX - box.left)) / box.width);
    });
    this.cut(50);
  }

  // Percent of the width that shows the reference.
  cut(percent) {
    const kept = Math.min(100, Math.max(0, percent));
    this.range.value = String(kept);
    this.reference.style.clipPath = `inset(0 ${100 - kept}% 0 0)`;
    this.line.style.left = `calc(${kept}% - 1px)`;
  }

  show([reference, result], frame) {
    this.reference.src = address(reference);
    this.result.src = address(result);
    this.caption.textContent = say().frame(frame);
  }
}

function picture() {
  const element = document.createElement("img");
  Object.assign(element.style, { position: "absolute", inset: "0", width: "100%", height: "100%" });
  Object.assign(element.style, { objectFit: "contain", imageRendering: "pixelated" });
  element.draggable = false;
  return element;
}

const address = (file) => api.apiURL(`/view?${new URLSearchParams(file)}&rand=${Math.random()}`);

function showSlider(node, files, frame) {
  let widget = node.widgets?.find((one) => one.name === SLIDER);
  if (!widget) {
    const slider = new Slider();
    const height = () => HEIGHT;
    widget = node.addDOMWidget(SLIDER, SLIDER, slider.element, {
      serialize: false, // in prompts
      getMinHeight: height,
      getHeight: height,
      hideOnZoom: false,
    });
    widget.serialize = false; // in saved workflows
    widget.flowcache = slider;
    grow(node);
  }
  widget.flowcache.show(files, frame);
}

// The button is there as long as there is a rival that costs the same and a sampling whose steps can be changed.
function offerRival(node, steps) {
  const old = node.widgets?.findIndex((one) => one.name === BUTTON) ?? -1;
  if (old >= 0) node.widgets.splice(old, 1);
  if (!steps || !rivalOf(node)) return;
  const label = say().rival(steps);
  const widget = node.addWidget("button", BUTTON, null, () => {
    addRival(node, steps);
    app.queuePrompt(0, 1);
  });
  Object.assign(widget, { label, serialize: false });
  widget.options = { ...widget.options, serialize: false };
  grow(node);
}

function grow(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

app.registerExtension({
  name: "FlowCache.Compare",
  nodeCreated(node) {
    if (node.comfyClass !== COMPARE) return;
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.slider?.length === 2) showSlider(this, output.slider, output.frame?.[0] ?? 0);
      offerRival(this, output?.plain_steps?.[0]);
    };
  },
});
