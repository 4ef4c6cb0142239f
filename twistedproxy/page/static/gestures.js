// Pointer and wheel as movements: panning by drag, zooming by pinch and double click. Positions in CSS pixels from the
// element's corner.

/** `pan(right, down)`, `zoom(factor, x, y)`, `wheel(steps, x, y, event)`: 1 step is about one notch, down is positive. */
export function gestures(element, { pan, zoom, wheel }) {
  const pointers = new Map();
  const place = (event) => {
    const { left, top } = element.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    element.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, place(event));
  });
  element.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = place(event);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    pointers.set(event.pointerId, now);
    if (other) {
      const [was, is] = [distance(before, other), distance(now, other)];
      if (was > 0 && is > 0) zoom(is / was, (now.x + other.x) / 2, (now.y + other.y) / 2);
      pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    } else pan(now.x - before.x, now.y - before.y);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    element.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
  element.addEventListener("dblclick", (event) => {
    const { x, y } = place(event);
    zoom(event.shiftKey ? 0.5 : 2, x, y);
  });
  element.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const { x, y } = place(event);
      const unit = [1 / 100, 1 / 3, 1][event.deltaMode]; // pixels, lines, pages
      wheel(event.deltaY * unit, x, y, event);
    },
    { passive: false },
  );
}

const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);

/** Keeps a canvas as large as its element on the screen, in device pixels; `changed(ratio)` after each change. */
export function fitted(element, canvases, changed) {
  const observer = new ResizeObserver(([entry]) => {
    const exact = entry.devicePixelContentBoxSize?.[0];
    const { width: across, height: along } = entry.contentRect;
    const width = exact?.inlineSize ?? Math.round(across * devicePixelRatio);
    const height = exact?.blockSize ?? Math.round(along * devicePixelRatio);
    for (const canvas of canvases) Object.assign(canvas, { width, height });
    changed(across ? width / across : devicePixelRatio);
  });
  try {
    observer.observe(element, { box: "device-pixel-content-box" });
  } catch {
    observer.observe(element); // Safari
  }
  return () => observer.disconnect();
}
