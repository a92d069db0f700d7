// What a panel says, in the frontend's language; numbers are put in by the functions of a language's table.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { chinese } from "./chinese.js";
import { english } from "./english.js";

export const LANGUAGES = { en: english, zh: chinese };

const language = () => app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en";

export const isChinese = () => language().startsWith("zh");

// What the host cannot know: a language that was not chosen is the browser's.
export async function tellLanguage() {
  await api.fetchApi("/flowcache/page", { method: "POST", body: JSON.stringify({ language: language() }) });
}

export const words = () => (isChinese() ? chinese : english);

// Sentences of the host's side of the pack, which speaks English: [pattern, Chinese], the most definite ones first. The
// table is the host's (nodes/adapters/shown/said.py says how it is read).
let sentences = [];
let learning = null;

export const learn = () => (learning ??= read());

async function read() {
  const answer = await fetch(new URL("../sentences.zh.json", import.meta.url));
  if (!answer.ok) return;
  const literal = ([english]) => english.replaceAll("{}", "").length;
  const rows = Object.entries(await answer.json()).sort((one, other) => literal(other) - literal(one));
  sentences = rows.map(([english, chinese]) => [pattern(english), chinese]);
}

const pattern = (english) =>
  new RegExp(`^${english.split("{}").map((piece) => piece.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("(.+?)")}$`, "s");

export function reason(sentence) {
  return isChinese() ? translated(sentence) : sentence;
}

function translated(sentence) {
  const quoted = /^(['"])(.*)\1$/s.exec(sentence); // a value in quotes keeps them
  if (quoted) return quoted[1] + translated(quoted[2]) + quoted[1];
  for (const [known, chinese] of sentences) {
    const found = known.exec(sentence);
    if (!found) continue;
    let count = 0;
    return chinese.replace(/\{(\d?)\}/g, (_, place) => {
      const inside = found[1 + Number(place || count)];
      count++;
      return translated(inside);
    });
  }
  const parts = sentence.split("; ");
  const turned = parts.length > 1 ? parts.map(translated) : parts;
  return turned.some((part, number) => part !== parts[number]) ? turned.join("；") : sentence;
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
