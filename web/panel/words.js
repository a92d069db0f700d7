// What a panel says, in the frontend's language; numbers are put in by the functions of a language's table.
import { app } from "../../../scripts/app.js";
import { chinese, chineseReasons } from "./chinese.js";
import { english } from "./english.js";

export const LANGUAGES = { en: english, zh: chinese };

export function isChinese() {
  return (app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en").startsWith("zh");
}

export const words = () => (isChinese() ? chinese : english);

// A sentence of the host's side of the pack, which speaks English.
export function reason(sentence) {
  if (!isChinese()) return sentence;
  for (const [pattern, said] of chineseReasons) {
    if (pattern.test(sentence)) return sentence.replace(pattern, said);
  }
  return sentence;
}

// Such as "1:05", "2:01:40", or "4.2 s" for less than ten seconds.
export function time(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const [hours, minutes, rest] = parts.map((part) => String(part).padStart(2, "0"));
  return parts[0] ? `${parts[0]}:${minutes}:${rest}` : `${parts[1]}:${rest}`;
}

// Megabytes with three digits or so; the tables say the unit.
export function megabytes(bytes) {
  const value = bytes / 1e6;
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function flops(count) {
  const [size, name] = count >= 1e15 ? [1e15, "PFLOPs"] : count >= 1e12 ? [1e12, "TFLOPs"] : [1e9, "GFLOPs"];
  return `${(count / size).toPrecision(3)} ${name}`;
}
