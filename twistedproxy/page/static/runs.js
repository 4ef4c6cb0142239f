// What is known of frames (cached, being loaded, claimed), as runs: ascending, disjoint, inclusive, from 1. Pure.

export const total = (runs = []) => runs.reduce((sum, [from, to]) => sum + to - from + 1, 0);

/** Whether a frame is in one of the runs. */
export function contains(runs = [], frame) {
  let [low, high] = [0, runs.length - 1];
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (frame < runs[middle][0]) high = middle - 1;
    else if (frame > runs[middle][1]) low = middle + 1;
    else return true;
  }
  return false;
}

/** "cached", "loading", "claimed" or "absent". `instances`: by UID. */
export function stateOf(instances, uid, frame) {
  const known = instances[uid];
  if (!known) return "absent";
  return ["cached", "loading", "claimed"].find((state) => contains(known[state], frame)) ?? "absent";
}

/** What is known after a line of a stream: instances in it replace what was known, null removes it. */
export function merged(known, line) {
  const instances = { ...known.instances };
  for (const [uid, state] of Object.entries(line.instances ?? {})) {
    if (state === null) delete instances[uid];
    else instances[uid] = state;
  }
  return { instances, jobs: line.jobs ?? known.jobs };
}

/** Splits text that comes in pieces into lines: `lines(piece)` gives those that are complete, empty ones left out. */
export function lineSplitter() {
  let rest = "";
  return (piece) => {
    const parts = (rest + piece).split("\n");
    rest = parts.pop();
    return parts.filter((part) => part.trim());
  };
}
