// Elements, and what is said aloud.

/** An element: h("p.note", { onclick, hidden: true, "aria-label": "…" }, "text", child, …). */
export function h(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  return fill(document.createElement(tag), classes, properties, children);
}

/** An element of SVG. */
export function svg(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), classes, properties, children);
}

function fill(element, classes, properties, children) {
  if (classes.length) element.classList.add(...classes);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A list to choose from: options [value, text]. */
export function choice(label, options, chosen) {
  const select = h("select", { onchange: () => chosen(select.value) }, options.map(([value, named]) => h("option", { value }, named)));
  return h("label.choice", {}, label, select);
}

/** Text for screen readers; the last one counts. */
export function say(text) {
  const live = document.getElementById("live");
  if (live.textContent !== text) live.textContent = text;
}

/** Calls `action` once `milliseconds` have passed without another call. */
export function debounced(milliseconds, action) {
  let timer = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

/** Calls `action` once before the next picture, however often it is asked for. */
export function onceAFrame(action) {
  let asked = 0;
  const soon = () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      action();
    });
  };
  soon.cancel = () => cancelAnimationFrame(asked);
  return soon;
}
