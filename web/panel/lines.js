// What a panel says: the sentences of a run (docs/live-map.md) and of what one will cost, in the frontend's language.
import { flops, megabytes, reason, time, words } from "./words.js";

// Our nodes that have a panel, and what each of them speaks of. Any other node is one that samples.
export const KINDS = {
  FlowCacheChunkwiseReuse: "steps",
  FlowCacheKVCompressor: "memory",
  FlowCacheARSampler: "all",
  SamplerARVideo: "all",
  FlowCacheReport: "all",
};

// {headline, lines, details} of a panel on a node of ``kind``; null where there is nothing to say.
export function content(kind, { run, estimates, asked, ran, text }) {
  const subject = KINDS[kind];
  const folded = text ? [text] : [];
  if (!subject) return run ? ofSampling(run) : null;
  if (!run && !estimates?.length) return text ? { headline: words().report, lines: [], details: folded } : null;
  const foretold = (estimates ?? []).map((one) => foretelling(subject, one));
  if (!run) {
    const [first, ...others] = foretold;
    const lines = [...others.map((one) => one.short), ...said(foretold.flatMap((one) => one.notes))];
    return { headline: first.short, lines, details: [...unfolded(foretold), ...folded] };
  }
  const changed = estimates?.length && ran && ran !== asked;
  const next = changed ? foretold.map((one) => words().next(one.short)) : [];
  const lines = [...behind(subject, run), ...next];
  return { headline: result(subject, run), lines, details: [...folded, ...(text ? [] : unfolded(foretold))] };
}

// What an estimate is known by: by another one the next run will differ from the last.
export const marks = (estimates) =>
  JSON.stringify((estimates ?? []).map(({ computed, total, kv, whole_kv }) => [computed, total, kv, whole_kv]));

// Each sentence of the host's side once, in the frontend's language.
const said = (notes) => [...new Set(notes)].map(reason);

const unfolded = (foretold) => [...new Set(foretold.flatMap((one) => one.more))];

// On the node that samples: what a person wants to know first, then the rest; the map and the K/V are drawn beside them.
function ofSampling(run) {
  const say = words();
  const share = run.done ? Math.round((100 * run.computed) / run.done) : 100;
  const lines = run.complete ? [say.took(time(run.seconds))] : [say.steps(run.done, run.total)];
  lines.push(say.share(share));
  if (run.preset) lines.push(run.preset);
  const headline = run.complete ? [saved(run), ...expected(run)] : [left(run), say.finished(run.finished, run.chunks)];
  return { headline: headline.join(" · "), lines: [lines.join(" · ")], details: [] };
}

function left(run) {
  const say = words();
  return run.left === null ? say.unknown : say.left(time(run.left));
}

// About how much time reuse saved, against the run's own computed steps.
function saved(run) {
  const whole = run.seconds + run.saved;
  const say = words();
  return run.saved < 0.05 ? say.nothing : say.saved(time(run.saved), time(whole), (whole / run.seconds).toFixed(1));
}

function expected(run) {
  if (run.expected === null || run.expected === undefined) return [];
  const say = run.beside?.length ? words().expectedAlone : words().expected;
  return [say(Math.round(run.expected))];
}

function result(subject, run) {
  const kv = memory(run);
  if (subject === "memory") return kv ?? words().noMemory;
  if (!run.complete) return ofSampling(run).headline;
  if (subject === "steps") return saved(run);
  return [saved(run), ...(kv ? [kv] : []), ...expected(run)].join(words().comma);
}

function behind(subject, run) {
  const say = words();
  const steps = say.computed(Math.round(run.computed), run.done, Math.round((100 * run.computed) / Math.max(1, run.done)));
  if (subject === "memory") return [say.finished(run.finished, run.chunks)];
  if (subject === "steps") return [[steps, ...(run.complete ? expected(run) : [])].join(" · "), ...said(run.notes)];
  return [[steps, ...(run.complete ? [say.took(time(run.seconds))] : [])].join(" · ")];
}

// Of the K/V, null where none is kept. While it runs: what is held, room, budget; afterwards: what a budget saved.
export function memory(run) {
  const kv = run.kv;
  if (!kv) return null;
  const say = words();
  const bytes = (tokens) => megabytes((kv.bytes * tokens) / kv.allocated);
  const bounded = (kv.whole_bytes ?? 0) > kv.bytes;
  if (run.complete) return bounded ? say.kept(megabytes(kv.bytes), megabytes(kv.whole_bytes)) : say.kv(megabytes(kv.bytes));
  const parts = [say.held(bytes(kv.held), bytes(kv.allocated))];
  if (kv.budget !== null && kv.budget < kv.allocated) parts.push(say.budget(bytes(kv.budget)));
  if (bounded) parts.push(say.whole(megabytes(kv.whole_bytes)));
  return parts.join(" · ");
}

// A sentence that may list everything there is to choose, as far as a node has room for it.
const ROOM = 140;
const begun = (whole) => {
  if (whole.length <= ROOM) return whole;
  const end = Math.max(...[",", "，", "、", " "].map((sign) => whole.lastIndexOf(sign, ROOM)));
  return `${whole.slice(0, end > 0 ? end : ROOM)} …`;
};

// {short: a line, more: lines to unfold, notes: on what is reused, on the node that decides it} of what a run will cost.
function foretelling(subject, found) {
  const say = words();
  if (found.reason) {
    const whole = reason(found.reason), short = found.later ? say.later : begun(whole);
    return { short, more: short === whole ? [] : [whole], notes: [] };
  }
  const share = say.will(found.computed, found.total, Math.round((100 * found.computed) / Math.max(1, found.total)));
  const about = found.computed === found.total ? say.atMost(share) : say.about(share);
  const steps = found.sure ? share : about;
  const kv = found.kv < found.whole_kv ? say.kept(megabytes(found.kv), megabytes(found.whole_kv)) : say.kv(megabytes(found.kv));
  const cost = [say.cost(flops(found.flops), flops(found.whole_flops))];
  if (found.density !== null && found.density !== undefined) cost.push(say.sparse(Math.round(100 * found.density)));
  cost.push(...(found.attention ?? []).map(reason));
  if (found.seconds !== null) cost.push(say.pace(time(found.seconds)));
  if (!found.sure) cost.push(say.decides);
  const parts = Object.entries(found.memory).sort(([, a], [, b]) => b - a);
  const where = found.kv_device ? [say.where(found.kv_device)] : [];
  const held = parts.map(([name, bytes]) => say.part(say.parts[name] ?? name, megabytes(bytes)));
  if (subject === "steps") {
    const [why, ...others] = found.notes;
    const none = why && found.computed === found.total; // every step is needed: the sentence says it all
    return none ? { short: reason(why), more: cost, notes: others } : { short: steps, more: cost, notes: found.notes };
  }
  if (subject === "memory") {
    const all = found.kv < found.whole_kv ? say.bounded(found.chunks) : say.fits(found.chunks);
    const chosen = found.kv_choice ? [reason(found.kv_choice)] : [];
    return { short: kv, more: [all, ...where, ...chosen], notes: [] };
  }
  const short = [steps, ...(found.whole_kv ? [kv] : []), say.peak(megabytes(found.peak))].join(" · ");
  return { short, more: [...cost, ...held, ...where], notes: [] };
}
