// What a panel says, in English and Chinese; numbers are put in by the functions.
import { app } from "../../../scripts/app.js";

const en = {
  steps: (done, total) => `step ${done} of ${total}`,
  share: (share) => `${share} % computed`,
  finished: (done, all) => `${done} of ${all} chunks done`,
  left: (time) => `${time} left`,
  unknown: "time left not known yet",
  kv: (all) => `K/V ${all} MB`,
  kept: (kept, whole) => `K/V ${kept} of ${whole} MB`,
  held: (held, room) => `K/V ${held} of ${room} MB`,
  budget: (budget) => `budget ${budget} MB`,
  whole: (whole) => `${whole} MB uncompressed`,
  fault: (place) => `Values are not finite from ${place} on (NaN or infinite)`,
  saved: (saved, whole, factor) => `about ${saved} of ${whole} saved (${factor} x)`,
  took: (time) => `took ${time}`,
  nothing: "nothing reused",
  expected: (decibels) => `expected ${decibels} dB`,
  preset: (name) => name,
  legend: {
    "=": "given",
    w: "warm-up",
    "#": "computed",
    "!": "forced",
    ".": "reused",
    part: "in part",
    x: "not finite",
    now: "now",
  },
  map: "Map of chunks (rows) and steps (columns)",
};

const zh = {
  steps: (done, total) => `第 ${done} 步，共 ${total} 步`,
  share: (share) => `已计算 ${share} %`,
  finished: (done, all) => `完成 ${done}/${all} 块`,
  left: (time) => `剩余 ${time}`,
  unknown: "剩余时间未知",
  kv: (all) => `K/V ${all} MB`,
  kept: (kept, whole) => `K/V ${kept} MB，不压缩需 ${whole} MB`,
  held: (held, room) => `K/V ${held} / ${room} MB`,
  budget: (budget) => `预算 ${budget} MB`,
  whole: (whole) => `不压缩需 ${whole} MB`,
  fault: (place) => `从 ${place} 起数值不是有限数（NaN 或无穷）`,
  saved: (saved, whole, factor) => `约省 ${whole} 中的 ${saved}（${factor} 倍）`,
  took: (time) => `用时 ${time}`,
  nothing: "没有复用",
  expected: (decibels) => `预计 ${decibels} dB`,
  preset: (name) => name,
  legend: {
    "=": "给定",
    w: "预热",
    "#": "已计算",
    "!": "强制计算",
    ".": "复用",
    part: "部分计算",
    x: "非有限值",
    now: "当前",
  },
  map: "块（行）与步（列）的图",
};

export const LANGUAGES = { en, zh };

export function words() {
  const locale = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en";
  return locale.startsWith("zh") ? zh : en;
}

// Such as "1:05", "2:01:40", or "4.2 s" for less than ten seconds.
export function time(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const [hours, minutes, rest] = parts.map((part) => String(part).padStart(2, "0"));
  return parts[0] ? `${parts[0]}:${minutes}:${rest}` : `${parts[1]}:${rest}`;
}

// Megabytes with three digits or so.
export function megabytes(bytes) {
  const value = bytes / 1e6;
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
