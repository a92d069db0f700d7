// The sentences of a run, from its newest message (docs/live-map.md), in the frontend's language.
import { megabytes, time, words } from "./words.js";

// What a person wants to know first.
export function headline(run) {
  const say = words();
  if (!run.complete) {
    const parts = [run.left === null ? say.unknown : say.left(time(run.left)), say.finished(run.finished, run.chunks)];
    return parts.join(" · ");
  }
  const whole = run.seconds + run.saved;
  const saved = run.saved < 0.05 ? say.nothing : say.saved(time(run.saved), time(whole), (whole / run.seconds).toFixed(1));
  const parts = [saved];
  if (run.expected !== null && run.expected !== undefined) parts.push(say.expected(Math.round(run.expected)));
  return parts.join(" · ");
}

export function details(run) {
  const say = words();
  const share = run.done ? Math.round((100 * run.computed) / run.done) : 100;
  const parts = run.complete ? [say.took(time(run.seconds))] : [say.steps(run.done, run.total)];
  parts.push(say.share(share));
  if (run.preset) parts.push(say.preset(run.preset));
  return parts.join(" · ");
}

// Of the K/V, null where none is kept. While it runs: what is held, room, budget; afterwards: what a budget saved.
export function memory(run) {
  const kv = run.kv;
  if (!kv) return null;
  const say = words();
  const bytes = (tokens) => megabytes((kv.bytes * tokens) / kv.allocated);
  const bounded = (kv.whole ?? 0) > kv.allocated;
  if (run.complete) return bounded ? say.kept(bytes(kv.allocated), bytes(kv.whole)) : say.kv(bytes(kv.allocated));
  const parts = [say.held(bytes(kv.held), bytes(kv.allocated))];
  if (kv.budget !== null && kv.budget < kv.allocated) parts.push(say.budget(bytes(kv.budget)));
  if (bounded) parts.push(say.whole(bytes(kv.whole)));
  return parts.join(" · ");
}
